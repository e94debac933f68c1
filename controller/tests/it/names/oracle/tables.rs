//! The tables of the data path in memory, filled by the same changes as the kernel's: what the programs ask, and what
//! nftables looks up where there are no programs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fw_bpf_common::{Allow, CELLS_PER_CLASS, Cell, Class, Config, Conntrack, NO_CLASS, Packet, Tables};
use fw_names::Change;
use fw_names::change::Nanos;
use fw_nft::ElementChange;
use fw_ruleset::ir::Key;
use fw_ruleset::{Dynamic, Superset};
use ipnet::IpNet;

/// Where continued classes begin; any place does that no id has.
const CONTINUED: u32 = 1 << 20;
/// Ids of the prefixes' classes.
const STATIC: u32 = 1 << 19;

/// What `ALLOW4`, `ALLOW6`, `CLASSES`, `STATIC4`, `STATIC6` and `CONFIG` hold.
#[derive(Default)]
pub(super) struct Programs {
    pub(super) config: Config,
    pub(super) now: Nanos,
    allow4: BTreeMap<[u8; 4], Allow>,
    allow6: BTreeMap<[u8; 16], Allow>,
    classes: BTreeMap<u32, Class>,
    prefixes: BTreeMap<IpNet, u32>,
    continued: u32,
}

impl Programs {
    pub(super) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutClass { id, cells } => self.put_class(*id, cells),
                Change::DropClass(id) => drop(self.classes.remove(id)),
                Change::Put { address: IpAddr::V4(v4), allow } => {
                    self.allow4.insert(v4.octets(), *allow);
                }
                Change::Put { address: IpAddr::V6(v6), allow } => {
                    self.allow6.insert(v6.octets(), *allow);
                }
                Change::Remove(IpAddr::V4(v4)) => drop(self.allow4.remove(&v4.octets())),
                Change::Remove(IpAddr::V6(v6)) => drop(self.allow6.remove(&v6.octets())),
            }
        }
    }

    pub(super) fn set_prefixes(&mut self, superset: &Superset) {
        self.prefixes.clear();
        for ((prefix, cells), id) in superset.iter().zip(STATIC..) {
            self.put_class(id, &cells_of(cells));
            self.prefixes.insert(*prefix, id);
        }
    }

    fn put_class(&mut self, id: u32, cells: &[Cell]) {
        let mut slot = id;
        let mut pieces = cells.chunks(CELLS_PER_CLASS).peekable();
        self.classes.insert(slot, Class::default());
        while let Some(piece) = pieces.next() {
            let mut class = Class::default();
            class.cells[..piece.len()].copy_from_slice(piece);
            if pieces.peek().is_some() {
                self.continued += 1;
                class.next = CONTINUED + self.continued;
            }
            let next = class.next;
            self.classes.insert(slot, class);
            slot = next;
        }
    }

    fn longest(&self, address: IpAddr) -> Option<u32> {
        let holds = self.prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
        holds.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, id)| *id)
    }

    /// Entries of one family each.
    pub(super) fn allows(&self) -> BTreeMap<IpAddr, Allow> {
        let four = self.allow4.iter().map(|(address, allow)| (IpAddr::from(*address), *allow));
        four.chain(self.allow6.iter().map(|(address, allow)| (IpAddr::from(*address), *allow))).collect()
    }
}

/// Cells of the prefix table, which carry no index.
pub(super) fn cells_of(ranges: &[(fw_policy::Protocol, u16, u16)]) -> Vec<Cell> {
    let cell = |(protocol, first, last): &(fw_policy::Protocol, u16, u16)| Cell {
        protocol: protocol.number(),
        first: *first,
        last: *last,
        ..Cell::default()
    };
    ranges.iter().map(cell).collect()
}

impl Tables for Programs {
    fn config(&self) -> Config {
        self.config
    }

    fn now_ns(&self) -> u64 {
        self.now
    }

    fn allow4(&self, address: &[u8; 4]) -> Option<&Allow> {
        self.allow4.get(address)
    }

    fn allow6(&self, address: &[u8; 16]) -> Option<&Allow> {
        self.allow6.get(address)
    }

    fn class(&self, slot: u32) -> Option<&Class> {
        (slot != NO_CLASS).then(|| self.classes.get(&slot)).flatten()
    }

    fn static4(&self, address: &[u8; 4]) -> Option<u32> {
        self.longest(IpAddr::from(*address))
    }

    fn static6(&self, address: &[u8; 16]) -> Option<u32> {
        self.longest(IpAddr::from(*address))
    }
}

/// What conntrack says about a packet.
pub(super) struct Connections {
    /// It is asked.
    pub(super) asks: bool,
    /// It has the packet's connection.
    pub(super) lives: bool,
}

impl Conntrack for Connections {
    fn can_be_asked(&self) -> bool {
        self.asks
    }

    fn knows(&self, _packet: &Packet) -> bool {
        self.lives
    }
}

/// Elements of nftables' maps and when they are over.
#[derive(Default)]
pub(super) struct Elements(BTreeMap<String, BTreeMap<Key, Element>>);

/// The mark in a map, and when it is over.
type Element = (Option<u32>, Option<Nanos>);

impl Elements {
    pub(super) fn apply(&mut self, changes: &[ElementChange], now: Nanos) {
        for change in changes {
            match change {
                ElementChange::Put(set, element) => {
                    let until = element.expires_in_ms.map(|left| now + left * 1_000_000);
                    let set = self.0.entry(set.clone()).or_default();
                    set.insert(element.key.clone(), (element.mark, until));
                }
                ElementChange::Remove(set, key) => {
                    self.0.entry(set.clone()).or_default().remove(key);
                }
            }
        }
    }

    /// What is there at a moment, for a packet with a mark.
    pub(super) fn dynamic(&self, mark: u32, now: Nanos) -> Dynamic {
        let live = |(key, (mark, until)): (&Key, &Element)| {
            until.is_none_or(|until| now < until).then(|| (key.clone(), *mark))
        };
        let elements =
            self.0.iter().map(|(set, elements)| (set.clone(), elements.iter().filter_map(live).collect()));
        Dynamic { mark, elements: elements.collect() }
    }
}

/// Names that were asked for and what is open by them, kept in the plainest way: what the reference is told.
#[derive(Default)]
pub(super) struct Known {
    facts: BTreeMap<(String, IpAddr), Nanos>,
}

impl Known {
    pub(super) fn learn(&mut self, name: &str, addresses: &BTreeSet<IpAddr>, until: Nanos) {
        for address in addresses {
            let known = self.facts.entry((name.to_owned(), *address)).or_default();
            *known = until.max(*known);
        }
    }

    /// Other policies: a name that none of them has is forgotten.
    pub(super) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.facts.retain(|(name, _), _| wanted(name));
    }

    pub(super) fn at(&self, now: Nanos) -> BTreeSet<(String, IpAddr)> {
        self.facts.iter().filter(|(_, until)| now < **until).map(|(fact, _)| fact.clone()).collect()
    }
}
