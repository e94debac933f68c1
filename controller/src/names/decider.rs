//! What the proxy asks us: whether a question may be asked, and when an answer may leave.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;

use fw_dns::metrics::Transport;
use fw_dns::{Ask, Decision, OriginalDestination, Question, Release};
use fw_names::answer::Answer;
use fw_names::name::Name;
use fw_netlink::ctnetlink::Conntrack;
use fw_policy::{OtherNames, Protocol};
use tracing::debug;

use super::site::Site;
use crate::telemetry::chain;

/// RCODEs.
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;

/// Questions of the background refresh that are remembered until their answers come.
const MAX_REFRESHING: usize = 4096;

/// The decision behind every listener.
pub(super) struct Decider {
    site: Rc<Site>,
    /// What only the background refresh asks now: its answers do not make a name used.
    refreshing: RefCell<BTreeSet<(Name, u16)>>,
}

impl Decider {
    pub(super) fn new(site: Rc<Site>) -> Self {
        Self { site, refreshing: RefCell::default() }
    }

    fn note_who_asks(&self, question: &Question<'_>, name: &Name) {
        let mut refreshing = self.refreshing.borrow_mut();
        let asked = (name.clone(), question.kind);
        if question.client.is_some() {
            refreshing.remove(&asked);
        } else {
            // Those whose answers never came.
            if refreshing.len() >= MAX_REFRESHING {
                refreshing.clear();
            }
            refreshing.insert(asked);
        }
    }

    fn is_refresh(&self, answer: &Answer) -> bool {
        let question = answer.chain.first().map(|hop| (hop.name.clone(), answer.kind));
        question.is_some_and(|asked| self.refreshing.borrow_mut().remove(&asked))
    }
}

impl Decision for Decider {
    fn ask(&self, question: &Question<'_>) -> Ask {
        let name = Name::from_wire(question.name);
        if let Ok(name) = &name {
            self.note_who_asks(question, name);
        }
        let rcode = match self.site.other_names.get() {
            OtherNames::Answer => return Ask::Forward,
            OtherNames::Refused => REFUSED,
            OtherNames::NxDomain => NXDOMAIN,
        };
        let allowed = name.is_ok_and(|name| self.site.learner.borrow().allows(&name));
        if allowed { Ask::Forward } else { Ask::Refuse(rcode) }
    }

    async fn release(&self, message: &[u8], age: u32) -> Release {
        // What cannot be read would open nothing, and the client would find closed what it was told.
        let Some(answer) = self.site.read(message, age) else { return Release::Hold };
        let lesson = self.site.learn(&answer, !self.is_refresh(&answer));
        if let Some(full) = lesson.hold {
            debug!("an answer is kept back: the bound of {full:?} is reached");
            return Release::Hold;
        }
        if lesson.opens
            && let Err(error) = self.site.push().await
        {
            debug!("an answer is kept back: {}", chain(&error));
            return Release::Hold;
        }
        Release::Send { ttl_max: lesson.ttl_max }
    }
}

/// Asks conntrack which resolver a client asked before it was redirected.
pub(super) struct Redirected(RefCell<Option<Conntrack>>);

impl Redirected {
    pub(super) fn new() -> Self {
        Self(RefCell::new(None))
    }
}

impl OriginalDestination for Redirected {
    fn of(&self, transport: Transport, client: SocketAddr, local: SocketAddr) -> Option<SocketAddr> {
        let protocol = match transport {
            Transport::Udp => Protocol::Udp,
            Transport::Tcp => Protocol::Tcp,
            Transport::Tls | Transport::Https | Transport::Lookup => return None,
        };
        let mut socket = self.0.borrow_mut();
        if socket.is_none() {
            *socket = Conntrack::open().inspect_err(|error| debug!("{}", chain(error))).ok();
        }
        let found = socket.as_mut()?.original_destination(protocol.number(), local, client);
        match found {
            // The same: nobody redirected it, it asked the proxy itself.
            Ok(found) => found.filter(|original| *original != local),
            Err(error) => {
                debug!("conntrack does not say whom {client} asked: {}", chain(&error));
                *socket = None;
                None
            }
        }
    }
}
