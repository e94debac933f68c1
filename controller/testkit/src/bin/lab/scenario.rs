//! The probes, in the order in which they are shown.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::nft;
use fw_testkit::topology::{Lab, LabSpec};
use fw_testkit::traffic::craft::{Body, Crafted};
use fw_testkit::traffic::range::{Range, Shot};
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::steady::Steady;
use fw_testkit::traffic::{meter, probe};

use crate::stage::{Ask, At, Check, DENIED, ESTABLISHED, RATE_LIMIT, SNAT, Seen, Stage, TRANSLATED};
use crate::table::thousands;

const ALLOW_WEB: &str = "accept traffic for np allow-web tcp";
const ALLOW_DNS: &str = "accept traffic for np allow-dns udp";
const ALLOW_PARTNER: &str = "accept traffic for np allow-partner tcp";
const ALLOW_PARTNER_UDP: &str = "accept traffic for np allow-partner udp";
const ALLOW_SSH: &str = "accept traffic for k8s network policy allow-ssh-in tcp";
const SERVICE: &str = "accept traffic for k8s service shop/web";
const ICMP: &str = "accept icmp";

const OUT: (At, At) = (At::Cluster, At::Internet);
const IN: (At, At) = (At::Internet, At::Cluster);
/// Interfaces of the firewall, as `explain` wants them.
const LEAVING: &str = "in vrf104009 out vlan179";

const PINGS: u16 = 300;
const BURST: u16 = 1000;
const MIB: f64 = 1024.0 * 1024.0;
/// What `deploy/examples/lab/firewall.yaml` limits the partner's network to, in MiB a second.
const LIMIT: f64 = 4.0;

/// The world of `deploy/examples/lab/`.
pub(crate) fn world() -> Result<LabSpec> {
    let far = ["1.2.3.4", "1.2.3.200", "9.9.9.9", "1.1.1.1", "2001:db8:ffff::1"];
    let far = far.map(str::parse).into_iter().collect::<Result<Vec<IpAddr>, _>>()?;
    Ok(LabSpec::standard("demo")?.with_second_outside()?.with_internet_addresses(&far))
}

/// Servers of all machines, also behind ports that nothing opens: that they are not reached is the firewall's doing.
pub(crate) struct Servers {
    _echo: Vec<Server>,
    internet_sink: Server,
    partner_sink: Server,
}

impl Servers {
    /// Starts them.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let addresses =
            |list: &[&str]| list.iter().map(|text| text.parse()).collect::<Result<Vec<SocketAddr>, _>>();
        let partner = &lab.outside.get(1).context("the lab has no partner")?.ns;
        let (internet, cluster) = (&lab.internet().ns, &lab.cluster().ns);
        let far = [
            "1.2.3.4:80",
            "1.2.3.4:443",
            "1.2.3.4:8080",
            "1.2.3.4:8081",
            "1.2.3.4:8443",
            "1.2.3.200:443",
            "[2001:db8:ffff::1]:80",
            "[2001:db8:ffff::1]:443",
        ];
        let near = [
            "198.51.100.10:443",
            "[2001:db8:1b::10]:443",
            "198.51.100.10:80",
            "10.0.16.2:22",
            "10.0.16.2:443",
        ];
        Ok(Self {
            _echo: vec![
                Server::tcp(internet, &addresses(&far)?, Service::Echo)?,
                Server::udp(internet, &addresses(&["9.9.9.9:53", "1.1.1.1:53"])?)?,
                Server::tcp(cluster, &addresses(&near)?, Service::Echo)?,
            ],
            internet_sink: Server::tcp(internet, &addresses(&["1.2.3.4:8000"])?, Service::Sink)?,
            partner_sink: Server::tcp(partner, &addresses(&["192.0.2.2:7000"])?, Service::Sink)?,
        })
    }
}

/// What may leave.
pub(crate) fn leaving(stage: &mut Stage<'_>) -> Result<()> {
    stage.table.heading("From the cluster to the internet");
    stage.ask(Ask::Tcp, OUT, "1.2.3.4:443", "", Some(ALLOW_WEB))?;
    stage.ask(Ask::Tcp, OUT, "1.2.3.4:80", "(port not opened)", None)?;
    stage.ask(Ask::Tcp, OUT, "1.2.3.200:443", "(in the except block)", None)?;
    stage.ask(Ask::Tcp, OUT, "1.2.3.4:8080", "(last port of a range)", Some(ALLOW_WEB))?;
    stage.ask(Ask::Tcp, OUT, "1.2.3.4:8081", "(one port further)", None)?;
    stage.ask(Ask::Udp, OUT, "9.9.9.9:53", "", Some(ALLOW_DNS))?;
    stage.ask(Ask::Udp, OUT, "1.1.1.1:53", "(another resolver)", None)?;
    stage.ask(Ask::Tcp, OUT, "[2001:db8:ffff::1]:443", "", Some(ALLOW_WEB))?;
    stage.ask(Ask::Tcp, OUT, "[2001:db8:ffff::1]:80", "", None)?;
    ping(stage)?;
    error(stage)?;
    translation(stage)
}

