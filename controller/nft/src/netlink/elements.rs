//! Elements that come and go outside of plans.
//!
//! The kernel applies all messages of a transaction at one moment (nf_tables_commit moves the generation), so that
//! packets and listings see an element that is deleted and put in one transaction at every time.

use std::collections::{BTreeMap, BTreeSet};

use fw_netlink::batch::{Batch, Encoded, Finish};
use fw_netlink::message::{Ack, Head, flag, subsystem};
use fw_netlink::nft::{Element, INET, Set as KernelSet, decode_elements, encode_elements, message};
use fw_netlink::socket::{Outcome, SocketError};
use fw_ruleset::ir::{Key, Set, TABLE};

use super::{COMMIT_ATTEMPTS, NetlinkKernel, next, whole};
use crate::changes::{effective, parts, place, wanted};
use crate::error::libc_errno::{EEXIST, ENFILE, ENOENT, EPERM, ERESTART};
use crate::error::{Error, Refusal};
use crate::kernel::{ElementChange, TimedElement};
use crate::set::{raise_definition, raise_timed, timed_element};

/// How a change is made. The kernel is asked first: it waits for a grace period, some 10 ms, before it answers to a
/// transaction that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Puts what is there already with another time (Linux 6.12).
    Renew,
    /// Deletes what is there and puts the new one.
    Replace,
    /// Only puts: nothing is there, or the same box.
    Create,
    /// Deletes.
    Remove,
    /// Nothing is left to do.
    Nothing,
}

/// One change on its way.
struct Task<'a> {
    /// Its place in the caller's list.
    index: usize,
    change: &'a ElementChange,
    element: Element,
    way: Way,
}

impl Way {
    fn puts(self) -> bool {
        matches!(self, Self::Renew | Self::Replace | Self::Create)
    }

    fn deletes(self) -> bool {
        matches!(self, Self::Replace | Self::Remove)
    }

    /// What is tried after a message of this way was refused; `None`: nothing else will do.
    fn after(self, deletes: bool, errno: i32) -> Option<Self> {
        match (self, deletes, errno) {
            (Self::Renew | Self::Create, false, EEXIST) => Some(Self::Replace),
            // It expired in the meantime; only kernels without DESTROY say so.
            (Self::Replace, true, ENOENT) => Some(Self::Create),
            (Self::Remove, true, ENOENT) => Some(Self::Nothing),
            _ => None,
        }
    }
}

impl NetlinkKernel {
    pub(super) fn change_elements(&mut self, changes: &[ElementChange]) -> Result<(), Error> {
        let mut tasks = Vec::with_capacity(changes.len());
        for (index, change) in effective(changes) {
            let element = lowered(change)?;
            let way = self.way(change, &element)?;
            tasks.push(Task { index, change, element, way });
        }
        self.spare_other_boxes(&mut tasks)?;
        for _ in 0..COMMIT_ATTEMPTS {
            let (batch, sources) = self.write_tasks(&tasks)?;
            if sources.is_empty() {
                return Ok(());
            }
            self.socket.send_batch(&batch)?;
            match self.socket.finish_batch(&batch).map_err(Error::Uncertain)? {
                Outcome::Done => {
                    self.known = if self.owned { self.known } else { self.known.map(next) };
                    return Ok(());
                }
                Outcome::Whole(ack) if ack.errno == ERESTART => {}
                Outcome::Whole(ack) => return Err(whole(&ack)),
                Outcome::Messages(refused) => {
                    let mut full = None;
                    for (message, ack) in refused {
                        let Some(&(task, deletes)) = sources.get(message) else { continue };
                        match self.another_way(&tasks[task], deletes, ack) {
                            Ok(way) => tasks[task].way = way,
                            // What can never be applied is told first.
                            Err(error @ Error::Full { .. }) => full = full.or(Some(error)),
                            Err(error) => return Err(error),
                        }
                    }
                    if let Some(full) = full {
                        return Err(full);
                    }
                    self.spare_other_boxes(&mut tasks)?;
                }
            }
        }
        Err(Error::Busy(COMMIT_ATTEMPTS))
    }

    fn way(&mut self, change: &ElementChange, element: &Element) -> Result<Way, Error> {
        let (set, key) = parts(change);
        let wanted = wanted(change);
        // Boxes have no time: the same one again is no change to the kernel.
        match wanted {
            None if self.features.destroy || matches!(key, Key::Box(..)) => return Ok(Way::Remove),
            Some(_) if matches!(key, Key::Box(..)) => return Ok(Way::Create),
            _ => {}
        }
        let there = self.find_element(set, element)?;
        Ok(match (wanted, there) {
            (None, Some(_)) => Way::Remove,
            (None, None) if self.find_set(set)?.is_none() => return Err(Error::Stale),
            (None, None) => Way::Nothing,
            (Some(_), None) => Way::Create,
            // The kernel gives a time only to elements that have one.
            (Some(_), Some(there)) if there.data == element.data => {
                match (
                    element.timeout_ms.is_some(),
                    there.timeout_ms.is_some() || there.expiration_ms.is_some(),
                ) {
                    (false, false) => Way::Nothing,
                    (true, true) if self.features.expiration_update => Way::Renew,
                    _ => Way::Replace,
                }
            }
            (Some(_), Some(_)) => Way::Replace,
        })
    }

