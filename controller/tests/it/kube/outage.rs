//! An API server that is away, forgets, or keeps something back: what is enforced stays, and nothing more.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_nft::{Kernel as _, NetlinkKernel};
use fw_testkit::cluster::{Call, Ending, Fault, Faults, Mode};
use fw_testkit::nft;
use fw_testkit::traffic::probe;
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::steady::Steady;
use serde_json::Value;

use crate::daemon::{eventually, soak_factor};
use crate::field::{controller, headline};
use crate::rig::{FIREWALL, at};
use crate::traffic::INTERNET;

use super::edits::{open_port, remove_policy};
use super::field::Field;

/// For probes that must stay silent.
const SILENCE: Duration = Duration::from_millis(250);
/// Ports of the server on the internet machine: always open, never open, and those that edits are about.
const OPEN: u16 = 7000;
const CLOSED: u16 = 7001;
const OLD: u16 = 7002;
const BEFORE: u16 = 7003;
const AFTER: u16 = 7004;
const NEW: u16 = 7005;

/// A running firewall, with a server behind it that the cluster's machine talks to.
pub(crate) struct World {
    pub(crate) field: Field,
    server: Server,
}

impl World {
    /// The standard Firewall and the policy `open`, enforced.
    fn new(label: &str) -> Result<Self> {
        let world = Self::around(Field::running(label)?)?;
        open_port(&world.field.cluster, "open", OPEN)?;
        eventually("the first policy opens", || world.passes(OPEN))?;
        world.field.wait_for_state("open", "deployed")?;
        Ok(world)
    }

    /// The same around a field, as it is.
    pub(crate) fn around(field: Field) -> Result<Self> {
        let addresses: Vec<_> = (OPEN..OPEN + 20).map(|port| at(INTERNET[0], port)).collect();
        let server = Server::tcp(&field.lab.internet().ns, &addresses, Service::Echo)?;
        Ok(Self { field, server })
    }

    /// Whether a new connection to a port gets through now.
    pub(crate) fn passes(&self, port: u16) -> Result<bool> {
        let to = self.server.addresses()[usize::from(port - OPEN)];
        Ok(probe::tcp(&self.field.lab.cluster().ns, None, to, SILENCE)?.passed())
    }

    fn expect(&self, when: &str, wanted: &[(u16, bool)]) -> Result<()> {
        for (port, passes) in wanted {
            ensure!(self.passes(*port)? == *passes, "{when}: port {port}\n{}", self.field.log());
        }
        Ok(())
    }

    /// Connections through the policy `open` that must not notice anything.
    fn steady(&self) -> Result<Steady> {
        Steady::tcp(
            &self.field.lab.cluster().ns,
            None,
            self.server.addresses()[0],
            3,
            Duration::from_millis(5),
        )
    }
}

/// What the kernel holds and how it came there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    listing: String,
    /// Counts every transaction in the namespace, whoever sent it.
    generation: u32,
    commits: Option<u64>,
}

impl Held {
    pub(crate) fn of(field: &Field) -> Result<Self> {
        let ns = &field.lab.firewall;
        let generation = ns.run(|| NetlinkKernel::open()?.generation())??;
        let listing = ns.output("nft", &["-s", "list", "ruleset"])?;
        let commits = controller(&field.daemon.status()?)["transactions"]["commits"].as_u64();
        ensure!(commits.is_some(), "no figure of transactions");
        Ok(Self { listing, generation, commits })
    }

    pub(crate) fn expect(&self, field: &Field, when: &str) -> Result<()> {
        let now = Self::of(field)?;
        ensure!(now == *self, "{when}: {self:?}\nbecame\n{now:?}\n{}", field.log());
        Ok(())
    }
}

fn waiting_for(status: &Value) -> &str {
    controller(status)["waitingFor"].as_str().unwrap_or_default()
}

fn problems(status: &Value) -> String {
    controller(status)["problems"].to_string()
}

