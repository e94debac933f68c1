//! What the machine says of itself: interfaces and what is routed over them, sshd's ports, TCP sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::TryStreamExt;
use fw_intake::{HostFacts, Interface};
use fw_policy::IfName;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use rtnetlink::{Handle, IpVersion};
use tracing::warn;

use crate::reconcile::{Host, Questions};
use crate::telemetry::chain;

mod proc;

/// A dump that takes longer is given up; the facts are then unknown.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Routes that are looked at; a router with full tables of the internet in both families has a million.
const MAX_ROUTES: usize = 4_000_000;

/// The machine this process runs on.
pub struct ThisMachine {
    firewall_name: Option<String>,
}

impl ThisMachine {
    /// `firewall_name`: which Firewall object is this machine's.
    pub fn new(firewall_name: Option<String>) -> Self {
        Self { firewall_name }
    }
}

impl Host for ThisMachine {
    fn facts(&mut self, questions: Questions) -> HostFacts {
        let interfaces = match dump(questions.routes) {
            Ok((links, routes)) => Some(interfaces(&links, &routes)),
            Err(error) => {
                warn!("the interfaces and routes of this machine are unknown: {}", chain(&error));
                None
            }
        };
        HostFacts {
            firewall_name: self.firewall_name.clone(),
            interfaces,
            sshd_ports: if questions.sessions { proc::sshd_ports() } else { BTreeSet::new() },
            tcp_sessions: if questions.sessions { proc::tcp_sessions() } else { BTreeSet::new() },
        }
    }
}

/// Why the kernel's tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// No socket or no runtime for it.
    #[error("no rtnetlink socket")]
    Open(#[source] std::io::Error),
    /// The kernel refused.
    #[error("rtnetlink refused the dump")]
    Refused(#[source] rtnetlink::Error),
    /// It took too long.
    #[error("rtnetlink did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// A link of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    /// Index of the link it is a port of.
    master: Option<u32>,
    is_vrf: bool,
}

/// A unicast route: destination and the indexes of the interfaces it leads over.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    destination: IpNet,
    over: Vec<u32>,
}

/// Reduces a dump to what the intake needs. Links whose names no rule can hold are left out.
fn interfaces(links: &[Link], routes: &[Route]) -> Vec<Interface> {
    let vrfs: BTreeMap<u32, IfName> = links
        .iter()
        .filter(|link| link.is_vrf)
        .filter_map(|link| Some((link.index, link.name.parse().ok()?)))
        .collect();
    let mut prefixes: BTreeMap<u32, BTreeSet<IpNet>> = BTreeMap::new();
    for route in routes {
        for index in &route.over {
            prefixes.entry(*index).or_default().insert(route.destination.trunc());
        }
    }
    let interface = |link: &Link| {
        Some(Interface {
            name: link.name.parse().ok()?,
            vrf: link.master.and_then(|master| vrfs.get(&master).cloned()),
            prefixes: prefixes.remove(&link.index).unwrap_or_default(),
        })
    };
    let mut found: Vec<Interface> = links.iter().filter_map(interface).collect();
    found.sort();
    found
}

/// Reads links and, if asked for, routes. Blocks; not to be called from an asynchronous task.
fn dump(with_routes: bool) -> Result<(Vec<Link>, Vec<Route>), DumpError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DumpError::Open)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(DumpError::Open)?;
        tokio::spawn(connection);
        let tables = async {
            let links = links(&handle).await?;
            let routes = if with_routes { routes(&handle).await? } else { Vec::new() };
            Ok((links, routes))
        };
        match tokio::time::timeout(TIMEOUT, tables).await {
            Ok(read) => read.map_err(DumpError::Refused),
            Err(_) => Err(DumpError::Timeout),
        }
    })
}

async fn links(handle: &Handle) -> Result<Vec<Link>, rtnetlink::Error> {
    let messages: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    Ok(messages.iter().filter_map(read_link).collect())
}

fn read_link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link { index: message.header.index, name: String::new(), master: None, is_vrf: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.is_vrf = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vrf)));
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

async fn routes(handle: &Handle) -> Result<Vec<Route>, rtnetlink::Error> {
    let mut found = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let request = match version {
            IpVersion::V4 => rtnetlink::RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            IpVersion::V6 => rtnetlink::RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        let messages = handle.route().get(request).execute();
        futures::pin_mut!(messages);
        while let Some(message) = messages.try_next().await? {
            if found.len() >= MAX_ROUTES {
                warn!("there are more than {MAX_ROUTES} routes; the rest is not looked at");
                return Ok(found);
            }
            found.extend(read_route(&message));
        }
    }
    Ok(found)
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut destination = None;
    let mut over = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some((*address).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some((*address).into())
            }
            RouteAttribute::Oif(index) => over.push(*index),
            RouteAttribute::MultiPath(hops) => over.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    let unspecified = match header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let destination =
        IpNet::new(destination.unwrap_or(unspecified), header.destination_prefix_length).ok()?;
    Some(Route { destination, over })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, master: Option<u32>, is_vrf: bool) -> Link {
        Link { index, name: name.to_owned(), master, is_vrf }
    }

    fn route(destination: &str, over: &[u32]) -> Route {
        Route { destination: destination.parse().unwrap(), over: over.to_vec() }
    }

    #[test]
    fn ports_of_a_vrf_name_it_and_ports_of_a_bridge_do_not() {
        // As on a firewall of the field: the private network's VLAN in its VRF, a bridge under both.
        let links = [
            link(1, "lo", None, false),
            link(2, "bridge", None, false),
            link(3, "lan0", Some(2), false),
            link(10, "vrf104009", None, true),
            link(11, "vlan104009", Some(10), false),
            link(12, "vlan179", None, false),
            link(13, "bad name", None, false),
        ];
        let routes = [
            route("10.0.1.0/24", &[11]),
            route("0.0.0.0/0", &[12]),
            route("2001:db8::1/64", &[11]),
            route("192.0.2.0/24", &[11, 12]),
        ];
        let found = interfaces(&links, &routes);
        let names: Vec<&str> = found.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["bridge", "lan0", "lo", "vlan104009", "vlan179", "vrf104009"]);
        assert_eq!(found[1].vrf, None);
        assert_eq!(found[3].vrf, Some("vrf104009".parse().unwrap()));
        let nets = |position: usize| -> Vec<String> {
            found[position].prefixes.iter().map(ToString::to_string).collect()
        };
        assert_eq!(nets(3), ["10.0.1.0/24", "192.0.2.0/24", "2001:db8::/64"]);
        assert_eq!(nets(4), ["0.0.0.0/0", "192.0.2.0/24"]);
    }

    #[test]
    fn this_machine_has_a_loopback_interface() {
        let (links, _) = dump(true).unwrap();
        assert!(links.iter().any(|link| link.name == "lo"), "{links:?}");
    }
}
