//! What is enforced while the controller starts, stops, is killed, flushed, run dry or put in another's place.

use std::fs;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::nft;
use fw_testkit::traffic::probe;
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::steady::Steady;

use crate::daemon::{PATIENCE, eventually};
use crate::field::{Field, controller, headline, published, reach};
use crate::rig::{FIREWALL, at, documents, firewall_with, policy};
use crate::traffic::{CLUSTER, INTERNET, out};

/// For probes that must stay silent.
const SILENCE: Duration = Duration::from_millis(300);
const WEB: &str = "accept traffic for np web tcp";

fn with(policies: &[&str]) -> String {
    let mut parts = vec![FIREWALL];
    parts.extend(policies);
    documents(&parts)
}

/// A policy for a server of the internet machine, as cluster machines reach it.
fn to_server(port: u16) -> String {
    policy("web", &format!("{{egress: [{{to: [{{cidr: 203.0.113.2/32}}], ports: [{{port: {port}}}]}}]}}"))
}

#[test]
fn a_cold_start_installs_the_base_ruleset_first() -> Result<()> {
    let mut field = Field::bare("cold")?;
    field.daemon.write("all.yaml", &with(&[&reach("old", 80)]))?;
    let shots = || [out("1.2.3.4", 80), out("1.2.3.4", 81)];

    field.start_and_be_killed("after-ack:1")?;
    let base = field.listing()?;
    for part in ["policy drop", "ct state established", "drop_total", "log prefix"] {
        ensure!(base.contains(part), "the base ruleset has no {part:?}:\n{base}");
    }
    assert_eq!(field.fire(&shots())?, [false, false], "nothing new passes the base ruleset");

    field.start()?;
    assert_eq!(field.fire(&shots())?, [true, false]);
    field.daemon.stop()?;
    field.flush_ruleset()?;
    field.daemon.write("all.yaml", &with(&[&reach("new", 81)]))?;
    field.start_and_be_killed("after-ack:1")?;
    field.expect_rules(&base, "after the first transaction")?;

    field.flush_ruleset()?;
    field.start_and_be_killed("after-ack:2")?;
    assert_eq!(field.fire(&shots())?, [true, false], "the second transaction is the last known snapshot");

    field.flush_ruleset()?;
    field.start()?;
    assert_eq!(field.fire(&shots())?, [false, true], "then come the manifests");
    Ok(())
}

#[test]
fn the_rules_outlive_the_controller() -> Result<()> {
    let mut field = Field::new("outlives", &with(&[&to_server(7000)]))?;
    let (cluster, internet) = (&field.lab.cluster().ns, &field.lab.internet().ns);
    let server = Server::tcp(internet, &[at(INTERNET[0], 7000), at(INTERNET[0], 7001)], Service::Echo)?;
    let [allowed, denied] = [server.addresses()[0], server.addresses()[1]];
    let steady = Steady::tcp(cluster, None, allowed, 3, Duration::from_millis(5))?;
    let rules = field.listing()?;
    let verdicts = |field: &Field| -> Result<[bool; 2]> {
        let cluster = &field.lab.cluster().ns;
        let passed = probe::tcp(cluster, None, allowed, PATIENCE)?.passed();
        Ok([passed, probe::tcp(cluster, None, denied, SILENCE)?.passed()])
    };

    field.daemon.stop()?;
    field.expect_rules(&rules, "after SIGTERM")?;
    assert_eq!(verdicts(&field)?, [true, false]);
    field.start()?;
    field.expect_rules(&rules, "after a restart")?;
    field.daemon.kill()?;
    field.expect_rules(&rules, "after kill -9")?;
    assert_eq!(verdicts(&field)?, [true, false]);
    field.start()?;
    assert_eq!(verdicts(&field)?, [true, false]);
    let report = steady.stop()?;
    assert_eq!((report.flows, report.breaks.as_slice(), report.retransmits), (3, &[][..], 0));
    Ok(())
}