/// What may enter.
pub(crate) fn entering(stage: &mut Stage<'_>) -> Result<()> {
    stage.table.heading("From outside into the cluster");
    stage.ask(Ask::Tcp, IN, "198.51.100.10:443", "(LoadBalancer)", Some(SERVICE))?;
    stage.ask(Ask::Tcp, IN, "[2001:db8:1b::10]:443", "(LoadBalancer)", Some(SERVICE))?;
    stage.ask(Ask::Tcp, IN, "198.51.100.10:80", "(not its port)", None)?;
    stage.ask(Ask::Tcp, (At::Partner, At::Cluster), "198.51.100.10:443", "(not its source)", None)?;
    stage.ask(Ask::Tcp, IN, "10.0.16.2:22", "", Some(ALLOW_SSH))?;
    stage.ask(Ask::Tcp, IN, "10.0.16.2:443", "(around the LB)", None)
}

fn ping(stage: &mut Stage<'_>) -> Result<()> {
    let packet = format!("icmp 10.0.16.2 -> 1.2.3.4 {LEAVING}");
    let check = Check {
        probe: "ping 1.2.3.4",
        expected: "passes",
        rules: &[(ICMP, 1..=1)],
        packet: Some((&packet, true)),
    };
    stage.check(&check, |stage| {
        let outcome =
            probe::ping(&stage.lab.cluster().ns, None, [1, 2, 3, 4].into(), Duration::from_secs(5))?;
        Ok(Seen::new(if outcome.passed() { "echo reply" } else { "nothing" }, outcome.passed()))
    })
}

/// Nobody listens there: the partner's machine says so with an ICMP error, which must find its way back.
fn error(stage: &mut Stage<'_>) -> Result<()> {
    let check = Check {
        probe: "UDP 192.0.2.2:9 (nobody listens there)",
        expected: "error",
        rules: &[(ICMP, 1..=1), (ALLOW_PARTNER_UDP, 1..=1)],
        packet: None,
    };
    stage.check(&check, |stage| {
        let to = "192.0.2.2:9".parse()?;
        Ok(match probe::udp(&stage.lab.cluster().ns, None, to, Duration::from_secs(5))? {
            probe::Outcome::Refused(_) => Seen::new("ICMP port unreachable", true),
            other => Seen::new(format!("{other:?}"), false),
        })
    })
}

/// Many connections use all addresses.
fn translation(stage: &mut Stage<'_>) -> Result<()> {
    const CONNECTIONS: u64 = 24;
    let check = Check {
        probe: "24 connections to 1.2.3.4:443",
        expected: "both IPs",
        rules: &[(SNAT, CONNECTIONS..=CONNECTIONS), (ALLOW_WEB, CONNECTIONS..=CONNECTIONS)],
        packet: None,
    };
    stage.check(&check, |stage| {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..CONNECTIONS {
            let to = "1.2.3.4:443".parse()?;
            let outcome = probe::tcp(&stage.lab.cluster().ns, None, to, Duration::from_secs(5))?;
            *seen.entry(outcome.seen_as().map_or("nothing".to_owned(), |ip| ip.to_string())).or_default() +=
                1;
        }
        let well = seen.keys().eq(TRANSLATED);
        let text: Vec<String> = seen
            .iter()
            .map(|(address, times)| {
                format!("{times} from {}", address.strip_prefix("203.0.113").unwrap_or(address))
            })
            .collect();
        Ok(Seen::new(text.join(", "), well))
    })
}

