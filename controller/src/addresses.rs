//! The addresses that source NAT needs on interfaces: added where they are missing, removed where we added them.
//!
//! What we add is recorded before it is added, so that a kill in between leaves a record too many and never an
//! address that nobody owns. Addresses that were there before are not recorded and never removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use fw_policy::IfName;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, MulticastGroup};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::problems::Problems;
use crate::state::Identity;
use crate::telemetry::chain;

/// Where the record lives.
pub trait Record: Send + Sync {
    /// What was recorded; empty when nothing was.
    fn load(&self) -> Owned;
    /// Records durably. An error text when that failed.
    fn store(&self, owned: &Owned) -> Result<(), String>;
}

/// The addresses we put on interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned(BTreeSet<(String, IpAddr)>);

/// `addresses.json`: an address is ours only on the network stack it was added to.
#[derive(Debug, Serialize, Deserialize)]
pub struct OwnedDocument {
    /// That network stack.
    pub identity: Identity,
    /// The addresses.
    pub owned: Owned,
}

/// What an interface may need of us.
pub type Wanted = BTreeMap<IfName, BTreeSet<IpAddr>>;

/// What the machine has: addresses by name of the interface, with the interface's index.
type Present = BTreeMap<String, (u32, BTreeSet<IpAddr>)>;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    add: Vec<(u32, String, IpAddr)>,
    remove: Vec<(u32, String, IpAddr)>,
    /// Records of addresses that are not there any more.
    forget: Vec<(String, IpAddr)>,
    /// Interfaces that are not there.
    missing: BTreeSet<String>,
}

/// Compares what is wanted with what is there and what is ours. Pure.
fn steps(wanted: &Wanted, present: &Present, owned: &Owned) -> Steps {
    let mut steps = Steps::default();
    let is_wanted = |name: &str, address: &IpAddr| {
        wanted.iter().any(|(device, addresses)| device.as_str() == name && addresses.contains(address))
    };
    for (device, addresses) in wanted {
        let name = device.as_str().to_owned();
        match present.get(&name) {
            Some((index, have)) => {
                let lacking = addresses.iter().filter(|address| !have.contains(address));
                steps.add.extend(lacking.map(|address| (*index, name.clone(), *address)));
            }
            None if !addresses.is_empty() => {
                steps.missing.insert(name);
            }
            None => {}
        }
    }
    for (name, address) in owned.0.iter().filter(|(name, address)| !is_wanted(name, address)) {
        match present.get(name) {
            Some((index, have)) if have.contains(address) => {
                steps.remove.push((*index, name.clone(), *address))
            }
            Some(_) | None => steps.forget.push((name.clone(), *address)),
        }
    }
    steps
}

/// Follows what is wanted and the machine's links and addresses until `wanted` has no sender.
pub async fn keep(mut wanted: watch::Receiver<Option<Wanted>>, record: Box<dyn Record>, problems: Problems) {
    let mut owned = record.load();
    loop {
        match follow(&mut wanted, record.as_ref(), &mut owned, &problems).await {
            Ok(()) => return,
            Err(error) => {
                warn!("{}", chain(&error));
                problems.set("addresses", vec![chain(&error)]);
                sleep(PAUSE).await;
            }
        }
    }
}

