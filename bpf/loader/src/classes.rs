//! Classes in the slots of `CLASSES`; those with many cells go on in further slots.

use std::collections::{BTreeMap, VecDeque};

use fw_bpf_common::{CELLS_PER_CLASS, CLASS_HOPS, Cell, Class, NO_CLASS};

use crate::error::Error;
use crate::map::Map;
use crate::{CELLS_MAX, CLASS_SLOTS, FIRST_CHAIN_SLOT};

/// The map, and which of the further slots are free.
#[derive(Debug)]
pub(crate) struct Classes {
    map: Map<u32, Class>,
    /// Further slots of each class that has some.
    chains: BTreeMap<u32, Vec<u32>>,
    /// Those free longest come first: a program may still be reading a slot that was just given back.
    free: VecDeque<u32>,
}

impl Classes {
    /// Reads what is there.
    pub(crate) fn adopt(map: Map<u32, Class>) -> Result<(Self, BTreeMap<u32, Vec<Cell>>), Error> {
        let slots = filled(&map)?;
        let mut chains = BTreeMap::new();
        let mut content = BTreeMap::new();
        for (&id, head) in slots.range(..FIRST_CHAIN_SLOT) {
            let (further, cells) = follow(head, &slots);
            if !further.is_empty() {
                chains.insert(id, further);
            }
            content.insert(id, cells);
        }
        let used: std::collections::BTreeSet<u32> = chains.values().flatten().copied().collect();
        let free =
            (FIRST_CHAIN_SLOT..map.bound().min(CLASS_SLOTS)).filter(|slot| !used.contains(slot)).collect();
        Ok((Self { map, chains, free }, content))
    }

    /// What all classes hold, read from the kernel.
    pub(crate) fn content(&self) -> Result<BTreeMap<u32, Vec<Cell>>, Error> {
        let slots = filled(&self.map)?;
        Ok(slots.range(..FIRST_CHAIN_SLOT).map(|(&id, head)| (id, follow(head, &slots).1)).collect())
    }

    pub(crate) fn map(&self) -> &Map<u32, Class> {
        &self.map
    }

    /// Slots that hold cells.
    pub(crate) fn used(&self) -> Result<usize, Error> {
        Ok(filled(&self.map)?.len())
    }

    /// Writes a class. Its first slot comes last, so that a program sees the old class or the new one.
    pub(crate) fn put(&mut self, id: u32, cells: &[Cell]) -> Result<(), Error> {
        let further = cells.len().div_ceil(CELLS_PER_CLASS).saturating_sub(1);
        if cells.len() > CELLS_MAX {
            return Err(Error::TooManyCells(cells.len()));
        }
        if further > self.free.len() {
            return Err(Error::Full { map: self.map.name(), bound: self.map.bound() });
        }
        let taken: Vec<u32> = self.free.drain(..further).collect();
        for (slot, class) in arrange(id, &taken, cells).into_iter().rev() {
            self.map.put(&slot, &class)?;
        }
        let old = if taken.is_empty() { self.chains.remove(&id) } else { self.chains.insert(id, taken) };
        self.give_back(old.unwrap_or_default())
    }

    /// Empties a class that no address and no prefix names.
    pub(crate) fn drop(&mut self, id: u32) -> Result<(), Error> {
        self.map.put(&id, &Class::default())?;
        let old = self.chains.remove(&id).unwrap_or_default();
        self.give_back(old)
    }

    fn give_back(&mut self, slots: Vec<u32>) -> Result<(), Error> {
        for slot in slots {
            self.map.put(&slot, &Class::default())?;
            self.free.push_back(slot);
        }
        Ok(())
    }
}

/// The slots that hold cells.
fn filled(map: &Map<u32, Class>) -> Result<BTreeMap<u32, Class>, Error> {
    Ok(map.dump()?.into_iter().filter(|(_, class)| class.cells[0].protocol != 0).collect())
}

/// The slots of a class, the first one first.
fn arrange(id: u32, further: &[u32], cells: &[Cell]) -> Vec<(u32, Class)> {
    let mut chunks = cells.chunks(CELLS_PER_CLASS);
    let mut slots = vec![id];
    slots.extend(further);
    let next = further.iter().copied().chain([NO_CLASS]);
    let arranged = slots.into_iter().zip(next).map(|(slot, next)| {
        let mut class = Class { next, ..Class::default() };
        for (to, from) in class.cells.iter_mut().zip(chunks.next().unwrap_or_default()) {
            *to = *from;
        }
        (slot, class)
    });
    arranged.collect()
}

/// Further slots and all cells of a class.
fn follow(head: &Class, slots: &BTreeMap<u32, Class>) -> (Vec<u32>, Vec<Cell>) {
    let mut further = Vec::new();
    let mut cells: Vec<Cell> = Vec::new();
    let mut class = head;
    loop {
        let filled = class.cells.iter().take_while(|cell| cell.protocol != 0);
        cells.extend(filled);
        let Some(next) = slots.get(&class.next) else { break };
        if class.next < FIRST_CHAIN_SLOT || further.len() + 1 >= CLASS_HOPS {
            break;
        }
        further.push(class.next);
        class = next;
    }
    (further, cells)
}

#[cfg(test)]
mod tests {
    use fw_bpf_common::TCP;

    use super::*;

    fn cells(count: u16) -> Vec<Cell> {
        (0..count)
            .map(|port| Cell { protocol: TCP, first: port * 2, last: port * 2, index: 1, ..Cell::default() })
            .collect()
    }

    #[test]
    fn a_class_comes_back_from_its_slots_whatever_its_length() {
        for count in [1, 7, 8, 9, 16, 17, 127, 128] {
            let cells = cells(count);
            let further: Vec<u32> = (40_000..).take(cells.len().div_ceil(CELLS_PER_CLASS) - 1).collect();
            let slots: BTreeMap<u32, Class> = arrange(5, &further, &cells).into_iter().collect();
            assert_eq!(follow(&slots[&5], &slots), (further, cells));
        }
    }

    #[test]
    fn a_chain_that_leads_back_into_itself_ends() {
        let class = Class { cells: [cells(1)[0]; 8], next: 40_000 };
        let slots = BTreeMap::from([(5, class), (40_000, class)]);
        assert_eq!(follow(&class, &slots).0.len(), CLASS_HOPS - 1);
    }
}
