//! Real authoritative servers.

use std::fmt::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::dns::client::Client;
use crate::dns::wire::{Query, kind};
use crate::dns::zone::Zone;
use crate::workdir::WorkDir;
use crate::{Netns, Process};

/// Far longer than any of these programs takes to start on a busy machine.
pub(crate) const START: Duration = Duration::from_secs(30);
/// How long one question at a starting server waits.
const ATTEMPT: Duration = Duration::from_millis(100);

/// Which program serves the zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    /// `knotd` of Debian's package `knot`.
    Knot,
    /// `named` of Debian's package `bind9`.
    Bind,
}

/// An authoritative server in a namespace; killed on drop.
#[derive(Debug)]
pub struct Authority {
    process: Process,
    addresses: Vec<IpAddr>,
    _directory: WorkDir,
}

impl Authority {
    /// Serves zones with Knot DNS on port 53 of addresses that the namespace has; returns when it answers there.
    pub fn new(ns: &Netns, addresses: &[IpAddr], zones: &[Zone]) -> Result<Self> {
        Self::with(Software::Knot, ns, addresses, zones)
    }

    /// As [`Authority::new`], with a program of choice.
    pub fn with(software: Software, ns: &Netns, addresses: &[IpAddr], zones: &[Zone]) -> Result<Self> {
        ensure_local(ns, addresses)?;
        let directory = WorkDir::new("authority")?;
        for (number, zone) in zones.iter().enumerate() {
            directory.write(&format!("{number}.zone"), &zone.file()?)?;
        }
        let command = match software {
            Software::Knot => knot(ns, &directory, addresses, zones)?,
            Software::Bind => bind(ns, &directory, addresses, zones)?,
        };
        let process = Process::spawn(command)?;
        let mut authority = Self { process, addresses: addresses.to_vec(), _directory: directory };
        for address in addresses {
            for zone in zones {
                wait_until_answered(&mut authority.process, ns, *address, zone.origin())?;
            }
        }
        Ok(authority)
    }

    /// Where it answers, port 53.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// A server that cannot bind to an address goes on without it, and would be waited for in vain.
pub(crate) fn ensure_local(ns: &Netns, addresses: &[IpAddr]) -> Result<()> {
    ns.run(|| {
        addresses.iter().try_for_each(|address| {
            let bound = UdpSocket::bind((*address, 0)).map(drop);
            bound.with_context(|| format!("{} lacks the address {address}", ns.name()))
        })
    })?
}

/// Asks for a zone's SOA until it is answered without an error. The client is the server's own machine.
pub(crate) fn wait_until_answered(
    process: &mut Process,
    ns: &Netns,
    address: IpAddr,
    zone: &str,
) -> Result<()> {
    let deadline = Instant::now() + START;
    let mut client = Client::new(ns, (address, 53).into())?;
    let mut seen = String::from("nothing");
    for id in (0..=u16::MAX).cycle() {
        match client.ask(&Query::new(id, zone, kind::SOA)?, ATTEMPT) {
            Ok(Some(answer)) if answer.rcode() == Some(0) => return Ok(()),
            Ok(Some(answer)) => {
                seen = format!("rcode {:?}", answer.rcode());
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => seen = format!("{error:#}"),
            Ok(None) => {}
        }
        let ended = process.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            bail!(
                "the DNS server at {address} does not answer for {zone:?} ({seen}, ended: {ended:?}); it printed:\n{}",
                process.lines().join("\n")
            );
        }
    }
    Ok(())
}

fn knot(ns: &Netns, directory: &WorkDir, addresses: &[IpAddr], zones: &[Zone]) -> Result<Command> {
    let listen: Vec<String> = addresses.iter().map(|address| format!("{address}@53")).collect();
    let path = directory.path().display();
    // One worker of each kind: the lab shares few cores. No semantic checks: awkward is what the zones are for.
    let mut text = format!(
        "server:\n    rundir: \"{path}\"\n    listen: [ {} ]\n    udp-workers: 1\n    tcp-workers: 1\n    \
         background-workers: 1\n\
         log:\n  - target: stderr\n    any: info\n\
         database:\n    storage: \"{path}\"\n\
         template:\n  - id: default\n    storage: \"{path}\"\n    semantic-checks: off\n    journal-content: none\n    \
         zonefile-sync: -1\n\
         zone:\n",
        listen.join(", ")
    );
    for (number, zone) in zones.iter().enumerate() {
        writeln!(text, "  - domain: \"{}.\"\n    file: \"{number}.zone\"", zone.origin())?;
    }
    let config = directory.write("knot.conf", &text)?;
    let mut command = ns.command("knotd");
    command.arg("-c").arg(config);
    Ok(command)
}

fn bind(ns: &Netns, directory: &WorkDir, addresses: &[IpAddr], zones: &[Zone]) -> Result<Command> {
    let list = |v4: bool| -> String {
        let of_family = addresses.iter().filter(|address| address.is_ipv4() == v4);
        let text: String = of_family.map(|address| format!("{address}; ")).collect();
        if text.is_empty() { "none; ".to_owned() } else { text }
    };
    let path = directory.path().display();
    let mut text = format!(
        "options {{ directory \"{path}\"; pid-file none; session-keyfile none; listen-on {{ {}}}; listen-on-v6 {{ {}}}; \
         recursion no; notify no; dnssec-validation no; minimal-responses yes; }};\ncontrols {{ }};\n",
        list(true),
        list(false)
    );
    for (number, zone) in zones.iter().enumerate() {
        writeln!(
            text,
            "zone \"{}.\" {{ type primary; file \"{number}.zone\"; check-names ignore; check-integrity no; }};",
            zone.origin()
        )?;
    }
    let config = directory.write("named.conf", &text)?;
    let mut command = ns.command("named");
    command.args(["-g", "-n", "1", "-c"]).arg(config);
    Ok(command)
}
