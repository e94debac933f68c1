//! The machine's interfaces and addresses, as the programs, the proxy and the learner need them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use fw_policy::IfName;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::addresses::address_of;
use crate::telemetry::chain;

/// A burst of notifications is over when none came for this long.
const QUIET: Duration = Duration::from_millis(50);
/// Between two attempts to listen.
const PAUSE: Duration = Duration::from_secs(5);

/// Links by name and the machine's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    /// Interfaces whose names a rule can hold.
    pub(super) ports: BTreeMap<IfName, Port>,
    /// Every address of the machine but those of loopback's own network.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// Its index.
    pub(super) index: u32,
    /// The VRF master it is a port of.
    pub(super) vrf: Option<IfName>,
    /// True for a VRF master.
    pub(super) is_vrf: bool,
}

/// Why they are unknown.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinksError {
    /// No socket.
    #[error("no rtnetlink socket")]
    Open(#[source] std::io::Error),
    /// The kernel refused.
    #[error("the interfaces of this machine cannot be read")]
    Read(#[source] rtnetlink::Error),
    /// The kernel tells no more.
    #[error("rtnetlink notifications ended")]
    Ended,
}

/// Sends what there is, at once and after each change, until nobody listens.
pub(super) async fn follow(links: UnboundedSender<Links>) {
    loop {
        match follow_once(&links).await {
            Ok(()) => return,
            Err(error) => warn!("changes of interfaces go unnoticed: {}", chain(&error)),
        }
        sleep(PAUSE).await;
    }
}

async fn follow_once(links: &UnboundedSender<Links>) -> Result<(), LinksError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut notices) =
        rtnetlink::new_multicast_connection(&groups).map_err(LinksError::Open)?;
    let connection = tokio::spawn(connection);
    let mut before = None;
    let result = loop {
        match read(&handle).await {
            Ok(now) if before.as_ref() == Some(&now) => {}
            Ok(now) => {
                before = Some(now.clone());
                if links.send(now).is_err() {
                    break Ok(());
                }
            }
            Err(error) => break Err(LinksError::Read(error)),
        }
        if notices.next().await.is_none() {
            break Err(LinksError::Ended);
        }
        while let Ok(Some(_)) = timeout(QUIET, notices.next()).await {}
    };
    connection.abort();
    result
}

async fn read(handle: &Handle) -> Result<Links, rtnetlink::Error> {
    let messages: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let is_loopback = |address: &IpAddr| address.is_loopback();
    Ok(Links {
        ports: ports(&messages),
        addresses: addresses.iter().filter_map(address_of).filter(|a| !is_loopback(a)).collect(),
    })
}

fn ports(messages: &[LinkMessage]) -> BTreeMap<IfName, Port> {
    let name = |message: &LinkMessage| {
        message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => name.parse::<IfName>().ok(),
            _ => None,
        })
    };
    let is_vrf = |message: &LinkMessage| {
        message.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => {
                infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vrf)))
            }
            _ => false,
        })
    };
    let vrfs: BTreeMap<u32, IfName> = messages
        .iter()
        .filter(|message| is_vrf(message))
        .filter_map(|message| Some((message.header.index, name(message)?)))
        .collect();
    let port = |message: &LinkMessage| {
        let master = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => vrfs.get(index).cloned(),
            _ => None,
        });
        let port = Port { index: message.header.index, vrf: master, is_vrf: is_vrf(message) };
        Some((name(message)?, port))
    };
    messages.iter().filter_map(port).collect()
}