#[test]
fn flush_removes_the_table_and_undo_brings_it_back() -> Result<()> {
    let mut field = Field::new("flush", &with(&[&reach("web", 80)]))?;
    let shots = || [out("1.2.3.4", 80), out("1.2.3.4", 81)];
    let rules = field.listing()?;

    let flushed = field.daemon.ask(&["flush"])?;
    ensure!(flushed.status.success(), "{flushed:?}");
    assert_eq!(field.listing()?, "");
    assert_eq!(field.fire(&shots())?, [true, true], "without a table everything passes");
    let status = field.daemon.ask(&["status"])?;
    assert_eq!(status.status.code(), Some(3));
    let text = String::from_utf8(status.stdout)?;
    ensure!(text.starts_with("NOT ENFORCING: FLUSHED"), "{text}");

    field.daemon.write("all.yaml", &with(&[&reach("web", 80), &reach("more", 81)]))?;
    field.daemon.wait_until("it has read the change", |status| {
        controller(status)["policies"].as_object().is_some_and(|policies| policies.len() == 2)
    })?;
    assert_eq!(field.listing()?, "", "a change of the manifests undoes no flush");

    ensure!(field.daemon.ask(&["flush", "--undo"])?.status.success());
    field.wait_for_ruleset("objects")?;
    assert_eq!(field.fire(&shots())?, [true, true]);
    assert_eq!(field.fire(&[out("1.2.3.4", 82)])?, [false]);

    field.daemon.ask(&["flush"])?;
    field.daemon.write("all.yaml", &with(&[&reach("web", 80)]))?;
    field.daemon.stop()?;
    assert_eq!(field.listing()?, "");
    field.start()?;
    field.expect_rules(&rules, "after a restart")?;

    field.daemon.kill()?;
    let state = field.daemon.state();
    let socket = field.daemon.beside("control.sock");
    let mut orphan = field.lab.firewall.command(crate::daemon::BINARY);
    orphan.arg("flush").arg("--state-dir").arg(&state).arg("--control-socket").arg(&socket);
    ensure!(orphan.output()?.status.success());
    assert_eq!(field.listing()?, "", "flush removes what no controller holds");
    Ok(())
}

#[test]
fn a_dry_run_applies_nothing_until_it_is_switched_off() -> Result<()> {
    let dry = firewall_with("  dryrun: true");
    let mut field = Field::new("dryrun", &with(&[&reach("old", 80)]))?;
    let shots = || [out("1.2.3.4", 80), out("1.2.3.4", 81)];
    let rules = field.listing()?;
    field.daemon.write("all.yaml", &documents(&[&dry, &reach("new", 81)]))?;
    let status = field.wait_for_ruleset("before dryrun")?;
    let dry_run = controller(&status)["dryRun"].to_string();
    for part in ["egress-new-tcp", "egress-old-tcp"] {
        ensure!(dry_run.contains(part), "what would change does not name {part}: {dry_run}");
    }
    field.expect_rules(&rules, "in a dry run")?;
    assert_eq!(field.fire(&shots())?, [true, false], "what was applied stays");
    field.daemon.write("all.yaml", &with(&[&reach("new", 81)]))?;
    field.wait_for_ruleset("objects")?;
    assert_eq!(field.fire(&shots())?, [false, true], "switched off, it applies at once");

    // The same on a box where nothing was installed.
    field.daemon.stop()?;
    field.flush_ruleset()?;
    fs::remove_dir_all(field.daemon.state())?;
    field.daemon.write("all.yaml", &documents(&[&dry, &reach("new", 81)]))?;
    field.launch(&[])?;
    let not_enforcing = |field: &Field| {
        field.daemon.wait_until("it says that a dry run installs nothing", |status| {
            headline(status).starts_with("NOT ENFORCING: dryrun") && controller(status)["dryRun"].is_object()
        })
    };
    not_enforcing(&field)?;
    assert_eq!(field.listing()?, "", "the base ruleset was withdrawn");
    field.daemon.stop()?;
    field.launch(&[("FW_FAULT", "before-commit")])?;
    not_enforcing(&field).context("a stored dry run is honoured before the base ruleset")?;
    field.daemon.stop()?;
    field.launch(&[])?;
    field.daemon.write("all.yaml", &with(&[&reach("new", 81)]))?;
    field.wait_for_ruleset("objects")?;
    assert_eq!(field.fire(&shots())?, [false, true]);
    Ok(())
}