    /// What the kernel holds under a key; `None` also when the set cannot have such a key.
    fn find_element(&mut self, set: &str, element: &Element) -> Result<Option<Element>, Error> {
        let head = Head {
            subsystem: subsystem::NFTABLES,
            message: message::GET_ELEMENTS,
            family: INET,
            ..Head::default()
        };
        let mut found = None;
        let asked = self.socket.ask(
            head,
            |w| encode_elements(w, TABLE, set, &[key_of(element)]),
            |answer| {
                let (_, _, elements) = decode_elements(answer.attrs())?;
                found = elements.into_iter().next();
                Ok(())
            },
        );
        match asked {
            Err(SocketError::Refused(_)) => Ok(None),
            other => Ok(other.map(|()| found)?),
        }
    }

    /// The kernel deletes the box that the first corner of the one named lies in, whatever its other corner
    /// (nft_pipapo_deactivate). So only boxes that are listed are ever deleted.
    fn spare_other_boxes(&mut self, tasks: &mut [Task<'_>]) -> Result<(), Error> {
        let mut listed: BTreeMap<&str, BTreeSet<Key>> = BTreeMap::new();
        for task in tasks {
            let (set, key) = parts(task.change);
            if !matches!(key, Key::Box(..)) || !matches!(task.way, Way::Remove | Way::Replace) {
                continue;
            }
            let there = match listed.entry(set) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let keys = self.list_elements(set)?.into_iter().map(|element| element.key);
                    entry.insert(keys.collect())
                }
            };
            match (there.contains(key), task.way) {
                (true, _) => {}
                (false, Way::Remove) => task.way = Way::Nothing,
                (false, _) => return Err(refused(task, EEXIST, None)),
            }
        }
        Ok(())
    }

    /// One message per deletion and per element, so that one answer names all that are refused; and which task each
    /// belongs to, and whether it deletes.
    fn write_tasks(&mut self, tasks: &[Task<'_>]) -> Result<(Encoded, Vec<(usize, bool)>), Error> {
        // Where others can write to our table too, `known` must stay the last generation that is understood.
        let generation = if self.owned { None } else { Some(self.follow()?) };
        let sequence = self.socket.reserve(2 * tasks.len() + 2);
        let mut batch = Batch::new(subsystem::NFTABLES, generation, sequence);
        let mut sources = Vec::with_capacity(tasks.len());
        let delete = if self.features.destroy { message::DESTROY_ELEMENTS } else { message::DEL_ELEMENTS };
        for (index, task) in tasks.iter().enumerate() {
            let (set, _) = parts(task.change);
            if task.way.deletes() {
                let bare = key_of(&task.element);
                batch.push(delete, 0, INET, |w| encode_elements(w, TABLE, set, &[bare]));
                sources.push((index, true));
            }
            if task.way.puts() {
                let one = std::slice::from_ref(&task.element);
                batch.push(message::NEW_ELEMENTS, flag::CREATE, INET, |w| {
                    encode_elements(w, TABLE, set, one);
                });
                sources.push((index, false));
            }
        }
        Ok((batch.finish(Finish::Commit)?, sources))
    }

    fn another_way(&mut self, task: &Task<'_>, deletes: bool, ack: Ack) -> Result<Way, Error> {
        let (set, _) = parts(task.change);
        if let Some(next) = task.way.after(deletes, ack.errno) {
            // DESTROY finds nothing wrong with an absent element; it is the set that is not there.
            let absent = ack.errno == ENOENT && (self.features.destroy || self.find_set(set)?.is_none());
            return if absent { Err(Error::Stale) } else { Ok(next) };
        }
        Err(match ack.errno {
            ENOENT => Error::Stale,
            ENFILE => Error::Full { set: set.to_owned() },
            EPERM => self.taken(),
            errno => refused(task, errno, ack.text),
        })
    }

    /// The definition of a set of our table; `None` when there is none.
    fn find_set(&mut self, name: &str) -> Result<Option<KernelSet>, Error> {
        let head = Head {
            subsystem: subsystem::NFTABLES,
            message: message::GET_SET,
            family: INET,
            ..Head::default()
        };
        let mut found = None;
        let asked = self.socket.request(
            head,
            |w| KernelSet::name(w, TABLE, name),
            |answer| {
                found = Some(KernelSet::decode(answer.attrs())?);
                Ok(())
            },
        );
        match asked {
            Err(SocketError::Refused(ack)) if ack.errno == ENOENT => Ok(None),
            other => Ok(other.map(|()| found)?),
        }
    }

    pub(super) fn list_elements(&mut self, name: &str) -> Result<Vec<TimedElement>, Error> {
        let set = self.find_set(name)?.and_then(|definition| raise_definition(&definition));
        let set: Set = set.filter(crate::set::learned).ok_or(Error::Stale)?;
        let elements = self.steady(|kernel| {
            if kernel.owned {
                return kernel.read_timed_elements(name);
            }
            kernel.between_commits(|kernel| kernel.read_timed_elements(name))
        })?;
        let mut list: Vec<_> = elements.iter().filter_map(|element| raise_timed(&set, element)).collect();
        list.sort();
        Ok(list)
    }
}

fn lowered(change: &ElementChange) -> Result<Element, Error> {
    let element = match change {
        ElementChange::Put(_, element) => timed_element(element),
        ElementChange::Remove(_, key) => {
            timed_element(&TimedElement { key: key.clone(), mark: None, expires_in_ms: None })
        }
    };
    element.map_err(|source| Error::Lower { place: place(change), source })
}

/// Only what names an element.
fn key_of(element: &Element) -> Element {
    Element { key: element.key.clone(), key_end: element.key_end.clone(), ..Element::default() }
}

fn refused(task: &Task<'_>, errno: i32, text: Option<String>) -> Error {
    Error::Refused(Box::new(Refusal {
        op: task.index,
        place: place(task.change),
        origin: None,
        detail: None,
        errno,
        text,
        others: 0,
    }))
}
