//! Real recursive resolvers and forwarders.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::dns::authority::{ensure_local, wait_until_answered};
use crate::workdir::WorkDir;
use crate::{Netns, Process};

/// A zone and who serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    /// The zone's name without a dot at the end; the root is empty.
    pub zone: String,
    /// Its servers.
    pub servers: Vec<SocketAddr>,
}

impl Stub {
    /// A zone at servers on port 53.
    pub fn at(zone: &str, servers: &[IpAddr]) -> Self {
        let servers = servers.iter().map(|server| SocketAddr::new(*server, 53)).collect();
        Self { zone: zone.to_owned(), servers }
    }
}

/// Which program forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarder {
    /// `unbound` with one thread, caching.
    Unbound,
    /// `dnsmasq`, caching 10,000 names.
    Dnsmasq,
    /// `dnsmasq` without a cache: every question goes upstream.
    DnsmasqUncached,
}

/// A resolver in a namespace; killed on drop.
#[derive(Debug)]
pub struct Resolver {
    process: Process,
    addresses: Vec<IpAddr>,
    _directory: WorkDir,
}

impl Resolver {
    /// Unbound as a recursive resolver on port 53 of addresses that the namespace has. It knows the servers of `stubs`
    /// and no others: have one for the root (an empty zone name) or it asks the real ones. Returns when it answers for
    /// all stubs, so their servers must be there, except those listed in `later`.
    pub fn recursive(ns: &Netns, addresses: &[IpAddr], stubs: &[Stub], later: &[Stub]) -> Result<Self> {
        let mut text = unbound_base(addresses)?;
        for Stub { zone, servers } in stubs.iter().chain(later) {
            // `.test` is nobody's by default (RFC 6761), and the resolver would say so itself.
            writeln!(text, "server:\n  local-zone: \"{zone}.\" transparent")?;
            writeln!(text, "stub-zone:\n  name: \"{zone}.\"\n  stub-no-cache: no")?;
            for server in servers {
                writeln!(text, "  stub-addr: {}@{}", server.ip(), server.port())?;
            }
        }
        let zones: Vec<&str> = stubs.iter().map(|stub| stub.zone.as_str()).collect();
        Self::unbound(ns, addresses, &text, &zones)
    }

    /// A plain forwarder to one upstream on port 53 of addresses that the namespace has; returns when it answers for
    /// `zone`, which the upstream must.
    pub fn forwarder(
        program: Forwarder,
        ns: &Netns,
        addresses: &[IpAddr],
        upstream: SocketAddr,
        zone: &str,
    ) -> Result<Self> {
        let cache = match program {
            Forwarder::Unbound => {
                let mut text = unbound_base(addresses)?;
                writeln!(text, "server:\n  local-zone: \"test.\" transparent")?;
                let (ip, port) = (upstream.ip(), upstream.port());
                writeln!(text, "forward-zone:\n  name: \".\"\n  forward-addr: {ip}@{port}")?;
                return Self::unbound(ns, addresses, &text, &[zone]);
            }
            Forwarder::Dnsmasq => 10_000,
            Forwarder::DnsmasqUncached => 0,
        };
        ensure_local(ns, addresses)?;
        let directory = WorkDir::new("dnsmasq")?;
        let mut command = ns.command("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-", "--no-resolv"]);
        command.args(["--no-hosts", "--bind-interfaces", "--user=root", "--group=root", "--no-poll"]);
        // 150 questions under way are the default, far below what a benchmark sends.
        command.args(["--dns-forward-max=10000", &format!("--cache-size={cache}")]);
        command.arg(format!("--pid-file={}", directory.path().join("pid").display()));
        command.arg(format!("--server={}#{}", upstream.ip(), upstream.port()));
        command.args(addresses.iter().map(|address| format!("--listen-address={address}")));
        Self::start(Process::spawn(command)?, ns, addresses, directory, &[zone])
    }

    fn unbound(ns: &Netns, addresses: &[IpAddr], config: &str, zones: &[&str]) -> Result<Self> {
        ensure_local(ns, addresses)?;
        let directory = WorkDir::new("unbound")?;
        let config = directory.write("unbound.conf", config)?;
        let mut command = ns.command("unbound");
        command.arg("-d").arg("-c").arg(config).current_dir(directory.path());
        Self::start(Process::spawn(command)?, ns, addresses, directory, zones)
    }

    fn start(
        process: Process,
        ns: &Netns,
        addresses: &[IpAddr],
        directory: WorkDir,
        zones: &[&str],
    ) -> Result<Self> {
        let mut resolver = Self { process, addresses: addresses.to_vec(), _directory: directory };
        for address in addresses {
            for zone in zones {
                wait_until_answered(&mut resolver.process, ns, *address, zone)?;
            }
        }
        Ok(resolver)
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

/// One thread, no DNSSEC, no names of its own, the case of questions kept in answers.
fn unbound_base(addresses: &[IpAddr]) -> Result<String> {
    let mut text = String::from(
        "server:\n  do-daemonize: no\n  use-syslog: no\n  logfile: \"\"\n  username: \"\"\n  chroot: \"\"\n  \
         pidfile: \"\"\n  directory: \".\"\n  module-config: \"iterator\"\n  num-threads: 1\n  verbosity: 1\n  \
         access-control: 0.0.0.0/0 allow\n  access-control: ::/0 allow\n  do-not-query-localhost: no\n  \
         qname-minimisation: no\n  edns-buffer-size: 1232\n  msg-cache-size: 64m\n  rrset-cache-size: 64m\n  \
         outgoing-range: 8192\n  num-queries-per-thread: 4096\n  so-rcvbuf: 4m\n  so-sndbuf: 4m\n  \
         incoming-num-tcp: 64\n",
    );
    for address in addresses {
        writeln!(text, "  interface: {address}")?;
    }
    text.push_str("remote-control:\n  control-enable: no\n");
    Ok(text)
}