/// The addresses on `vlan179`.
fn addresses(field: &Field) -> Result<Vec<IpAddr>> {
    let text = field.lab.firewall.output("ip", &["-o", "address", "show", "dev", "vlan179"])?;
    let word = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    let parse = |word: String| Ok(word.split('/').next().unwrap_or_default().parse()?);
    let mut all = text.lines().filter_map(word).map(parse).collect::<Result<Vec<IpAddr>>>()?;
    all.sort();
    Ok(all)
}

#[test]
fn snat_addresses_come_and_go_with_the_object_and_foreign_ones_stay() -> Result<()> {
    let mut field = Field::bare("addresses")?;
    // One address that nobody asks for, one that the object asks for too.
    field
        .lab
        .firewall
        .ip("address add 203.0.113.77/32 dev vlan179\naddress add 203.0.113.11/32 dev vlan179\n")?;
    let foreign = addresses(&field)?;
    let rule = |addresses: &str| {
        let nat = firewall_with(&format!("  egressRules:\n  - {{networkid: internet, ips: [{addresses}]}}"));
        documents(&[&nat, &policy("all", "{egress: [{}]}")])
    };
    let expect = |field: &Field, ours: &[&str]| {
        let mut expected = foreign.clone();
        expected.extend(ours.iter().map(|address| at(address, 0).ip()));
        expected.sort();
        eventually(&format!("vlan179 has {ours:?} and what was there"), || Ok(addresses(field)? == expected))
    };
    field.daemon.write("all.yaml", &rule("203.0.113.10, 203.0.113.11, '2001:db8:179::10'"))?;
    field.start()?;
    expect(&field, &["203.0.113.10", "2001:db8:179::10"])?;
    let server = Server::udp(&field.lab.internet().ns, &[at(INTERNET[1], 7000)])?;
    let seen = probe::udp(&field.lab.cluster().ns, None, server.addresses()[0], PATIENCE)?;
    assert_eq!(seen.seen_as(), Some(at("2001:db8:179::10", 0).ip()), "the answer came to an address of ours");

    field.daemon.write("all.yaml", &rule("203.0.113.10, 203.0.113.12"))?;
    expect(&field, &["203.0.113.10", "203.0.113.12"])?;
    field.daemon.kill()?;
    field.daemon.write("all.yaml", &rule("203.0.113.12"))?;
    field.start()?;
    expect(&field, &["203.0.113.12"]).context("what was added before a kill is still known")?;
    field.daemon.ask(&["flush"])?;
    expect(&field, &[])?;
    field.daemon.ask(&["flush", "--undo"])?;
    expect(&field, &["203.0.113.12"])?;
    field.daemon.write("all.yaml", &with(&[]))?;
    expect(&field, &[])?;
    Ok(())
}

