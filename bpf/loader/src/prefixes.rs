//! The prefix table of the bouncer: what static rules may accept, as a superset.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fw_bpf_common::{ALL_PORTS_CLASS, Address, Cell, TCP, UDP};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::classes::Classes;
use crate::error::Error;
use crate::map::Map;
use crate::{CELLS_MAX, FIRST_CHAIN_SLOT, FIRST_PREFIX_CLASS};

/// Lengths of whole addresses.
const FULL4: u32 = 32;
const FULL6: u32 = 128;

/// Key of a trie: the prefix length in the machine's order, then the address.
type Key4 = [u8; 8];

/// The tries, and which class ids their values use.
#[derive(Debug)]
pub(crate) struct Prefixes {
    trie4: Map<[u8; 8], u32>,
    trie6: Map<Trie6, u32>,
    present: BTreeMap<IpNet, u32>,
    classes: BTreeMap<Vec<Cell>, u32>,
    /// Those free longest come first, as in [`Classes`].
    free: VecDeque<u32>,
    widened: u64,
}

/// Arrays of 20 have no `Default`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Trie6 {
    length: [u8; 4],
    address: [u8; 16],
}

// SAFETY: bytes.
unsafe impl crate::sys::Plain for Trie6 {}

impl Prefixes {
    /// Reads what is there; `content` is what all classes hold.
    pub(crate) fn adopt(
        trie4: Map<[u8; 8], u32>,
        trie6: Map<Trie6, u32>,
        content: &BTreeMap<u32, Vec<Cell>>,
    ) -> Result<Self, Error> {
        let mut present = BTreeMap::new();
        for (key, class) in trie4.walk()? {
            present.extend(prefix4(key).map(|prefix| (IpNet::from(prefix), class)));
        }
        for (key, class) in trie6.walk()? {
            present.extend(prefix6(key).map(|prefix| (IpNet::from(prefix), class)));
        }
        let range = FIRST_PREFIX_CLASS..FIRST_CHAIN_SLOT;
        let classes: BTreeMap<_, _> =
            content.range(range.clone()).map(|(&id, cells)| (cells.clone(), id)).collect();
        let used: BTreeSet<u32> = content.range(range.clone()).map(|(&id, _)| id).collect();
        let free = range.filter(|id| !used.contains(id)).collect();
        Ok(Self { trie4, trie6, present, classes, free, widened: 0 })
    }

    pub(crate) fn maps(&self) -> (&Map<[u8; 8], u32>, &Map<Trie6, u32>) {
        (&self.trie4, &self.trie6)
    }

    /// Class of the longest prefix that holds an address, read from the kernel.
    pub(crate) fn longest(&self, address: &Address) -> Result<Option<u32>, Error> {
        match *address {
            Address::V4(word) => {
                let mut key = [0; 8];
                key[..4].copy_from_slice(&FULL4.to_ne_bytes());
                key[4..].copy_from_slice(&word.to_ne_bytes());
                self.trie4.get(&key)
            }
            Address::V6([first, second]) => {
                let mut key = Trie6 { length: FULL6.to_ne_bytes(), ..Trie6::default() };
                key.address[..8].copy_from_slice(&first.to_ne_bytes());
                key.address[8..].copy_from_slice(&second.to_ne_bytes());
                self.trie6.get(&key)
            }
        }
    }

    /// Prefixes of IPv4 and of IPv6.
    pub(crate) fn len(&self) -> (usize, usize) {
        let four = self.present.keys().filter(|prefix| prefix.addr().is_ipv4()).count();
        (four, self.present.len() - four)
    }

    /// Prefixes whose ports were widened to all since the start because a bound was reached.
    pub(crate) fn widened(&self) -> u64 {
        self.widened
    }

