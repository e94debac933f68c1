//! Elements that come and go outside of plans.
//!
//! The kernel applies all messages of a transaction at one moment (nf_tables_commit moves the generation), so that
//! packets and listings see an element that is deleted and put in one transaction at every time.

use fw_netlink::batch::{Batch, Encoded, Finish};
use fw_netlink::message::{Ack, Head, flag, subsystem};
use fw_netlink::nft::{
    Element, INET, Set as KernelSet, decode_elements, elements_request, encode_elements, message,
};
use fw_netlink::socket::{Outcome, SocketError};
use fw_ruleset::ir::{Key, Set, TABLE};

use super::{COMMIT_ATTEMPTS, NetlinkKernel, next, whole};
use crate::error::libc_errno::{EEXIST, ENFILE, ENOENT, EPERM, ERESTART};
use crate::error::{Error, Refusal};
use crate::kernel::{ElementChange, TimedElement};
use crate::probe::Features;
use crate::set::{describe_key, raise_definition, raise_timed, timed_element};

/// How a change is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One message that makes the element or gives it a new time (Linux 6.12). EEXIST when it has another mark.
    Renew,
    /// Deletes what is there and puts the new one.
    Replace,
    /// Only puts: nothing is there.
    Create,
    /// Deletes.
    Remove,
    /// Nothing is left to do.
    Nothing,
}

impl Way {
    fn first(change: &ElementChange, features: &Features) -> Self {
        match change {
            ElementChange::Remove(..) => Self::Remove,
            // Zero means "for ever" to the kernel.
            ElementChange::Put(_, TimedElement { expires_in_ms: Some(0), .. }) => Self::Remove,
            // Boxes have no time; the same one again is no change to the kernel.
            ElementChange::Put(_, TimedElement { key: Key::Box(..), .. }) => Self::Create,
            ElementChange::Put(_, TimedElement { expires_in_ms: Some(_), .. })
                if features.expiration_update =>
            {
                Self::Renew
            }
            ElementChange::Put(..) => Self::Replace,
        }
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

/// Which change a message belongs to, and whether it deletes.
type Source = (usize, bool);

fn parts(change: &ElementChange) -> (&str, &Key) {
    match change {
        ElementChange::Put(set, element) => (set, &element.key),
        ElementChange::Remove(set, key) => (set, key),
    }
}

fn lowered(change: &ElementChange) -> Result<Element, Error> {
    let key_only = |key: &Key| TimedElement { key: key.clone(), mark: None, expires_in_ms: None };
    let element = match change {
        ElementChange::Put(_, element) => timed_element(element),
        ElementChange::Remove(_, key) => timed_element(&key_only(key)),
    };
    element.map_err(|source| {
        let (set, key) = parts(change);
        Error::Lower { place: place(set, key), source }
    })
}

fn place(set: &str, key: &Key) -> String {
    format!("element {} of set {set}", describe_key(key))
}

impl NetlinkKernel {
    pub(super) fn change_elements(&mut self, changes: &[ElementChange]) -> Result<(), Error> {
        let elements = changes.iter().map(lowered).collect::<Result<Vec<_>, _>>()?;
        let mut ways: Vec<Way> = changes.iter().map(|change| Way::first(change, &self.features)).collect();
        for _ in 0..COMMIT_ATTEMPTS {
            let (batch, sources) = self.write_changes(changes, &elements, &ways)?;
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
                    for (message, ack) in refused {
                        let Some(&(index, deletes)) = sources.get(message) else { continue };
                        ways[index] = self.another_way(&changes[index], index, ways[index], deletes, ack)?;
                    }
                }
            }
        }
        Err(Error::Busy(COMMIT_ATTEMPTS))
    }

    /// One message per deletion and per element, so that one answer names all that are refused.
    fn write_changes(
        &mut self,
        changes: &[ElementChange],
        elements: &[Element],
        ways: &[Way],
    ) -> Result<(Encoded, Vec<Source>), Error> {
        // Where others can write to our table too, `known` must stay the last generation that is understood.
        let generation = if self.owned { None } else { Some(self.follow()?) };
        let sequence = self.socket.reserve(2 * changes.len() + 2);
        let mut batch = Batch::new(subsystem::NFTABLES, generation, sequence);
        let mut sources = Vec::with_capacity(changes.len());
        let delete = if self.features.destroy { message::DESTROY_ELEMENTS } else { message::DEL_ELEMENTS };
        for (index, ((change, element), way)) in changes.iter().zip(elements).zip(ways).enumerate() {
            let (set, _) = parts(change);
            if matches!(way, Way::Replace | Way::Remove) {
                let (key, key_end) = (element.key.clone(), element.key_end.clone());
                let bare = Element { key, key_end, ..Element::default() };
                batch.push(delete, 0, INET, |w| encode_elements(w, TABLE, set, &[bare]));
                sources.push((index, true));
            }
            if matches!(way, Way::Replace | Way::Renew | Way::Create) {
                let one = std::slice::from_ref(element);
                batch
                    .push(message::NEW_ELEMENTS, flag::CREATE, INET, |w| encode_elements(w, TABLE, set, one));
                sources.push((index, false));
            }
        }
        Ok((batch.finish(Finish::Commit)?, sources))
    }

    fn another_way(
        &mut self,
        change: &ElementChange,
        index: usize,
        way: Way,
        deletes: bool,
        ack: Ack,
    ) -> Result<Way, Error> {
        let (set, key) = parts(change);
        if let Some(next) = way.after(deletes, ack.errno) {
            // DESTROY finds nothing wrong with an absent element; it is the set that is not there.
            let absent = ack.errno == ENOENT && (self.features.destroy || self.find_set(set)?.is_none());
            return if absent { Err(Error::Stale) } else { Ok(next) };
        }
        Err(match ack.errno {
            ENOENT => Error::Stale,
            ENFILE => Error::Full { set: set.to_owned() },
            EPERM => self.taken(),
            errno => Error::Refused(Box::new(Refusal {
                op: index,
                place: place(set, key),
                origin: None,
                detail: None,
                errno,
                text: ack.text,
                others: 0,
            })),
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
        let mut list = self.steady(|kernel| {
            let mut list = Vec::new();
            kernel.dump(
                message::GET_ELEMENTS,
                |w| elements_request(w, TABLE, name),
                |answer| {
                    let (_, _, elements) = decode_elements(answer.attrs())?;
                    list.extend(elements.iter().filter_map(|element| raise_timed(&set, element)));
                    Ok(())
                },
            )?;
            Ok(list)
        })?;
        list.sort();
        Ok(list)
    }
}
