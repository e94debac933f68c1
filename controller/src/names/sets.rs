//! The data path without eBPF: the same changes as elements of nftables maps.
//!
//! ```text
//! fqdn4-0 … fqdn4-3, fqdn6-0 … fqdn6-3    address → class, until the time of that step
//! fqdn_cells                              class . protocol . ports → mark of the entry
//! ```
//! An element of one step outlives those before it, and each class holds what the later ones hold, so that the first
//! map that knows the address says all.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fw_bpf_common::{Allow, Cell, NO_CLASS, STEPS, Step};
use fw_names::Change;
use fw_names::change::Nanos;
use fw_nft::{ElementChange, TimedElement};
use fw_ruleset::ir::{Key, Value};

/// The map of class, protocol and ports.
pub const CELLS: &str = "fqdn_cells";
const NANOS_PER_MS: u64 = 1_000_000;

/// What the maps hold, as far as this process put it there.
#[derive(Debug, Default)]
pub struct Sets {
    allows: BTreeMap<IpAddr, Allow>,
    classes: BTreeMap<u32, Vec<Cell>>,
    /// Where an index stands in a mark.
    shift: u32,
}

/// Every map with addresses.
pub fn address_maps() -> impl Iterator<Item = String> {
    ['4', '6'].into_iter().flat_map(|family| (0..STEPS).map(move |step| format!("fqdn{family}-{step}")))
}

fn address_map(address: IpAddr, step: usize) -> String {
    format!("fqdn{}-{step}", if address.is_ipv4() { '4' } else { '6' })
}

fn address_key(address: IpAddr) -> Key {
    Key::Exact(vec![match address {
        IpAddr::V4(v4) => Value::Ipv4(v4),
        IpAddr::V6(v6) => Value::Ipv6(v6),
    }])
}

fn cell_key(class: u32, cell: &Cell) -> Key {
    let corner = |port| vec![Value::Mark(class), Value::Protocol(cell.protocol), Value::Port(port)];
    Key::Box(corner(cell.first), corner(cell.last))
}

impl Sets {
    /// For marks whose bits are `mask`.
    pub fn new(mask: u32) -> Self {
        Self { shift: mask.trailing_zeros(), ..Self::default() }
    }

    /// The elements that a list of changes puts and removes.
    pub fn elements(&self, changes: &[Change], now: Nanos) -> Vec<ElementChange> {
        let mut elements = Vec::new();
        for change in changes {
            match change {
                Change::PutClass { id, cells } => elements.extend(cells.iter().map(|cell| {
                    let mark = cell.index.checked_shl(self.shift).unwrap_or_default();
                    let key = cell_key(*id, cell);
                    put(CELLS, TimedElement { key, mark: Some(mark), expires_in_ms: None })
                })),
                Change::Put { address, allow } => self.put_address(*address, allow, now, &mut elements),
                Change::Remove(address) => {
                    let known = self.allows.get(address).copied().unwrap_or_default();
                    elements.extend(used(&known).map(|(step, _)| {
                        ElementChange::Remove(address_map(*address, step), address_key(*address))
                    }));
                }
                Change::DropClass(id) => {
                    let cells = self.classes.get(id).map(Vec::as_slice).unwrap_or_default();
                    elements.extend(
                        cells.iter().map(|cell| ElementChange::Remove(CELLS.to_owned(), cell_key(*id, cell))),
                    );
                }
            }
        }
        elements
    }

    fn put_address(&self, address: IpAddr, allow: &Allow, now: Nanos, elements: &mut Vec<ElementChange>) {
        let before = self.allows.get(&address).copied().unwrap_or_default();
        for (index, (step, old)) in allow.steps.iter().zip(&before.steps).enumerate() {
            let map = address_map(address, index);
            // A step that is over by now would be an element without time, which stays for ever.
            let left = step.until_ns.saturating_sub(now).div_ceil(NANOS_PER_MS);
            if step.class != NO_CLASS && left > 0 {
                let mark = Some(step.class);
                elements.push(put(
                    &map,
                    TimedElement { key: address_key(address), mark, expires_in_ms: Some(left) },
                ));
            } else if old.class != NO_CLASS {
                elements.push(ElementChange::Remove(map, address_key(address)));
            }
        }
    }