    /// Makes the tries hold just this.
    pub(crate) fn set(
        &mut self,
        wanted: &BTreeMap<IpNet, Vec<Cell>>,
        classes: &mut Classes,
    ) -> Result<(), Error> {
        let (table, widened) = complete(wanted);
        self.widened += widened;
        let mut ids = BTreeMap::new();
        for (prefix, cells) in table {
            let id = self.class(cells, classes)?;
            ids.insert(prefix, id);
        }
        for (&prefix, &id) in &ids {
            if self.present.get(&prefix) != Some(&id) {
                self.write(prefix, id)?;
                self.present.insert(prefix, id);
            }
        }
        let gone: Vec<IpNet> =
            self.present.keys().filter(|prefix| !ids.contains_key(prefix)).copied().collect();
        for prefix in gone {
            self.erase(prefix)?;
            self.present.remove(&prefix);
        }
        self.sweep(classes)
    }

    /// Id of the class with these cells, made if there is none.
    fn class(&mut self, cells: Vec<Cell>, classes: &mut Classes) -> Result<u32, Error> {
        if let Some(&id) = self.classes.get(&cells) {
            return Ok(id);
        }
        let Some(id) = self.free.pop_front() else {
            self.widened += 1;
            return Ok(ALL_PORTS_CLASS);
        };
        match classes.put(id, &cells) {
            Ok(()) => {
                self.classes.insert(cells, id);
                Ok(id)
            }
            Err(Error::Full { .. }) => {
                self.free.push_front(id);
                self.widened += 1;
                Ok(ALL_PORTS_CLASS)
            }
            Err(error) => Err(error),
        }
    }

    /// Drops the classes that no prefix names.
    fn sweep(&mut self, classes: &mut Classes) -> Result<(), Error> {
        let used: BTreeSet<u32> = self.present.values().copied().collect();
        let unused: Vec<u32> = self.classes.values().copied().filter(|id| !used.contains(id)).collect();
        for &id in &unused {
            classes.drop(id)?;
            self.free.push_back(id);
        }
        self.classes.retain(|_, id| used.contains(id));
        Ok(())
    }

    fn write(&self, prefix: IpNet, class: u32) -> Result<(), Error> {
        match prefix {
            IpNet::V4(prefix) => self.trie4.put(&key4(prefix), &class),
            IpNet::V6(prefix) => self.trie6.put(&key6(prefix), &class),
        }
    }

    fn erase(&self, prefix: IpNet) -> Result<(), Error> {
        match prefix {
            IpNet::V4(prefix) => self.trie4.remove(&key4(prefix)),
            IpNet::V6(prefix) => self.trie6.remove(&key6(prefix)),
        }
    }
}

fn key4(prefix: Ipv4Net) -> Key4 {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&u32::from(prefix.prefix_len()).to_ne_bytes());
    key[4..].copy_from_slice(&prefix.network().octets());
    key
}

fn key6(prefix: Ipv6Net) -> Trie6 {
    Trie6 { length: u32::from(prefix.prefix_len()).to_ne_bytes(), address: prefix.network().octets() }
}

fn prefix4(key: Key4) -> Option<Ipv4Net> {
    let [a, b, c, d, address @ ..] = key;
    Ipv4Net::new(address.into(), u8::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?).ok()
}

fn prefix6(key: Trie6) -> Option<Ipv6Net> {
    Ipv6Net::new(key.address.into(), u8::try_from(u32::from_ne_bytes(key.length)).ok()?).ok()
}

/// What the tries must hold so that the longest prefix alone says what all prefixes say: each takes over the ports of
/// those that hold it. Says as well how many were widened to all ports for having too many.
fn complete(wanted: &BTreeMap<IpNet, Vec<Cell>>) -> (BTreeMap<IpNet, Vec<Cell>>, u64) {
    let mut table: BTreeMap<IpNet, Vec<Cell>> = BTreeMap::new();
    let mut widened = 0;
    let mut given: BTreeMap<IpNet, Vec<Cell>> = BTreeMap::new();
    for (prefix, cells) in wanted {
        given.entry(prefix.trunc()).or_default().extend(cells);
    }
    // Shorter prefixes sort before the longer ones they hold, so these are the holders of the next one.
    let mut holders: Vec<(IpNet, Vec<Cell>)> = Vec::new();
    for (prefix, mut cells) in given {
        while holders.last().is_some_and(|(holder, _)| !holder.contains(&prefix)) {
            holders.pop();
        }
        cells.extend(holders.last().iter().flat_map(|(_, cells)| cells));
        let mut united = unite(cells);
        if united.len() > CELLS_MAX {
            united = all_ports();
            widened += 1;
        }
        if !united.is_empty() {
            holders.push((prefix, united.clone()));
            table.insert(prefix, united);
        }
    }
    (table, widened)
}