#[test]
fn counters_and_published_values_go_on_over_a_restart() -> Result<()> {
    let mut field = Field::new("counters", &with(&[&reach("web", 80)]))?;
    let mut fired = 0;
    let mut fire = |field: &Field, count: usize| -> Result<u64> {
        let shots: Vec<_> = (0..count).flat_map(|_| [out("1.2.3.4", 80), out("1.2.3.4", 81)]).collect();
        assert_eq!(field.fire(&shots)?, [true, false].repeat(count));
        fired += count as u64;
        Ok(fired)
    };
    let shown = |field: &Field| -> Result<(Option<u64>, Option<u64>)> {
        let status = field.daemon.status()?;
        let dropped = status["status"]["stats"]["dropTotal"]["packets"].as_u64();
        Ok((published(&status, "accept", WEB), dropped))
    };
    let both = |count| (Some(count), Some(count));
    let sent = fire(&field, 3)?;
    field
        .daemon
        .wait_until("it has read the counters", |status| published(status, "accept", WEB) == Some(sent))?;
    assert_eq!(shown(&field)?, both(sent));

    field.daemon.stop()?;
    let sent = fire(&field, 2)?;
    field.start()?;
    eventually("the figures went on while nobody ran", || Ok(shown(&field)? == both(sent)))?;
    field.daemon.kill()?;
    let sent = fire(&field, 1)?;
    field.start()?;
    eventually("the figures went on after a kill", || Ok(shown(&field)? == both(sent)))?;
    let kernel = field.counters()?;
    assert_eq!((kernel.comment(WEB), kernel.named("drop_total")), (sent, sent), "nothing was set back");

    // What the kernel counted is lost; what was published is not.
    field.daemon.stop()?;
    field.flush_ruleset()?;
    field.start()?;
    assert_eq!(shown(&field)?, both(sent));
    let sent = fire(&field, 1)?;
    eventually("the figures go on from there", || Ok(shown(&field)? == both(sent)))
}

#[test]
fn a_stored_snapshot_is_enforced_while_the_manifest_directory_is_gone() -> Result<()> {
    let mut field = Field::new("snapshot", &with(&[&reach("web", 80)]))?;
    field.daemon.stop()?;
    field.flush_ruleset()?;
    let (manifests, elsewhere) = (field.daemon.manifests(), field.daemon.beside("elsewhere"));
    fs::rename(&manifests, &elsewhere)?;
    field.launch(&[])?;
    let status = field.daemon.wait_until("it says what it waits for", |status| {
        controller(status)["ruleset"] == "snapshot"
            && controller(status)["waitingFor"].as_str().is_some_and(|text| text.contains("directory"))
    })?;
    let said = headline(&status);
    ensure!(said.contains("ENFORCING a stale snapshot") && said.contains("waiting for directory"), "{said}");
    assert_eq!(field.fire(&[out("1.2.3.4", 80), out("1.2.3.4", 81)])?, [true, false]);
    fs::rename(&elsewhere, &manifests)?;
    let status = field.wait_for_ruleset("objects")?;
    assert_eq!(controller(&status)["waitingFor"], serde_json::Value::Null);
    Ok(())
}

/// What the service manager is told until `last` comes: one line for each variable.
fn told_until(socket: &UnixDatagram, last: &str) -> Result<Vec<String>> {
    let mut told = Vec::new();
    socket.set_read_timeout(Some(PATIENCE))?;
    while !told.iter().any(|line| line == last) {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).with_context(|| format!("told: {told:?}"))?;
        told.extend(std::str::from_utf8(&buffer[..length])?.lines().map(str::to_owned));
    }
    Ok(told)
}

