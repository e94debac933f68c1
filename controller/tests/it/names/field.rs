//! A lab with an internet that has DNS, and a controller whose policies have names.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Answer, Client, Query, Scripted};
use fw_testkit::topology::{Lab, LabSpec, RESOLVER_ADDRESSES, SCRIPTED_ADDRESSES};
use fw_testkit::traffic::any::AnyServer;
use fw_testkit::traffic::probe;
use serde_json::Value;

use crate::daemon::{Daemon, PATIENCE};
use crate::field::{controller, published};
use crate::rig::{documents, firewall_with, policy};

/// Port that servers of the internet listen on.
pub(crate) const PORT: u16 = 8080;
/// A client that is refused waits this long; the machine is slow, not the network.
pub(crate) const BRIEFLY: Duration = Duration::from_millis(400);

/// A mode of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Native,
    Generic,
    Tcx,
    Off,
}

impl Mode {
    /// All four.
    pub(crate) const ALL: [Self; 4] = [Self::Native, Self::Generic, Self::Tcx, Self::Off];

    /// As `spec.fastpath.mode` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tcx => "tcx",
            Self::Off => "off",
        }
    }
}

/// See the module.
pub(crate) struct Names {
    pub(crate) lab: Lab,
    pub(crate) daemon: Daemon,
    pub(crate) mode: Mode,
    /// Answers at [`PORT`] of every address of the internet.
    pub(crate) servers: AnyServer,
}

impl Names {
    /// A lab whose controller enforces policies in a mode; `firewall` are more lines of the Firewall's spec, indented by
    /// two blanks.
    pub(crate) fn new(label: &str, mode: Mode, firewall: &str, policies: &[String]) -> Result<Self> {
        let mut names = Self::bare(&format!("{label}-{}", mode.name()), mode)?;
        names.write(firewall, policies)?;
        names.start()?;
        Ok(names)
    }

    /// As [`Names::new`], with nothing written and nothing running.
    pub(crate) fn bare(label: &str, mode: Mode) -> Result<Self> {
        let lab = Lab::new(&LabSpec::standard(label)?.with_dns()?)?;
        let servers = AnyServer::new(&lab.internet().ns, PORT)?;
        Ok(Self { lab, daemon: Daemon::new(label)?, mode, servers })
    }

    /// Writes the Firewall and the policies.
    pub(crate) fn write(&self, firewall: &str, policies: &[String]) -> Result<()> {
        let lines = format!("  fastpath: {{mode: {}}}\n{firewall}", self.mode.name());
        let firewall = firewall_with(&lines);
        let parts: Vec<&str> =
            std::iter::once(firewall.as_str()).chain(policies.iter().map(String::as_str)).collect();
        self.daemon.write("all.yaml", &documents(&parts))
    }

    /// Starts the controller and waits until names are enforced and DNS is redirected.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.daemon.start_in(&self.lab)?;
        self.wait_until_armed()
    }

    /// Waits until DNS is redirected by all ways.
    pub(crate) fn wait_until_armed(&self) -> Result<()> {
        crate::daemon::eventually("DNS is redirected to the proxy", || {
            let armed = |set: &str| -> Result<usize> {
                let listing = self.lab.firewall.output("nft", &["list", "set", "inet", "firewall", set])?;
                Ok(["tcp", "udp"].iter().filter(|word| listing.contains(&format!("{word} "))).count())
            };
            Ok(armed("dns_armed")? == 2 && armed("dns_armed6")? == 2)
        })
    }

    /// A server of the zone `scripted.test`, by which the lab's resolvers and [`Names::ask_script`] get their answers.
    pub(crate) fn script(&self) -> Result<Scripted> {
        let addresses: Vec<IpAddr> =
            SCRIPTED_ADDRESSES.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        Scripted::at(&self.lab.internet().ns, &addresses)
    }

    /// Asks the scripted server from the cluster, by way of the proxy: no resolver's cache is between.
    pub(crate) fn ask_script(&self, name: &str, kind: u16) -> Result<Answer> {
        self.ask_at(SCRIPTED_ADDRESSES[0].parse()?, &Query::new(rand_id(name), name, kind)?)
    }

    /// Asks the lab's resolver from the cluster, over IPv4 and UDP.
    pub(crate) fn ask(&self, name: &str, kind: u16) -> Result<Answer> {
        self.ask_at(RESOLVER_ADDRESSES[0].parse()?, &Query::new(rand_id(name), name, kind)?)
    }

    /// Asks any resolver from the cluster over UDP.
    pub(crate) fn ask_at(&self, resolver: IpAddr, query: &Query) -> Result<Answer> {
        let mut client = Client::new(&self.lab.cluster().ns, SocketAddr::new(resolver, 53))?;
        client.ask(query, PATIENCE)?.context("no answer came from the resolver that was asked")
    }

    /// The addresses a name has, by way of the proxy.
    pub(crate) fn resolve(&self, name: &str) -> Result<Vec<IpAddr>> {
        let mut addresses = self.ask(name, kind::A)?.ips();
        addresses.extend(self.ask(name, kind::AAAA)?.ips());
        if addresses.is_empty() {
            bail!("{name} has no address");
        }
        Ok(addresses)
    }

    /// True when the cluster can open a TCP connection.
    pub(crate) fn reaches(&self, address: IpAddr, port: u16) -> Result<bool> {
        let to = SocketAddr::new(address, port);
        Ok(probe::tcp_connect(&self.lab.cluster().ns, None, to, BRIEFLY)?.is_ok())
    }

    /// Published packets under the comment of an entry.
    pub(crate) fn counted(&self, policy: &str, protocol: &str, selector: &str) -> Result<Option<u64>> {
        let comment = format!("accept traffic for np {policy} {protocol}, fqdn: {selector}");
        // The status does not read the kernel again within 50 ms of the last reading.
        std::thread::sleep(Duration::from_millis(60));
        Ok(published(&self.daemon.status()?, "accept", &comment))
    }

    /// What the thread of names says.
    pub(crate) fn figures(&self) -> Result<Value> {
        Ok(controller(&self.daemon.status()?)["names"].clone())
    }
}

/// A policy whose egress goes to selectors (YAML flow style) at [`PORT`] by TCP.
pub(crate) fn to_names(name: &str, selectors: &str) -> String {
    policy(
        name,
        &format!("{{egress: [{{toFQDNs: [{selectors}], ports: [{{protocol: TCP, port: {PORT}}}]}}]}}"),
    )
}

/// An id that differs from name to name, so that a late answer is not taken for the next one.
fn rand_id(name: &str) -> u16 {
    name.bytes().fold(0x1234, |sum: u16, byte| sum.wrapping_mul(31).wrapping_add(u16::from(byte)))
}