/// Between two attempts, and between two looks while an interface is missing or an address was refused.
const PAUSE: Duration = Duration::from_secs(5);
/// A burst of notifications is over when none came for this long.
const QUIET: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("no rtnetlink socket for the addresses of source NAT")]
    Open(#[source] std::io::Error),
    #[error("the addresses of this machine cannot be read")]
    Read(#[source] rtnetlink::Error),
    #[error("rtnetlink notifications ended")]
    Ended,
}

async fn follow(
    wanted: &mut watch::Receiver<Option<Wanted>>,
    record: &dyn Record,
    owned: &mut Owned,
    problems: &Problems,
) -> Result<(), KeepError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut notices) =
        rtnetlink::new_multicast_connection(&groups).map_err(KeepError::Open)?;
    let connection = tokio::spawn(connection);
    let _ends_with_us = AbortOnDrop(connection.abort_handle());
    loop {
        let target = wanted.borrow_and_update().clone();
        let mut again = None;
        if let Some(target) = target.filter(|target| !target.is_empty() || !owned.0.is_empty()) {
            let present = present(&handle).await.map_err(KeepError::Read)?;
            let failed = apply(&handle, &steps(&target, &present, owned), record, owned).await;
            again = (!failed.is_empty()).then_some(PAUSE);
            problems.set("addresses", failed);
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
            notice = notices.next() => {
                if notice.is_none() {
                    return Err(KeepError::Ended);
                }
                while let Ok(Some(_)) = timeout(QUIET, notices.next()).await {}
            }
            () = wait(again) => {}
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn wait(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

async fn present(handle: &Handle) -> Result<Present, rtnetlink::Error> {
    let mut present = Present::new();
    let mut names = BTreeMap::new();
    let links: Vec<_> = handle.link().get().execute().try_collect().await?;
    for link in links {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        if let Some(name) = name {
            names.insert(link.header.index, name.clone());
            present.insert(name, (link.header.index, BTreeSet::new()));
        }
    }
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    for message in &addresses {
        let entry = names.get(&message.header.index).and_then(|name| present.get_mut(name));
        if let (Some((_, have)), Some(address)) = (entry, address_of(message)) {
            have.insert(address);
        }
    }
    Ok(present)
}

/// IFA_LOCAL where there is one (point-to-point links have the peer in IFA_ADDRESS), else IFA_ADDRESS.
pub(crate) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// Takes the steps; what failed comes back as lines for the status.
async fn apply(handle: &Handle, steps: &Steps, record: &dyn Record, owned: &mut Owned) -> Vec<String> {
    let mut failed: Vec<String> = steps
        .missing
        .iter()
        .map(|name| format!("interface {name} does not exist, so it has no source NAT addresses"))
        .collect();
    let mut next = owned.clone();
    next.0.extend(steps.add.iter().map(|(_, name, address)| (name.clone(), *address)));
    next.0.retain(|entry| !steps.forget.contains(entry));
    if next != *owned {
        if let Err(problem) = record.store(&next) {
            failed.push(format!("source NAT addresses are not put on interfaces: {problem}"));
            return failed;
        }
        *owned = next;
    }
    for (index, name, address) in &steps.add {
        match add(handle, *index, *address).await {
            Ok(()) => info!(interface = name, %address, "added the source NAT address"),
            Err(error) => {
                failed.push(format!("address {address} cannot be put on {name}: {}", chain(&error)))
            }
        }
    }
    let mut gone = BTreeSet::new();
    for (index, name, address) in &steps.remove {
        match remove(handle, *index, *address).await {
            Ok(()) => {
                info!(interface = name, %address, "removed the source NAT address");
                gone.insert((name.clone(), *address));
            }
            Err(error) => {
                failed.push(format!("address {address} cannot be taken off {name}: {}", chain(&error)))
            }
        }
    }
    if !gone.is_empty() {
        owned.0.retain(|entry| !gone.contains(entry));
        if let Err(problem) = record.store(owned) {
            failed.push(problem);
        }
    }
    failed
}

async fn add(handle: &Handle, index: u32, address: IpAddr) -> Result<(), rtnetlink::Error> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(index, address, length);
    if address.is_ipv6() {
        // Duplicate address detection would keep the address from answering for a second, and two firewalls that
        // share an address would both lose it.
        let message = request.message_mut();
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await
}

async fn remove(handle: &Handle, index: u32, address: IpAddr) -> Result<(), rtnetlink::Error> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let messages = handle.address().get().set_link_index_filter(index).execute();
    let messages: Vec<AddressMessage> = messages.try_collect().await?;
    for message in messages {
        if address_of(&message) == Some(address) && message.header.prefix_len == length {
            handle.address().del(message).execute().await?;
        }
    }
    Ok(())
}

/// Removes every recorded address, for a controller that does not run.
pub async fn remove_all(record: &dyn Record) -> Result<Vec<String>, rtnetlink::Error> {
    let mut owned = record.load();
    if owned.0.is_empty() {
        return Ok(Vec::new());
    }
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| rtnetlink::Error::NamespaceError(error.to_string()))?;
    tokio::spawn(connection);
    let present = present(&handle).await?;
    Ok(apply(&handle, &steps(&Wanted::new(), &present, &owned), record, &mut owned).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn wanted(addresses: &[&str]) -> Wanted {
        [("vlan179".parse().unwrap(), addresses.iter().map(|text| address(text)).collect())].into()
    }

    fn present(addresses: &[&str]) -> Present {
        [("vlan179".to_owned(), (7, addresses.iter().map(|text| address(text)).collect()))].into()
    }

    fn owned(addresses: &[&str]) -> Owned {
        Owned(addresses.iter().map(|text| ("vlan179".to_owned(), address(text))).collect())
    }

    #[test]
    fn missing_addresses_are_added_and_only_recorded_ones_are_removed() {
        let found = steps(
            &wanted(&["203.0.113.5", "2001:db8::5"]),
            &present(&["203.0.113.1", "203.0.113.5", "203.0.113.9"]),
            &owned(&["203.0.113.9"]),
        );
        assert_eq!(found.add, [(7, "vlan179".to_owned(), address("2001:db8::5"))]);
        assert_eq!(found.remove, [(7, "vlan179".to_owned(), address("203.0.113.9"))]);
        assert_eq!((found.forget.len(), found.missing.len()), (0, 0));
    }

    #[test]
    fn records_of_addresses_that_are_gone_are_forgotten() {
        let found = steps(&wanted(&[]), &present(&[]), &owned(&["203.0.113.9"]));
        assert_eq!(found.forget, [("vlan179".to_owned(), address("203.0.113.9"))]);
        let found = steps(&Wanted::new(), &Present::new(), &owned(&["203.0.113.9"]));
        assert_eq!(found.forget.len(), 1);
    }

    #[test]
    fn a_missing_interface_is_reported_and_its_records_wait_for_nothing() {
        let found = steps(&wanted(&["203.0.113.5"]), &Present::new(), &Owned::default());
        assert_eq!(found, Steps { missing: ["vlan179".to_owned()].into(), ..Steps::default() });
    }
}