#[derive(Clone, Copy, Debug)]
enum Outage {
    Cut,
    BlackHole,
    Errors,
}

impl Outage {
    fn begin(self, faults: &Faults) -> Result<()> {
        match self {
            Self::Cut => faults.set_mode(Mode::Cut),
            Self::BlackHole => faults.set_mode(Mode::BlackHole),
            Self::Errors => {
                faults.inject(usize::MAX, Fault::Status(500), |_| true);
                faults.close_connections();
                Ok(())
            }
        }
    }

    fn end(faults: &Faults) -> Result<()> {
        faults.heal();
        faults.set_mode(Mode::Open)
    }
}

#[test]
fn an_api_server_that_is_away_changes_nothing_and_edits_of_meanwhile_come_after_it() -> Result<()> {
    let world = World::new("k-away")?;
    let (field, cluster) = (&world.field, &world.field.cluster);
    let steady = world.steady()?;
    // Seconds; in the long form long enough for a silent connection to be given up.
    let length = Duration::from_millis(1700) * soak_factor().pow(2);
    let length = length.min(Duration::from_secs(200));
    for outage in [Outage::Cut, Outage::BlackHole, Outage::Errors] {
        open_port(cluster, "old", OLD)?;
        open_port(cluster, "moves", BEFORE)?;
        remove_policy(cluster, "new")?;
        eventually("all is as before the outage", || {
            Ok(world.passes(OLD)? && world.passes(BEFORE)? && !world.passes(NEW)? && !world.passes(AFTER)?)
        })?;
        let held = Held::of(field)?;
        outage.begin(&field.faults)?;
        open_port(cluster, "new", NEW)?;
        open_port(cluster, "moves", AFTER)?;
        remove_policy(cluster, "old")?;
        let began = Instant::now();
        while began.elapsed() < length {
            let when = format!("{outage:?} for {:?}", began.elapsed());
            world.expect(
                &when,
                &[(OPEN, true), (OLD, true), (BEFORE, true), (CLOSED, false), (NEW, false), (AFTER, false)],
            )?;
            held.expect(field, &when)?;
        }
        Outage::end(&field.faults)?;
        eventually(&format!("the edits are in force after {outage:?}"), || {
            Ok(world.passes(NEW)? && world.passes(AFTER)? && !world.passes(OLD)? && !world.passes(BEFORE)?)
        })?;
        world.expect("after it", &[(OPEN, true), (CLOSED, false)])?;
        for policy in ["open", "new", "moves"] {
            field.wait_for_state(policy, "deployed")?;
        }
    }
    let report = steady.stop()?;
    assert_eq!((report.flows, report.breaks.as_slice(), report.retransmits), (3, &[][..], 0));
    Ok(())
}

/// Which of the essential lists a call is for.
const ESSENTIAL: [(&str, &str); 3] =
    [("clusterwidenetworkpolicies", "firewall"), ("firewalls", "firewall"), ("services", "")];

fn is_about(call: &Call, (resource, namespace): (&str, &str)) -> bool {
    call.resource == resource && call.namespace == namespace
}