#[test]
fn ready_follows_the_first_committed_ruleset_of_any_kind() -> Result<()> {
    let mut field = Field::bare("ready")?;
    let path = field.daemon.beside("notify.sock");
    let socket = UnixDatagram::bind(&path)?;
    let variable = path.to_str().context("a path in UTF-8")?;
    // Nothing to enforce and nobody to ask: the base ruleset is one.
    fs::remove_dir(field.daemon.manifests())?;
    field.launch(&[("NOTIFY_SOCKET", variable)])?;
    let told = told_until(&socket, "READY=1")?;
    ensure!(field.listing()?.contains("policy drop"), "READY=1 came before the rules");
    ensure!(told[0].starts_with("STATUS=ENFORCING the base ruleset"), "{told:?}");
    field.daemon.process()?.signal(nix::sys::signal::Signal::SIGTERM)?;
    told_until(&socket, "STOPPING=1")?;
    field.daemon.process()?.wait(PATIENCE)?;
    field.flush_ruleset()?;

    // Killed as it hands the kernel its first transaction, it has not said so.
    field.launch(&[("NOTIFY_SOCKET", variable), ("FW_FAULT", "before-send")])?;
    let status = field.daemon.process()?.wait(PATIENCE)?;
    ensure!(!status.success(), "before-send did not kill it");
    socket.set_nonblocking(true)?;
    let early = socket.recv(&mut [0; 4096]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(field.listing()?, "");
    Ok(())
}

#[test]
fn an_orphaned_table_is_adopted_as_it_is() -> Result<()> {
    let mut field = Field::new("orphan", &with(&[&reach("web", 80)]))?;
    field.daemon.kill()?;
    let rules = field.listing()?;
    nft::load(&field.lab.firewall, "add counter inet firewall nobodys")
        .context("an orphan has no owner, so others may write")?;
    nft::load(&field.lab.firewall, "delete counter inet firewall nobodys")?;
    // Nothing is known any more but what the kernel holds.
    fs::remove_dir_all(field.daemon.state())?;
    let (manifests, elsewhere) = (field.daemon.manifests(), field.daemon.beside("elsewhere"));
    fs::rename(&manifests, &elsewhere)?;
    field.launch(&[])?;
    field.wait_for_ruleset("adopted")?;
    field.expect_rules(&rules, "adopted")?;
    assert_eq!(field.fire(&[out("1.2.3.4", 80), out("1.2.3.4", 81)])?, [true, false]);
    let refused = nft::load(&field.lab.firewall, "delete table inet firewall");
    ensure!(format!("{:#}", refused.unwrap_err()).contains("not permitted"), "it has an owner again");
    fs::rename(&elsewhere, &manifests)?;
    let status = field.wait_for_ruleset("objects")?;
    field.expect_rules(&rules, "with the manifests back")?;
    assert_eq!(controller(&status)["transactions"]["commits"], 0, "it was what the manifests mean");
    assert_eq!(field.counters()?.comment(WEB), 1, "no counter was set back");
    Ok(())
}

/// A table as the Go controller leaves it: the same names and comments, everything in one chain.
const GO_TABLE: &str = r#"
table inet firewall {
	set internal_prefixes {
		type ipv4_addr
		flags interval
		auto-merge
		elements = { 10.0.0.0/8 }
	}
	set cluster_prefixes {
		type ipv4_addr
		flags interval
		auto-merge
		elements = { 10.0.16.0/22 }
	}
	counter internal_in { }
	counter internal_out { }
	counter external_in { }
	counter external_out { }
	counter drop_total { }
	counter drop_ratelimit { }
	chain forward {
		type filter hook forward priority 1; policy drop;
		oifname { "vlan104009", "vrf104009" } ip saddr @internal_prefixes counter name internal_in comment "count internal traffic incoming"
		iifname { "vlan104009", "vrf104009" } ip daddr @internal_prefixes counter name internal_out comment "count internal traffic outgoing"
		oifname { "vlan104009", "vrf104009" } ip saddr != @internal_prefixes counter name external_in comment "count external traffic incoming"
		iifname { "vlan104009", "vrf104009" } ip daddr != @internal_prefixes counter name external_out comment "count external traffic outgoing"
		ct state established,related counter accept comment "accept established connections"
		ct state invalid counter drop comment "drop packets with invalid ct state"
		icmp type echo-request limit rate over 10/second burst 4 packets counter drop comment "drop ping floods"
		icmp type { destination-unreachable, time-exceeded, parameter-problem } counter accept comment "accept icmp"
		ip saddr { 203.0.113.0/24 } tcp dport { 8080 } counter accept comment "accept traffic for k8s network policy web tcp"
		ip saddr == @cluster_prefixes ip daddr { 203.0.113.2/32 } tcp dport { 7000 } counter accept comment "accept traffic for np web tcp"
		counter name drop_total
		limit rate 10/second counter log prefix "nftables-firewall-dropped: " group 1
		counter comment "count and log dropped packets"
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
	}
}
"#;

#[test]
fn a_table_of_the_go_controller_is_replaced_in_one_transaction_under_traffic() -> Result<()> {
    let mut field = Field::bare("upgrade")?;
    let web = policy(
        "web",
        "{egress: [{to: [{cidr: 203.0.113.2/32}], ports: [{port: 7000}]}], \
         ingress: [{from: [{cidr: 203.0.113.0/24}], ports: [{port: 8080}]}]}",
    );
    field.daemon.write("all.yaml", &with(&[&web]))?;
    nft::load(&field.lab.firewall, GO_TABLE)?;
    let (cluster, internet) = (&field.lab.cluster().ns, &field.lab.internet().ns);
    let server = Server::tcp(internet, &[at(INTERNET[0], 7000), at(INTERNET[0], 7001)], Service::Echo)?;
    let inner = Server::tcp(cluster, &[at(CLUSTER[0], 8080)], Service::Echo)?;
    let [allowed, denied] = [server.addresses()[0], server.addresses()[1]];
    let steady = Steady::tcp(cluster, None, allowed, 5, Duration::from_millis(5))?;
    assert!(probe::tcp(internet, None, inner.addresses()[0], PATIENCE)?.passed());
    assert!(!probe::tcp(cluster, None, denied, SILENCE)?.passed());
    let before = field.counters()?;
    assert_eq!(before.comment(WEB), 5);
    ensure!(before.named("drop_total") > 0 && before.named("external_out") > 0, "{before:?}");

    let mut command = field.lab.firewall.command("nft");
    command.arg("monitor");
    let monitor = fw_testkit::Process::spawn(command)?;
    // It prints nothing until something happens: a table of the test's own.
    eventually("nft listens", || {
        nft::load(&field.lab.firewall, "add table ip probe\ndelete table ip probe")?;
        Ok(monitor.lines().iter().any(|line| line.contains("table ip probe")))
    })?;
    let heard = monitor.lines().len();
    field.start()?;
    monitor.wait_for_line("chain inet firewall egress-web-tcp", PATIENCE)?;
    let lines = monitor.lines();
    let position = |what: &str| lines.iter().skip(heard).position(|line| line.starts_with(what));
    let gone = position("delete table inet firewall");
    let there =
        position("create chain inet firewall forward").or(position("add chain inet firewall forward"));
    let (Some(gone), Some(there)) = (gone, there) else { bail!("nft heard:\n{}", lines.join("\n")) };
    let between = &lines[heard + gone.min(there)..=heard + gone.max(there)];
    ensure!(
        !between.iter().any(|line| line.starts_with("# new generation")),
        "not one transaction: {between:?}"
    );

    let after = field.counters()?;
    for comment in [WEB, "accept traffic for k8s network policy web tcp"] {
        assert_eq!(after.comment(comment), before.comment(comment), "{comment}");
    }
    let established = "accept established connections";
    ensure!(after.comment(established) >= before.comment(established), "{before:?} {after:?}");
    for (name, count) in &before.named {
        ensure!(after.named(name) >= count.packets, "{name}: {count:?}, then {}", after.named(name));
    }
    field.daemon.wait_until("the status goes on from there", |status| {
        published(status, "accept", WEB) == Some(before.comment(WEB))
    })?;
    let (cluster, internet) = (&field.lab.cluster().ns, &field.lab.internet().ns);
    assert!(probe::tcp(cluster, None, allowed, PATIENCE)?.passed());
    assert!(probe::tcp(internet, None, inner.addresses()[0], PATIENCE)?.passed());
    assert!(!probe::tcp(cluster, None, denied, SILENCE)?.passed());
    assert_eq!(field.counters()?.comment(WEB), before.comment(WEB) + 1);
    assert!(!probe::tcp(internet, None, at(CLUSTER[0], 8081), SILENCE)?.passed());
    let report = steady.stop()?;
    assert_eq!((report.flows, report.breaks.as_slice()), (5, &[][..]));
    Ok(())
}
