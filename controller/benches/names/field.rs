//! Labs with DNS: the real binary in the firewall of some, rules by `nft` in another.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Client, Query, Reply, Scripted, Unique, awkward};
use fw_testkit::topology::{Lab, LabSpec, RESOLVER_ADDRESSES, SCRIPTED_ADDRESSES, SCRIPTED_ZONE};
use fw_testkit::{BpfMount, Netns, Process, WorkDir, nft};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_firewall-controller");
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that closes what it accepts.
pub(crate) const CLOSE: u16 = 8080;
/// A server that reads.
pub(crate) const SINK: u16 = 8081;
/// A server that writes.
pub(crate) const SOURCE: u16 = 8082;
/// Where the lab's resolver answers.
pub(crate) const RESOLVER: &str = RESOLVER_ADDRESSES[0];

/// The three ports to [`awkward::PLAIN`] and to every name of the scripted zone, and to one network without a name.
const MANIFESTS: &str = "
apiVersion: metal-stack.io/v1
kind: Firewall
metadata: {name: firewall, namespace: firewall}
spec:
  fastpath: {mode: MODE}
  dnsServerAddress: 203.0.113.53
  internalprefixes: [10.0.0.0/8]
  firewallNetworks:
  - {networkid: cluster, networktype: privateprimaryunshared, vrf: 104009, prefixes: [10.0.16.0/22, '2001:db8:10::/48']}
  - {networkid: internet, networktype: external, vrf: 179, prefixes: [203.0.113.0/24, '2001:db8:179::/64']}
---
apiVersion: metal-stack.io/v1
kind: ClusterwideNetworkPolicy
metadata: {name: named, namespace: firewall}
spec:
  egress:
  - toFQDNs: [{matchName: www.example.test}, {matchPattern: '*.scripted.test'}]
    ports: [{protocol: TCP, port: 8080, endPort: 8082}]
---
apiVersion: metal-stack.io/v1
kind: ClusterwideNetworkPolicy
metadata: {name: numbered, namespace: firewall}
spec:
  egress:
  - to: [{cidr: 203.0.113.0/24}]
    ports: [{protocol: TCP, port: 8080, endPort: 8082}]
";

/// The same for people who write rules: one concatenated set.
const RULES: &str = "
table inet plain {
  set allowed {
    type ipv4_addr . inet_proto . inet_service
    flags timeout
    elements = {
      198.18.0.1 . tcp . 8080 timeout 1h, 198.18.0.1 . tcp . 8081 timeout 1h, 198.18.0.1 . tcp . 8082 timeout 1h,
      203.0.113.2 . tcp . 8080 timeout 1h, 203.0.113.53 . udp . 53 timeout 1h
    }
  }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related counter accept
    ip daddr . meta l4proto . th dport @allowed counter accept
    counter comment \"dropped\"
  }
}
";

/// The manifests without the fast path, for measurements that need no lab.
pub(crate) fn manifests(mode: &str) -> String {
    MANIFESTS.replace("MODE", mode)
}

/// An address that [`awkward::PLAIN`] has.
pub(crate) fn named(port: u16) -> SocketAddr {
    SocketAddr::new(awkward::addresses_of(1)[0], port)
}

/// A lab, and names that have an address each.
fn lab(label: &str) -> Result<(Lab, Scripted)> {
    let lab = Lab::new(&LabSpec::standard(label)?.with_dns()?)?;
    let addresses = SCRIPTED_ADDRESSES.map(str::parse::<IpAddr>);
    let addresses = addresses.into_iter().collect::<Result<Vec<_>, _>>()?;
    let scripted = Scripted::at(&lab.internet().ns, &addresses)?;
    let unique = Unique { v4: awkward::V4.parse()?, v6: awkward::V6.parse()?, ttl: 300 };
    scripted.below(SCRIPTED_ZONE, Reply::Unique(unique))?;
    Ok((lab, scripted))
}

/// A lab whose firewall runs the controller. (Fields go in this order.)
pub(crate) struct Field {
    _process: Process,
    directory: WorkDir,
    bpf: BpfMount,
    _scripted: Scripted,
    pub(crate) lab: Lab,
}

impl Field {
    /// In a mode of the data path; returns once names are enforced and [`awkward::PLAIN`] is learned.
    pub(crate) fn start(mode: &str) -> Result<Self> {
        let (lab, scripted) = lab(&format!("bench-{mode}"))?;
        let (directory, bpf) = (WorkDir::new(&format!("bench-{mode}"))?, BpfMount::new("bench")?);
        let objects = directory.path().join("manifests");
        fs::create_dir(&objects)?;
        fs::write(objects.join("all.yaml"), manifests(mode))?;
        let mut command = lab.firewall.command(BINARY);
        command.arg("run").arg("--manifests").arg(objects);
        command.arg("--state-dir").arg(directory.path().join("state"));
        command.arg("--control-socket").arg(directory.path().join("control"));
        command.arg("--bpf-dir").arg(bpf.path().join("pins"));
        let field = Self { _process: Process::spawn(command)?, directory, bpf, _scripted: scripted, lab };
        field.wait_until_armed().with_context(|| format!("in mode {mode}"))?;
        field.learn()?;
        Ok(field)
    }

    fn wait_until_armed(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let armed = || {
            let set = self.lab.firewall.output("nft", &["list", "set", "inet", "firewall", "dns_armed"]);
            set.is_ok_and(|text| text.contains("udp "))
        };
        while !armed() {
            ensure!(Instant::now() < deadline, "names are not enforced within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks for [`awkward::PLAIN`], so that its address is open for as long as its TTL.
    pub(crate) fn learn(&self) -> Result<()> {
        let mut client = Client::new(&self.lab.cluster().ns, SocketAddr::new(RESOLVER.parse()?, 53))?;
        let answer = client.ask(&Query::new(1, awkward::PLAIN, kind::A)?, PATIENCE)?;
        let addresses = answer.map(|answer| answer.ips()).unwrap_or_default();
        ensure!(addresses == [named(0).ip()], "the lab's DNS says {addresses:?}");
        Ok(())
    }

    /// Where a program of the data path is pinned.
    pub(crate) fn program(&self, name: &str) -> std::path::PathBuf {
        self.bpf.path().join("pins/programs").join(name)
    }

    /// Packets that no policy allowed, wherever they were dropped.
    pub(crate) fn dropped(&self) -> Result<u64> {
        // The status does not read the kernel again within 50 ms of the last reading.
        std::thread::sleep(Duration::from_millis(60));
        let mut command = std::process::Command::new(BINARY);
        command.args(["status", "-o", "json", "--control-socket"]).arg(self.directory.path().join("control"));
        let output = command.output()?;
        let status: Value = serde_json::from_slice(&output.stdout).context("status is no JSON")?;
        let places = status["status"]["stats"]["drops"]["policy"].as_object();
        let counts = places.into_iter().flatten().map(|(_, count)| count["packets"].as_u64());
        counts.sum::<Option<u64>>().with_context(|| format!("no drops in the status: {status}"))
    }
}

/// A lab whose firewall has rules by `nft` and nothing else.
pub(crate) struct Plain {
    _scripted: Scripted,
    pub(crate) lab: Lab,
}

impl Plain {
    pub(crate) fn start() -> Result<Self> {
        let (lab, scripted) = lab("bench-plain")?;
        nft::load(&lab.firewall, RULES)?;
        Ok(Self { _scripted: scripted, lab })
    }
}

/// The cluster of a lab.
pub(crate) fn cluster(lab: &Lab) -> &Netns {
    &lab.cluster().ns
}
