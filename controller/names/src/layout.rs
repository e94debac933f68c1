//! From entries to the cells of a class.

use std::collections::BTreeSet;

use fw_bpf_common::{CELLS_PER_CLASS, CLASS_HOPS, Cell};
use fw_policy::Protocol;

/// Cells of the longest class.
pub(crate) const MAX_CELLS: usize = CELLS_PER_CLASS * CLASS_HOPS;

/// Number of a selector in the learner.
pub(crate) type SelectorId = u32;

/// Ports that an entry opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    /// Place of the entry among all entries: of two that open a port the smaller one gets it.
    pub(crate) rank: usize,
    /// Selector of the entry.
    pub(crate) selector: SelectorId,
    /// Protocol of the entry.
    pub(crate) protocol: Protocol,
    /// Mark index of the entry.
    pub(crate) index: u32,
    /// Disjoint and sorted, both ends included.
    pub(crate) ports: Vec<(u16, u16)>,
}

/// Cells and where they come from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Cells {
    /// Disjoint, sorted by protocol and port, at most [`MAX_CELLS`].
    pub(crate) cells: Vec<Cell>,
    /// Selectors that have a cell. Only when one of them leaves do the cells change.
    pub(crate) winners: BTreeSet<SelectorId>,
    /// Cells beyond the bound; what they would open stays closed.
    pub(crate) left_out: u64,
}

/// Gives each port to the first entry that opens it.
pub(crate) fn cells<'a>(openings: impl IntoIterator<Item = &'a Opening>) -> Cells {
    let mut openings: Vec<&Opening> = openings.into_iter().collect();
    openings.sort_unstable_by_key(|opening| opening.rank);
    let mut result = Cells::default();
    for protocol in Protocol::ALL {
        let mut taken = Taken::default();
        for opening in openings.iter().filter(|opening| opening.protocol == protocol) {
            for (first, last) in &opening.ports {
                taken.claim(*first, *last, opening);
            }
        }
        for range in taken.ranges {
            if result.cells.len() == MAX_CELLS {
                result.left_out += 1;
                continue;
            }
            result.winners.insert(range.selector);
            let Range { first, last, index, .. } = range;
            result.cells.push(Cell { protocol: protocol.number(), reserved: [0; 3], first, last, index });
        }
    }
    result
}

/// Ports of one protocol that are given away: disjoint and sorted.
#[derive(Default)]
struct Taken {
    ranges: Vec<Range>,
}

#[derive(Clone, Copy)]
struct Range {
    first: u16,
    last: u16,
    index: u32,
    selector: SelectorId,
}

impl Taken {
    /// Gives the entry what is not taken yet of a range.
    fn claim(&mut self, first: u16, last: u16, opening: &Opening) {
        let mut at = self.ranges.partition_point(|range| range.last < first);
        let mut from = Some(first);
        while let Some(first) = from.filter(|from| *from <= last) {
            let next = self.ranges.get(at).copied();
            let free_to = match next {
                Some(next) if next.first <= first => None,
                Some(next) => Some(last.min(next.first - 1)),
                None => Some(last),
            };
            if let Some(last) = free_to {
                let (index, selector) = (opening.index, opening.selector);
                self.ranges.insert(at, Range { first, last, index, selector });
                at += 1;
            }
            from = next.and_then(|next| next.last.checked_add(1));
            at += 1;
        }
    }
}