/// What must not pass whatever policies say, as crafted packets.
pub(crate) fn attacks(stage: &mut Stage<'_>) -> Result<()> {
    stage.table.heading("Odd packets and floods, sent from the cluster");
    let mut range = Range::new(stage.lab)?;
    let (own, far) = (SocketAddr::new(stage.lab.cluster().v4(), 4711), SocketAddr::from(([1, 2, 3, 4], 443)));
    let spoofed = Crafted::syn(([172, 16, 9, 9], 4711).into(), far);
    let null = Crafted::tcp(own, far, 0);
    let gre = Crafted::new(own.ip(), far.ip(), Body::Other { protocol: 47 });
    let odd = [
        (
            "TCP with the source 172.16.9.9 (spoofed)",
            "drop spoofed packets",
            "tcp 172.16.9.9:4711",
            "1.2.3.4:443",
            "",
            spoofed,
        ),
        (
            "TCP without a flag (null scan)",
            "drop packets with invalid ct state",
            "tcp 10.0.16.2:4711",
            "1.2.3.4:443",
            " state invalid",
            null,
        ),
        ("GRE", "drop unsupported protocols", "proto 47 10.0.16.2", "1.2.3.4", "", gre),
    ];
    for (what, rule, source, destination, state, packet) in odd {
        let words = format!("{source} -> {destination} {LEAVING}{state}");
        let check = Check {
            probe: what,
            expected: "dropped",
            rules: &[(rule, 1..=1)],
            packet: Some((&words, false)),
        };
        stage.check(&check, |_| {
            let arrived = range.fire(&[Shot { from: 0, packet }])?.concat();
            // The drop log shows ten a second: leave it time for the next.
            std::thread::sleep(Duration::from_millis(150));
            Ok(Seen::new(if arrived.is_empty() { "nothing" } else { "the packet" }, arrived.is_empty()))
        })?;
    }
    flood(stage, &mut range, own.ip(), far.ip())?;
    burst(stage, &mut range, own)
}

fn flood(stage: &mut Stage<'_>, range: &mut Range<'_>, own: IpAddr, far: IpAddr) -> Result<()> {
    let shots: Vec<Shot> =
        (0..PINGS).map(|id| Shot { from: 0, packet: Crafted::echo(own, far, id) }).collect();
    let probe = format!("{PINGS} pings at once");
    let most = u64::from(PINGS);
    let check = Check {
        probe: &probe,
        expected: "limited",
        rules: &[("drop ping floods", most * 8 / 10..=most - 1), (ICMP, 1..=most / 5)],
        packet: None,
    };
    stage.check(&check, |_| {
        let passed = range.fire(&shots)?.iter().filter(|arrivals| !arrivals.is_empty()).count();
        Ok(Seen::new(format!("{passed} of {PINGS}"), (1..usize::from(PINGS) / 5).contains(&passed)))
    })
}

fn burst(stage: &mut Stage<'_>, range: &mut Range<'_>, own: SocketAddr) -> Result<()> {
    let packet = Crafted::udp(own, ([198, 18, 0, 1], 9).into());
    let shots: Vec<Shot> = (0..BURST).map(|_| Shot { from: 0, packet: packet.clone() }).collect();
    let probe = format!("{} UDP packets to 198.18.0.1:9", thousands(BURST.into()));
    let check = Check {
        probe: &probe,
        expected: "dropped",
        rules: &[(DENIED, BURST.into()..=BURST.into())],
        packet: Some((&format!("udp {own} -> 198.18.0.1:9 {LEAVING}"), false)),
    };
    stage.check(&check, |_| {
        let passed = range.fire(&shots)?.iter().filter(|arrivals| !arrivals.is_empty()).count();
        Ok(Seen::new(
            if passed == 0 { "nothing".to_owned() } else { format!("{passed} packets") },
            passed == 0,
        ))
    })
}

/// One network has a rate limit, the other has none.
pub(crate) fn rates(stage: &mut Stage<'_>, servers: &Servers) -> Result<()> {
    stage.table.heading("Bulk transfers from the cluster, as the server counts them");
    let second = Duration::from_secs(1);
    let upload = |stage: &Stage<'_>, sink: &Server, warm_up, time| -> Result<f64> {
        let to = *sink.addresses().first().context("a sink listens somewhere")?;
        Ok(meter::upload(&stage.lab.cluster().ns, None, sink, to, warm_up, time)?.per_second() / MIB)
    };
    let check = Check {
        probe: "TCP to the internet, 1.2.3.4:8000",
        expected: "no limit",
        rules: &[(ALLOW_WEB, 1..=1)],
        packet: None,
    };
    stage.check(&check, |stage| {
        let rate = upload(stage, &servers.internet_sink, second / 5, second / 2)?;
        Ok(Seen::new(format!("{rate:.0} MiB/s"), rate > 2.0 * LIMIT))
    })?;
    let check = Check {
        probe: "TCP to the partner, 192.0.2.2:7000",
        expected: "4 MiB/s",
        rules: &[(RATE_LIMIT, 1..=u64::MAX), (ALLOW_PARTNER, 1..=1)],
        packet: None,
    };
    stage.check(&check, |stage| {
        let rate = upload(stage, &servers.partner_sink, second, 4 * second)?;
        Ok(Seen::new(format!("{rate:.2} MiB/s"), (0.9 * LIMIT..1.1 * LIMIT).contains(&rate)))
    })?;
    settle(stage)
}

