//! What the data path should hold.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fw_bpf_common::{Allow, STEPS, Step};

use super::Learner;
use super::classes::List;
use super::selectors::Selectors;
use crate::change::{Change, Nanos};
use crate::layout::{Cells, SelectorId, cells};

/// Sets of selectors up to this size are remembered with their cells.
const SMALL_SET: usize = 8;
/// So many of them.
const MEMO: usize = 4_096;

/// Cells of small sets of selectors, until the table changes.
#[derive(Debug, Default)]
pub(super) struct Memo {
    sets: BTreeMap<Vec<SelectorId>, Arc<Cells>>,
}

impl Memo {
    pub(super) fn clear(&mut self) {
        self.sets.clear();
    }

    fn cells(&mut self, selectors: &Selectors, set: Vec<SelectorId>) -> Arc<Cells> {
        if let Some(known) = self.sets.get(&set) {
            return known.clone();
        }
        let computed = Arc::new(cells(set.iter().flat_map(|id| selectors.openings(*id))));
        if set.len() <= SMALL_SET {
            if self.sets.len() >= MEMO {
                self.sets.clear();
            }
            self.sets.insert(set, computed.clone());
        }
        computed
    }
}

impl Learner {
    pub(super) fn list_changes(&mut self, now: Nanos) -> Vec<Change> {
        let mut list = List::default();
        for address in std::mem::take(&mut self.store.touched) {
            let allow = self.desired(address, now);
            if !self.data_path.holds(address, allow.as_ref(), now) {
                self.data_path.add(&mut list, address, allow);
                // It stays among the touched until a later look finds it confirmed.
                self.store.touched.insert(address);
            }
        }
        self.data_path.finish(list)
    }

    /// What an address is to be allowed; `None` for nothing.
    ///
    /// The cells of a set of selectors change only when one that has a cell leaves; so a step ends at the first end of
    /// those. What does not fit into the steps is written again when the first one is over: ends are whole seconds, so
    /// that there are at least three of them to do it.
    fn desired(&mut self, address: IpAddr, now: Nanos) -> Option<Allow> {
        let record = self.store.addresses.get(&address)?;
        let open = record.tops.iter().filter(|(_, top)| top.until > now).map(|(id, top)| (*id, top.until));
        let mut live: Vec<(SelectorId, Nanos)> =
            open.filter(|(id, _)| !self.selectors.openings(*id).is_empty()).collect();
        let mut allow = Allow::default();
        let mut used = 0;
        let mut rest = false;
        while !live.is_empty() {
            let cells = self.memo.cells(&self.selectors, live.iter().map(|(id, _)| *id).collect());
            let ends = live.iter().filter(|(id, _)| cells.winners.contains(id)).map(|(_, until)| *until);
            let Some(until_ns) = ends.min() else { break };
            let Some(step) = allow.steps.get_mut(used) else {
                rest = true;
                break;
            };
            let Some((class, is_new)) = self.data_path.class(&cells.cells) else {
                self.counters.without_class += 1;
                break;
            };
            if is_new {
                self.counters.cells_left_out += cells.left_out;
            }
            *step = Step { until_ns, class, reserved: 0 };
            used += 1;
            live.retain(|(_, until)| *until > until_ns);
        }
        self.rewrite_at(address, rest.then_some(allow.steps[0].until_ns));
        (used > 0).then_some(allow)
    }

    fn rewrite_at(&mut self, address: IpAddr, at: Option<Nanos>) {
        let Some(record) = self.store.addresses.get_mut(&address) else { return };
        let old = std::mem::replace(&mut record.rewrite, at);
        if old == at {
            return;
        }
        if let Some(old) = old {
            self.store.rewrites.remove(&(old, address));
        }
        if let Some(at) = at {
            self.store.rewrites.insert((at, address));
        }
    }
}

const _: () = assert!(STEPS >= 2, "a step that is over makes room for another while one is left");
