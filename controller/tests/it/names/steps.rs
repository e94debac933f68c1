//! Steps that many tests of names take.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::Netns;
use fw_testkit::dns::{Answer, Query, Scripted, TcpClient};
use fw_testkit::topology::{Lab, LabSpec, SCRIPTED_ADDRESSES};
use fw_testkit::traffic::any::AnyServer;
use fw_testkit::traffic::probe;
use serde_json::Value;

use super::field::{BRIEFLY, Mode, Names, PORT};
use crate::daemon::{Daemon, PATIENCE, eventually};

/// One mode after the other; for tests that work rather than wait.
pub(super) fn in_every_mode(test: impl Fn(Mode) -> Result<()>) -> Result<()> {
    Mode::ALL.into_iter().try_for_each(|mode| said(mode, test(mode)))
}

/// All modes at once; for tests that wait rather than work.
pub(super) fn in_all_modes_at_once(test: impl Fn(Mode) -> Result<()> + Sync) -> Result<()> {
    let test = &test;
    std::thread::scope(|scope| {
        let running = Mode::ALL.map(|mode| scope.spawn(move || said(mode, test(mode))));
        let ended = running.map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.into_iter().collect()
    })
}

fn said(mode: Mode, result: Result<()>) -> Result<()> {
    result.with_context(|| format!("in mode {}", mode.name()))
}

/// Where a scripted server is asked directly, so that no other cache stands between.
pub(crate) fn scripted_address() -> Result<IpAddr> {
    Ok(SCRIPTED_ADDRESSES[0].parse()?)
}

/// The same over IPv6.
pub(super) fn scripted_address6() -> Result<IpAddr> {
    Ok(SCRIPTED_ADDRESSES[1].parse()?)
}

/// `198.18.1.N`: no name of the lab's zones has it.
pub(crate) fn spare(number: u8) -> IpAddr {
    IpAddr::from([198, 18, 1, number])
}

/// `2001:db8:f00::1:N`: no name of the lab's zones has it.
pub(super) fn spare6(number: u8) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0xf00, 0, 0, 0, 1, u16::from(number)])
}

/// A query with an id of its own.
pub(crate) fn query(name: &str, kind: u16) -> Result<Query> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(1);
    Query::new(NEXT.fetch_add(1, Ordering::Relaxed), name, kind)
}

impl Names {
    /// As [`Names::new`], in a lab of one's own.
    pub(super) fn in_lab(
        label: &str,
        mode: Mode,
        spec: impl Fn(LabSpec) -> Result<LabSpec>,
        firewall: &str,
        policies: &[String],
    ) -> Result<Self> {
        let label = format!("{label}-{}", mode.name());
        let lab = Lab::new(&spec(LabSpec::standard(&label)?.with_dns()?)?)?;
        let servers = AnyServer::new(&lab.internet().ns, PORT)?;
        let mut names = Self { lab, daemon: Daemon::new(&label)?, mode, servers };
        names.write(firewall, policies)?;
        names.start()?;
        Ok(names)
    }

    /// A server on the internet that says what it is told to, asked by its own addresses.
    pub(crate) fn scripted(&self) -> Result<Scripted> {
        Scripted::at(&self.lab.internet().ns, &[scripted_address()?, scripted_address6()?])
    }

    /// Asks over UDP; the answer must come from the resolver that was asked, with the question as it was asked.
    pub(crate) fn answer(&self, resolver: IpAddr, query: &Query) -> Result<Answer> {
        let answer = self.ask_at(resolver, query)?;
        check(&answer, resolver, query)?;
        Ok(answer)
    }

    /// Asks over a TCP connection of its own, as [`Names::answer`].
    pub(super) fn answer_by_tcp(&self, resolver: IpAddr, query: &Query) -> Result<Answer> {
        let server = SocketAddr::new(resolver, 53);
        let mut client = TcpClient::connect(&self.lab.cluster().ns, server, PATIENCE)?;
        let answer = client.ask(query, PATIENCE)?.context("no answer came over TCP")?;
        check(&answer, resolver, query)?;
        Ok(answer)
    }