/// Waits until the kernel has sent what the closed connection had still to send: the limit goes on dropping of it.
fn settle(stage: &Stage<'_>) -> Result<()> {
    let dropped = || Ok::<u64, anyhow::Error>(nft::counters(&stage.lab.firewall)?.named(RATE_LIMIT));
    for _ in 0..20 {
        let before = dropped()?;
        std::thread::sleep(Duration::from_millis(400));
        if dropped()? == before {
            return Ok(());
        }
    }
    bail!("the closed connection to the partner still sends after 8 s")
}

/// Manifests change while connections are at work.
pub(crate) fn edits(stage: &mut Stage<'_>) -> Result<()> {
    stage.table.heading("Manifests change while ten connections to 1.2.3.4:443 are at work");
    stage.ask(Ask::Tcp, OUT, "1.2.3.4:8443", "before the edit", None)?;
    let begin = stage.read()?;
    let steady =
        Steady::tcp(&stage.lab.cluster().ns, None, "1.2.3.4:443".parse()?, 10, Duration::from_millis(10))?;
    let counted = nft::counters(&stage.lab.firewall)?.comment(ALLOW_WEB);
    replace_port(stage)?;
    stage.ask(Ask::Tcp, OUT, "1.2.3.4:8443", "after the edit", Some(ALLOW_WEB))?;
    stage.ask(Ask::Tcp, OUT, "1.2.3.4:443", "after the edit", None)?;
    let check = Check {
        probe: "counter of allow-web across the edit",
        expected: "goes on",
        rules: &[],
        packet: None,
    };
    stage.check(&check, |stage| {
        let now = nft::counters(&stage.lab.firewall)?.comment(ALLOW_WEB);
        Ok(Seen::new(format!("{counted}, then {now}"), now == counted + 1))
    })?;
    bad_manifest(stage)?;
    let check = Check {
        probe: "the ten connections, all the time",
        expected: "unbroken",
        // A message and its answer each; the probes of this time count elsewhere too.
        rules: &[(ESTABLISHED, 200..=u64::MAX), (ALLOW_WEB, 11..=11), (DENIED, 2..=4)],
        packet: None,
    };
    stage.check_since(&begin, &check, |_| {
        let report = steady.stop()?;
        let lives = report.flows - report.breaks.len();
        let well = lives == 10 && report.answered == report.sent && report.sent > 100;
        let text = format!("{lives} alive, {} echoes", thousands(report.answered));
        Ok(Seen { text, complaint: (!well).then(|| format!("{report:?}")) })
    })
}

fn replace_port(stage: &mut Stage<'_>) -> Result<()> {
    const FILE: &str = "policies.yaml";
    let text = stage.controller.manifest(FILE)?;
    ensure!(text.matches("port: 443}").count() == 1, "{FILE} is not as this lab knows it");
    let edited = text.replace("port: 443}", "port: 8443}");
    let took = stage.controller.after_change(|| stage.controller.edit(FILE, &edited))?;
    let messages = stage.controller.transactions("lastMessages")?;
    stage.table.remark(&format!(
        "--  {FILE}: allow-web opens 8443 instead of 443; in force {} ms later, by {messages} netlink messages",
        took.as_millis()
    ));
    Ok(())
}

/// What is wrong costs itself and nothing else.
fn bad_manifest(stage: &mut Stage<'_>) -> Result<()> {
    const BAD: &str = "bad.yaml";
    let text = "apiVersion: metal-stack.io/v1\nkind: ClusterwideNetworkPolicy\n\
                metadata: {name: bad, namespace: firewall}\n\
                spec: {egress: [{to: [{cidr: 0.0.0.0/0}], ports: [{protocol: TCP, port: 443, endPort: 80}]}]}\n";
    let mut findings = Vec::new();
    let check =
        Check { probe: "a policy with endPort before port", expected: "finding", rules: &[], packet: None };
    stage.check(&check, |stage| {
        stage.controller.edit(BAD, text)?;
        stage.controller.wait_until("a finding", |status| {
            !status["status"]["controller"]["findings"].as_array().is_none_or(Vec::is_empty)
        })?;
        findings = stage.controller.findings()?;
        Ok(Seen::new(
            format!("{} finding", findings.len()),
            findings.len() == 1 && findings[0].contains("endPort"),
        ))
    })?;
    for finding in findings {
        stage.table.remark(&format!("--  {finding}"));
    }
    stage.ask(Ask::Tcp, OUT, "1.2.3.4:443", "it opens nothing", None)?;
    stage.controller.remove(BAD)?;
    stage.controller.wait_until("no finding", |status| {
        status["status"]["controller"]["findings"].as_array().is_none_or(Vec::is_empty)
    })
}
