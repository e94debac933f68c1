//! Which field of the packet lies in which register.

use super::fields::Source;
use crate::nft::data::Register;

/// Bytes of all data registers (NFT_REG_SIZE times four).
const FILE: usize = 64;

/// What was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Byte of the registers it begins at.
    at: usize,
    pub(super) len: usize,
    pub(super) source: Source,
    pub(super) mask: Option<Vec<u8>>,
    /// Loads are numbered, so that those of an earlier comparison can be told.
    number: u32,
}

/// The data registers.
#[derive(Debug, Default)]
pub(super) struct Registers {
    loads: Vec<Load>,
    next: u32,
    /// Loads below this number were compared already.
    compared: u32,
}

/// Where a register begins; `None` for the verdict register and numbers that are none.
fn place(register: Register) -> Option<usize> {
    let register = usize::try_from(register).ok()?;
    match register {
        1..=4 => Some((register - 1) * 16),
        8..=23 => Some((register - 8) * 4),
        _ => None,
    }
}

impl Registers {
    /// A field is loaded over whatever lay there.
    pub(super) fn load(&mut self, register: Register, len: usize, source: Source) {
        let Some(at) = place(register) else { return };
        self.put(Load { at, len, source, mask: None, number: 0 });
    }

    fn put(&mut self, load: Load) {
        let end = load.at.saturating_add(load.len.next_multiple_of(4)).min(FILE);
        self.loads.retain(|old| old.at >= end || old.at + old.len <= load.at);
        self.next = self.next.saturating_add(1);
        self.loads.push(Load { number: self.next, ..load });
    }

    /// `dreg = (sreg & mask) ^ xor`
    pub(super) fn mask(&mut self, sreg: Register, dreg: Register, mask: &[u8], xor: &[u8]) {
        let load = place(sreg).and_then(|at| self.loads.iter().find(|load| load.at == at).cloned());
        let Some((load, at)) = load.zip(place(dreg)) else { return self.forget(dreg) };
        if load.mask.is_some() || load.len != mask.len() || xor.iter().any(|byte| *byte != 0) {
            return self.forget(dreg);
        }
        self.put(Load { at, mask: Some(mask.to_vec()), ..load });
    }

    /// A register, and those behind it that one value can reach (16 bytes), now hold what is not followed.
    pub(super) fn forget(&mut self, register: Register) {
        let Some(at) = place(register) else { return };
        self.loads.retain(|load| load.at + load.len <= at || load.at >= at + 16);
    }

    /// All registers may have changed.
    pub(super) fn forget_all(&mut self) {
        self.loads.clear();
    }

    /// What a comparison finds in a register.
    pub(super) fn take(&mut self, register: Register) -> Option<Load> {
        self.compared = self.next;
        let at = place(register)?;
        self.loads.iter().find(|load| load.at == at).cloned()
    }

    /// What a lookup finds from a register on: the fields of a concatenation lie one after the other, each padded to 4
    /// bytes. Those that an earlier comparison left there are none of them.
    pub(super) fn take_all(&mut self, register: Register) -> Vec<Load> {
        let fresh = self.compared;
        let Some(first) = self.take(register) else { return Vec::new() };
        let mut found = vec![first];
        while let Some(last) = found.last().filter(|last| last.number > fresh) {
            let end = last.at + last.len.next_multiple_of(4);
            let next = self.loads.iter().find(|load| load.at == end && load.number > last.number);
            let Some(next) = next else { break };
            found.push(next.clone());
        }
        found
    }
}