#[test]
fn a_watch_that_is_too_old_and_a_whole_relist_are_no_transaction() -> Result<()> {
    let world = World::new("k-gone")?;
    let (field, faults) = (&world.field, &world.field.faults);
    open_port(&field.cluster, "old", OLD)?;
    eventually("the second policy opens", || world.passes(OLD))?;
    field.wait_for_state("old", "deployed")?;
    let relisted = |what: &str, held: &Held| -> Result<()> {
        for essential in ESSENTIAL {
            let is_list = move |call: &Call| {
                call.verb == "list" && is_about(call, essential) && call.code == Some(200) && !call.injected
            };
            faults.wait_for_calls(1, crate::daemon::PATIENCE, is_list)?;
        }
        // The lists have been read when the watches that follow them are there.
        eventually("all watches are open again", || Ok(faults.watches().len() == 6))?;
        std::thread::sleep(SILENCE);
        held.expect(field, what)?;
        world.expect(what, &[(OPEN, true), (OLD, true), (CLOSED, false)])
    };
    eventually("all watches are open", || Ok(faults.watches().len() == 6))?;
    let held = Held::of(field)?;

    faults.clear_calls();
    ensure!(faults.end_watches(Ending::Gone, |_| true) == 6);
    relisted("after 410 in an event", &held)?;

    faults.clear_calls();
    faults.inject(6, Fault::Status(410), |call| call.verb == "watch");
    ensure!(faults.end_watches(Ending::Closed, |_| true) == 6);
    relisted("after 410 as answer", &held)?;

    faults.clear_calls();
    let refused = faults.inject(6, Fault::Status(410), |call| call.verb == "list");
    ensure!(faults.end_watches(Ending::Gone, |_| true) == 6);
    relisted("after 410 to a list", &held)?;
    ensure!(refused.hits() == 6, "{} lists were refused", refused.hits());

    // What was deleted while nobody watched is noticed by its absence in the list.
    faults.set_mode(Mode::Cut)?;
    remove_policy(&field.cluster, "old")?;
    open_port(&field.cluster, "new", NEW)?;
    held.expect(field, "while the line is cut")?;
    faults.inject(1, Fault::Status(410), |call| call.verb == "watch" && is_about(call, ESSENTIAL[0]));
    faults.set_mode(Mode::Open)?;
    eventually("a deletion of meanwhile closes", || Ok(!world.passes(OLD)? && world.passes(NEW)?))?;
    world.expect("after it", &[(OPEN, true), (CLOSED, false)])
}

#[test]
fn a_start_without_an_api_server_enforces_the_last_snapshot_and_says_that_it_is_stale() -> Result<()> {
    let mut world = World::new("k-cold")?;
    world.field.daemon.stop()?;
    // As after a reboot: no table, and the state directory.
    nft::load(&world.field.lab.firewall, "flush ruleset")?;
    ensure!(world.passes(CLOSED)?, "the table is gone");
    world.field.faults.set_mode(Mode::Cut)?;
    open_port(&world.field.cluster, "new", NEW)?;
    world.field.daemon.start(&world.field.lab.firewall, &[])?;
    let field = &world.field;
    let status = field.daemon.wait_until("it enforces the snapshot and says why", |status| {
        controller(status)["ruleset"] == "snapshot"
            && waiting_for(status).contains("API server to list")
            && problems(status).contains("clusterwidenetworkpolicies")
    })?;
    ensure!(headline(&status).contains("stale snapshot"), "{}", headline(&status));
    let held = Held::of(field)?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) * soak_factor() {
        world.expect("without an API server", &[(OPEN, true), (CLOSED, false), (NEW, false)])?;
        held.expect(field, "without an API server")?;
    }
    field.faults.set_mode(Mode::Open)?;
    field.daemon.wait_until_enforcing()?;
    world.expect("with one", &[(OPEN, true), (CLOSED, false), (NEW, true)])
}

#[test]
fn a_first_start_without_an_api_server_opens_nothing() -> Result<()> {
    let field = Field::new("k-first")?;
    field.cluster.apply(FIREWALL)?;
    open_port(&field.cluster, "open", OPEN)?;
    field.faults.set_mode(Mode::Cut)?;
    let mut world = World::around(field)?;
    world.field.daemon.start(&world.field.lab.firewall, &[])?;
    let field = &world.field;
    let status = field.daemon.wait_until("it enforces the base ruleset and says why", |status| {
        controller(status)["ruleset"] == "base" && waiting_for(status).contains("API server to list")
    })?;
    for essential in ["clusterwidenetworkpolicies in firewall", "firewalls", "services"] {
        ensure!(waiting_for(&status).contains(essential), "{}", waiting_for(&status));
    }
    let held = Held::of(field)?;
    ensure!(held.commits == Some(1), "{held:?}");
    world.expect("without an API server", &[(OPEN, false), (CLOSED, false)])?;
    held.expect(field, "without an API server")?;
    field.faults.set_mode(Mode::Open)?;
    field.daemon.wait_until_enforcing()?;
    world.expect("with one", &[(OPEN, true), (CLOSED, false)])
}

