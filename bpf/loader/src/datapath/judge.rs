//! What the programs would do with a packet, without one.

use std::cell::Cell;

use fw_bpf_common::{
    Address, Allow, CELLS_PER_CLASS, CLASS_HOPS, Class, Config, Conntrack, NO_CLASS, Packet, Tables, Verdict,
    verdict,
};

use super::Datapath;
use crate::error::Error;
use crate::map::Map;

impl Datapath {
    /// What the programs say of a packet that belongs to no connection, by what the maps hold now. Counts nothing.
    ///
    /// # Errors
    /// Failed calls.
    pub fn verdict(&self, packet: &Packet, now_ns: u64) -> Result<Verdict, Error> {
        let allow = match packet.destination {
            Address::V4(word) => self.allow4.get(&word.to_ne_bytes())?,
            Address::V6([first, second]) => {
                let mut key = [0; 16];
                key[..8].copy_from_slice(&first.to_ne_bytes());
                key[8..].copy_from_slice(&second.to_ne_bytes());
                self.allow6.get(&key)?
            }
        };
        let tables = Maps {
            config: self.config()?,
            now_ns,
            allow,
            prefix: self.prefixes.longest(&packet.destination)?,
            classes: self.classes.map(),
            failed: Cell::new(None),
        };
        let verdict = verdict(packet, &tables, &NoConnection { can_be_asked: self.unasked.is_none() });
        tables.failed.into_inner().map_or(Ok(verdict), Err)
    }
}

/// The maps, read for one destination.
struct Maps<'a> {
    config: Config,
    now_ns: u64,
    allow: Option<Allow>,
    prefix: Option<u32>,
    classes: &'a Map<u32, Class>,
    /// The first class that could not be read.
    failed: Cell<Option<Error>>,
}

impl Tables for Maps<'_> {
    fn config(&self) -> Config {
        self.config
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn allow4(&self, _: &[u8; 4]) -> Option<&Allow> {
        self.allow.as_ref()
    }

    fn allow6(&self, _: &[u8; 16]) -> Option<&Allow> {
        self.allow.as_ref()
    }

    /// Never asked: [`Self::index_in`] reads them as it goes.
    fn class(&self, _: u32) -> Option<&Class> {
        None
    }

    fn static4(&self, _: &[u8; 4]) -> Option<u32> {
        self.prefix
    }

    fn static6(&self, _: &[u8; 16]) -> Option<u32> {
        self.prefix
    }

    fn index_in(&self, class: u32, protocol: u8, port: u16) -> Option<u32> {
        let mut slot = class;
        for _ in 0..CLASS_HOPS {
            if slot == NO_CLASS {
                return None;
            }
            let content = match self.classes.get(&slot) {
                Ok(content) => content?,
                Err(error) => {
                    self.failed.set(Some(error));
                    return None;
                }
            };
            for cell in content.cells.iter().take(CELLS_PER_CLASS) {
                if cell.protocol == 0 {
                    return None;
                }
                if cell.protocol == protocol && (cell.first..=cell.last).contains(&port) {
                    return Some(cell.index);
                }
            }
            slot = content.next;
        }
        None
    }
}

/// Conntrack's answer about a packet that opens something.
struct NoConnection {
    can_be_asked: bool,
}

impl Conntrack for NoConnection {
    fn can_be_asked(&self) -> bool {
        self.can_be_asked
    }

    fn knows(&self, _: &Packet) -> bool {
        false
    }
}