    /// The cluster can connect to all of these.
    pub(super) fn expect_open(&self, targets: &[SocketAddr]) -> Result<()> {
        for to in targets {
            let outcome = probe::tcp_connect(&self.lab.cluster().ns, None, *to, PATIENCE)?;
            ensure!(outcome.is_ok(), "{to} is closed: {:?}", outcome.err());
        }
        Ok(())
    }

    /// The cluster can connect to none of these.
    pub(super) fn expect_closed(&self, targets: &[SocketAddr]) -> Result<()> {
        let open = open_from(&self.lab.cluster().ns, targets)?;
        ensure!(open.is_empty(), "{open:?} must be closed");
        Ok(())
    }

    /// Waits until a connection can be opened.
    pub(super) fn wait_open(&self, to: SocketAddr) -> Result<()> {
        eventually(&format!("{to} is open"), || self.reaches(to.ip(), to.port()))
    }

    /// Waits until no connection can be opened any more.
    pub(super) fn wait_closed(&self, to: SocketAddr) -> Result<()> {
        eventually(&format!("{to} is closed"), || Ok(!self.reaches(to.ip(), to.port())?))
    }

    /// What `dns NAME --json` says of a name's addresses: each with the time until which it is open.
    pub(super) fn learned(&self, name: &str) -> Result<Vec<(IpAddr, String)>> {
        let output = self.daemon.ask(&["dns", name, "--json"])?;
        // A name that is not known is no success, but JSON all the same.
        let shown: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("dns {name}: {}", String::from_utf8_lossy(&output.stderr)))?;
        let names = shown["learned"]["names"].as_array().context("dns lists names")?;
        let Some(found) = names.iter().find(|found| found["name"] == name) else { return Ok(Vec::new()) };
        let addresses = found["addresses"].as_object().context("a name has addresses")?;
        addresses
            .iter()
            .map(|(address, until)| Ok((address.parse()?, until.as_str().unwrap_or_default().to_owned())))
            .collect()
    }

    /// The addresses of [`Names::learned`].
    pub(super) fn learned_addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        let mut addresses: Vec<IpAddr> =
            self.learned(name)?.into_iter().map(|(address, _)| address).collect();
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// Writes the manifests anew and waits until a line of the ruleset is there, or is not.
    pub(super) fn rewrite(
        &self,
        firewall: &str,
        policies: &[String],
        line: &str,
        is_there: bool,
    ) -> Result<()> {
        self.write(firewall, policies)?;
        eventually(&format!("{line:?} in the ruleset: {is_there}"), || {
            let listing = self.lab.firewall.output("nft", &["list", "table", "inet", "firewall"])?;
            Ok(listing.contains(line) == is_there)
        })
    }
}

fn check(answer: &Answer, resolver: IpAddr, query: &Query) -> Result<()> {
    let asked = SocketAddr::new(resolver, 53);
    ensure!(answer.from == asked, "{} was asked, {} answered", asked, answer.from);
    let echoed = answer.question().context("the answer has a question")?;
    if (echoed.id, &echoed.name, echoed.kind) != (query.id, &query.name, query.kind) {
        bail!("{query:?} was answered with the question {echoed:?}");
    }
    Ok(())
}

/// Those of the targets that a namespace can open a TCP connection to; all are tried at once.
pub(super) fn open_from(ns: &Netns, targets: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    std::thread::scope(|scope| {
        let tries: Vec<_> = targets
            .iter()
            .map(|to| scope.spawn(move || Ok((*to, probe::tcp_connect(ns, None, *to, BRIEFLY)?.is_ok()))))
            .collect();
        let mut open = Vec::new();
        for attempt in tries {
            match attempt.join() {
                Ok(Ok((to, true))) => open.push(to),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(open)
    })
}

/// Addresses at [`PORT`].
pub(super) fn at_port(addresses: &[IpAddr]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(*address, PORT)).collect()
}

/// Lets time pass that something must last.
pub(super) fn pass(time: Duration) {
    std::thread::sleep(time);
}