/// The same ports in as few cells as possible, sorted, without indexes.
fn unite(mut cells: Vec<Cell>) -> Vec<Cell> {
    cells.retain(|cell| cell.protocol != 0 && cell.first <= cell.last);
    cells.sort_by_key(|cell| (cell.protocol, cell.first));
    let mut united: Vec<Cell> = Vec::new();
    for cell in cells {
        match united.last_mut() {
            Some(last)
                if last.protocol == cell.protocol && u32::from(cell.first) <= u32::from(last.last) + 1 =>
            {
                last.last = last.last.max(cell.last);
            }
            _ => united.push(Cell {
                protocol: cell.protocol,
                first: cell.first,
                last: cell.last,
                ..Cell::default()
            }),
        }
    }
    united
}

/// Everything: the cells of [`ALL_PORTS_CLASS`].
pub(crate) fn all_ports() -> Vec<Cell> {
    [TCP, UDP].map(|protocol| Cell { protocol, first: 0, last: u16::MAX, ..Cell::default() }).into()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn longest(table: &BTreeMap<IpNet, Vec<Cell>>, address: IpAddr) -> Option<&Vec<Cell>> {
        let holders = table.iter().filter(|(prefix, _)| prefix.contains(&address));
        holders.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, cells)| cells)
    }

    fn tables() -> impl Strategy<Value = BTreeMap<IpNet, Vec<Cell>>> {
        let cell = (prop::bool::ANY, 0..20_u16, 0..6_u16).prop_map(|(tcp, first, more)| Cell {
            protocol: if tcp { TCP } else { UDP },
            first,
            last: first + more,
            ..Cell::default()
        });
        let prefix = (prop::bool::ANY, any::<u8>(), 0..=8_u8).prop_map(|(four, byte, length)| {
            if four {
                IpNet::from(Ipv4Net::new([byte, 0, 0, 0].into(), length).unwrap())
            } else {
                IpNet::from(Ipv6Net::new((u128::from(byte) << 120).into(), length).unwrap())
            }
        });
        prop::collection::btree_map(prefix, prop::collection::vec(cell, 0..4), 0..12)
    }

    proptest! {
        #[test]
        fn the_longest_prefix_says_what_all_prefixes_of_an_address_say(
            wanted in tables(), byte: u8, four: bool, tcp: bool, port in 0..30_u16,
        ) {
            let address: IpAddr =
                if four { [byte, 1, 2, 3].into() } else { std::net::Ipv6Addr::from(u128::from(byte) << 120).into() };
            let protocol = if tcp { TCP } else { UDP };
            let holds = |cells: &Vec<Cell>| {
                cells.iter().any(|cell| cell.protocol == protocol && (cell.first..=cell.last).contains(&port))
            };
            let expected = wanted.iter().any(|(prefix, cells)| prefix.contains(&address) && holds(cells));
            let (table, widened) = complete(&wanted);
            prop_assert_eq!(longest(&table, address).is_some_and(holds), expected);
            prop_assert_eq!(widened, 0);
        }
    }

    #[test]
    fn more_ports_than_a_class_holds_become_all_ports() {
        let cells = (0..)
            .take(CELLS_MAX + 1)
            .map(|n| Cell { protocol: TCP, first: n * 2, last: n * 2, ..Cell::default() })
            .collect();
        let (table, widened) = complete(&BTreeMap::from([("10.0.0.0/8".parse().unwrap(), cells)]));
        assert_eq!(table.into_values().collect::<Vec<_>>(), [all_ports()]);
        assert_eq!(widened, 1);
    }

    #[test]
    fn keys_come_back_from_the_tries() {
        let four = "10.32.0.0/11".parse().unwrap();
        assert_eq!(prefix4(key4(four)), Some(four));
        let six = "2001:db8::/37".parse().unwrap();
        assert_eq!(prefix6(key6(six)), Some(six));
        assert_eq!(prefix4([255; 8]), None);
    }
}