    /// Notes that the kernel has taken the changes.
    pub fn confirm(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutClass { id, cells } => {
                    self.classes.insert(*id, cells.clone());
                }
                Change::Put { address, allow } => {
                    self.allows.insert(*address, *allow);
                }
                Change::Remove(address) => {
                    self.allows.remove(address);
                }
                Change::DropClass(id) => {
                    self.classes.remove(id);
                }
            }
        }
    }

    /// What a process before this one left in the maps.
    pub fn adopt(mask: u32, maps: &[(String, Vec<TimedElement>)], now: Nanos) -> Self {
        let mut sets = Self::new(mask);
        for (map, elements) in maps {
            let level = map.rsplit('-').next().and_then(|digit| digit.parse::<usize>().ok());
            for element in elements {
                match level {
                    Some(level) if level < STEPS => sets.adopt_address(level, element, now),
                    _ => sets.adopt_cell(element),
                }
            }
        }
        for cells in sets.classes.values_mut() {
            cells.sort();
        }
        sets
    }

    fn adopt_address(&mut self, level: usize, element: &TimedElement, now: Nanos) {
        let Key::Exact(values) = &element.key else { return };
        let address = match values.as_slice() {
            [Value::Ipv4(v4)] => IpAddr::V4(*v4),
            [Value::Ipv6(v6)] => IpAddr::V6(*v6),
            _ => return,
        };
        let left = element.expires_in_ms.unwrap_or_default().saturating_mul(NANOS_PER_MS);
        let class = element.mark.unwrap_or(NO_CLASS);
        if let Some(step) = self.allows.entry(address).or_default().steps.get_mut(level) {
            *step = Step { until_ns: now.saturating_add(left), class, reserved: 0 };
        }
    }

    fn adopt_cell(&mut self, element: &TimedElement) {
        let (Key::Box(first, last), Some(mark)) = (&element.key, element.mark) else { return };
        let ([Value::Mark(class), Value::Protocol(protocol), Value::Port(first)], [_, _, Value::Port(last)]) =
            (first.as_slice(), last.as_slice())
        else {
            return;
        };
        let index = mark >> self.shift.min(31);
        let cell = Cell { protocol: *protocol, reserved: [0; 3], first: *first, last: *last, index };
        self.classes.entry(*class).or_default().push(cell);
    }

    /// What the maps hold, for the learner.
    pub fn contents(&self) -> (&BTreeMap<IpAddr, Allow>, &BTreeMap<u32, Vec<Cell>>) {
        (&self.allows, &self.classes)
    }
}

fn used(allow: &Allow) -> impl Iterator<Item = (usize, &Step)> {
    allow.steps.iter().enumerate().filter(|(_, step)| step.class != NO_CLASS)
}

fn put(map: &str, element: TimedElement) -> ElementChange {
    ElementChange::Put(map.to_owned(), element)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(steps: &[(u64, u32)]) -> Allow {
        let mut allow = Allow::default();
        for (step, (until_ms, class)) in allow.steps.iter_mut().zip(steps) {
            *step = Step { until_ns: until_ms * NANOS_PER_MS, class: *class, reserved: 0 };
        }
        allow
    }

    fn cell(first: u16, last: u16, index: u32) -> Cell {
        Cell { protocol: 6, reserved: [0; 3], first, last, index }
    }

    /// What the kernel would hold.
    fn kernel(elements: &[ElementChange]) -> Vec<(String, Vec<TimedElement>)> {
        let mut maps: BTreeMap<String, BTreeMap<Key, TimedElement>> = BTreeMap::new();
        for element in elements {
            match element {
                ElementChange::Put(map, element) => {
                    maps.entry(map.clone()).or_default().insert(element.key.clone(), element.clone());
                }
                ElementChange::Remove(map, key) => {
                    assert!(maps.entry(map.clone()).or_default().remove(key).is_some(), "{map} {key:?}");
                }
            }
        }
        maps.into_iter().map(|(name, elements)| (name, elements.into_values().collect())).collect()
    }

    #[test]
    fn what_is_put_is_what_the_next_process_adopts() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let changes = [
            Change::PutClass { id: 2, cells: vec![cell(80, 80, 5), cell(443, 450, 6)] },
            Change::PutClass { id: 3, cells: vec![cell(443, 450, 6)] },
            Change::Put { address, allow: allow(&[(1500, 2), (9000, 3)]) },
        ];
        let mut sets = Sets::new(0x00ff_ff00);
        let mut elements = sets.elements(&changes, 500 * NANOS_PER_MS);
        sets.confirm(&changes);
        let adopted = Sets::adopt(0x00ff_ff00, &kernel(&elements), 500 * NANOS_PER_MS);
        assert_eq!(adopted.contents(), sets.contents());
        let gone = [Change::Remove(address), Change::DropClass(2), Change::DropClass(3)];
        elements.extend(sets.elements(&gone, 0));
        assert!(kernel(&elements).iter().all(|(_, left)| left.is_empty()), "{elements:?}");
    }

    #[test]
    fn an_address_with_fewer_steps_leaves_no_element_of_the_others() {
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let first = [Change::Put { address, allow: allow(&[(1000, 2), (2000, 3)]) }];
        let second = [Change::Put { address, allow: allow(&[(3000, 4)]) }];
        let mut sets = Sets::new(u32::MAX);
        let mut elements = sets.elements(&first, 0);
        sets.confirm(&first);
        elements.extend(sets.elements(&second, 0));
        let left = kernel(&elements);
        assert_eq!(left[0].1[0].mark, Some(4));
        assert!(left[1].0 == "fqdn6-1" && left[1].1.is_empty(), "{left:?}");
    }
}