#[test]
fn nothing_changes_before_policies_firewalls_and_services_are_all_listed() -> Result<()> {
    let mut world = World::new("k-lists")?;
    world.field.daemon.stop()?;
    for (port, late) in (NEW..).zip(ESSENTIAL) {
        open_port(&world.field.cluster, &format!("new-{port}"), port)?;
        let is_list = |call: &Call| call.verb == "list" && call.code == Some(200);
        world.field.faults.clear_calls();
        world
            .field
            .faults
            .inject(usize::MAX, Fault::Hang, move |call| call.verb == "list" && is_about(call, late));
        world.field.daemon.start(&world.field.lab.firewall, &[])?;
        let field = &world.field;
        for on_time in ESSENTIAL.into_iter().filter(|other| *other != late) {
            let arrived = move |call: &Call| is_list(call) && is_about(call, on_time);
            field.faults.wait_for_calls(1, crate::daemon::PATIENCE, arrived)?;
        }
        let status = field.daemon.wait_until("it says what is missing", |status| {
            waiting_for(status).ends_with("to list ") || waiting_for(status).matches(", ").count() == 0
        })?;
        let held = Held::of(field)?;
        std::thread::sleep(SILENCE * 2);
        let when = format!("without the list of {late:?}, {}", waiting_for(&status));
        held.expect(field, &when)?;
        world.expect(&when, &[(OPEN, true), (CLOSED, false), (port, false)])?;
        field.faults.heal();
        field.faults.close_connections();
        eventually("with all lists the policy opens", || world.passes(port))?;
        world.field.daemon.wait_until_enforcing()?;
        world.field.daemon.stop()?;
    }
    Ok(())
}

/// Of what the firewall watches, what only makes it better.
fn is_not_essential(call: &Call) -> bool {
    let elsewhere = call.resource == "clusterwidenetworkpolicies" && call.namespace.is_empty();
    matches!(call.verb.as_str(), "list" | "watch")
        && (elsewhere || matches!(call.resource.as_str(), "pods" | "secrets"))
}

#[test]
fn other_watches_that_fail_alone_change_nothing() -> Result<()> {
    let field = Field::new("k-alone")?;
    field.cluster.apply(FIREWALL)?;
    open_port(&field.cluster, "open", OPEN)?;
    field.faults.inject(usize::MAX, Fault::Status(403), is_not_essential);
    let mut world = World::around(field)?;
    world.field.start()?;
    world.expect("at a start", &[(OPEN, true), (CLOSED, false)])?;
    let field = &world.field;
    let names = ["clusterwidenetworkpolicies elsewhere", "droptailer pods", "droptailer secret"];
    let says = |status: &Value| names.iter().all(|name| problems(status).contains(name));
    field.daemon.wait_until("it says what it may not see", says)?;
    open_port(&field.cluster, "new", NEW)?;
    eventually("an edit is in force", || world.passes(NEW))?;
    field.wait_for_state("new", "deployed")?;

    field.faults.heal();
    let none = |status: &Value| names.iter().all(|name| !problems(status).contains(name));
    field.daemon.wait_until("they are seen again", none)?;
    eventually("all watches are open", || Ok(field.faults.watches().len() == 6))?;
    let held = Held::of(field)?;
    field.faults.inject(usize::MAX, Fault::Status(403), is_not_essential);
    ensure!(field.faults.end_watches(Ending::Gone, is_not_essential) == 3);
    field.daemon.wait_until("it says that they failed", says)?;
    held.expect(field, "when the others fail")?;
    world.expect("when the others fail", &[(OPEN, true), (NEW, true), (CLOSED, false)])
}
