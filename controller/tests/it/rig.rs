//! A lab whose firewall enforces manifests: objects in, rules in a real kernel, packets through it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use fw_intake::{HostFacts, Intake, Objects, intake, parse};
use fw_nft::{Kernel, NetlinkKernel, Table};
use fw_policy::PolicySet;
use fw_ruleset::{Compiled, Counts, DEFAULT_CELL_LIMIT, Ruleset, compile, plan};
use fw_testkit::nft::Counters;
use fw_testkit::topology::{Lab, LabSpec, Machine};
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::range::{Arrival, Range, Shot};

/// The Firewall of the standard lab, in the last v1 spelling; `{}` in a spec takes more fields.
pub(crate) const FIREWALL: &str = "
apiVersion: metal-stack.io/v1
kind: Firewall
metadata: {name: firewall, namespace: firewall}
spec:
  internalprefixes: [10.0.0.0/8]
  firewallNetworks:
  - {networkid: cluster, networktype: privateprimaryunshared, vrf: 104009, prefixes: [10.0.16.0/22, '2001:db8:10::/48']}
  - {networkid: internet, networktype: external, vrf: 179, prefixes: [203.0.113.0/24, '2001:db8:179::/64']}
  - {networkid: partner, networktype: external, vrf: 178, prefixes: [192.0.2.0/24]}
";

/// A Firewall with more lines of its spec (indented by two blanks).
pub(crate) fn firewall_with(lines: &str) -> String {
    format!("{FIREWALL}{lines}\n")
}

/// A policy `name` with a spec in YAML flow style.
pub(crate) fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: metal-stack.io/v1\nkind: ClusterwideNetworkPolicy\n\
         metadata: {{name: {name}, namespace: firewall}}\nspec: {spec}\n"
    )
}

/// Documents of one file.
pub(crate) fn documents(parts: &[&str]) -> String {
    parts.join("\n---\n")
}

/// What manifests mean on a machine that is not known.
pub(crate) fn judge(yaml: &str, facts: &HostFacts) -> Result<Intake> {
    Ok(intake(&Objects::new(&parse("test.yaml", yaml.as_bytes())?), facts))
}

/// A lab and the kernel of its firewall.
pub(crate) struct Rig {
    pub(crate) lab: Lab,
    kernel: NetlinkKernel,
    current: Option<Ruleset>,
}

impl Rig {
    /// The standard lab with rules from manifests.
    pub(crate) fn new(label: &str, yaml: &str) -> Result<Self> {
        Self::on(&LabSpec::standard(label)?, yaml)
    }

    /// Any lab with rules from manifests.
    pub(crate) fn on(spec: &LabSpec, yaml: &str) -> Result<Self> {
        let mut rig = Self::bare(spec)?;
        rig.apply(yaml)?;
        Ok(rig)
    }

    /// A lab without any rule.
    pub(crate) fn bare(spec: &LabSpec) -> Result<Self> {
        let lab = Lab::new(spec)?;
        let mut kernel = lab.firewall.run(NetlinkKernel::open)??;
        let Table::Absent = kernel.read()? else { bail!("a new namespace has a table already") };
        Ok(Self { lab, kernel, current: None })
    }

    /// Makes manifests the rules in force; only the difference is sent.
    pub(crate) fn apply(&mut self, yaml: &str) -> Result<Intake> {
        self.apply_with(yaml, &HostFacts::default())
    }

    /// As [`Rig::apply`], on a machine of which facts are known.
    pub(crate) fn apply_with(&mut self, yaml: &str, facts: &HostFacts) -> Result<Intake> {
        let judged = judge(yaml, facts)?;
        self.apply_set(&judged.set)?;
        Ok(judged)
    }

    /// Makes a policy set the rules in force.
    pub(crate) fn apply_set(&mut self, set: &PolicySet) -> Result<Compiled> {
        let compiled = compile(set, DEFAULT_CELL_LIMIT);
        let plan = plan(self.current.as_ref(), &compiled.ruleset, &Counts::default());
        if !plan.is_empty() {
            self.kernel.commit(&plan, &compiled.ruleset)?;
        }
        self.current = Some(compiled.ruleset.clone());
        Ok(compiled)
    }

    /// As [`Rig::apply_set`]; the netlink messages it took.
    pub(crate) fn apply_counting(&mut self, set: &PolicySet) -> Result<usize> {
        let compiled = compile(set, DEFAULT_CELL_LIMIT);
        let plan = plan(self.current.as_ref(), &compiled.ruleset, &Counts::default());
        let receipt = self.kernel.commit(&plan, &compiled.ruleset)?;
        self.current = Some(compiled.ruleset);
        Ok(receipt.messages)
    }

    /// The netlink messages that a policy set takes on an empty box.
    pub(crate) fn messages_from_nothing(&self, set: &PolicySet) -> Result<usize> {
        let ns = fw_testkit::Netns::new("nothing")?;
        let mut kernel = ns.run(NetlinkKernel::open)??;
        kernel.read()?;
        let compiled = compile(set, DEFAULT_CELL_LIMIT);
        let plan = plan(None, &compiled.ruleset, &Counts::default());
        Ok(kernel.commit(&plan, &compiled.ruleset)?.messages)
    }

    /// What `nft` says the counters are.
    pub(crate) fn counters(&self) -> Result<Counters> {
        fw_testkit::nft::counters(&self.lab.firewall)
    }

    /// Sends packets from the first machine inside or outside and says of each whether it came out elsewhere.
    pub(crate) fn fire(&self, shots: &[(From, Crafted)]) -> Result<Vec<bool>> {
        fire(&self.lab, shots)
    }

    /// As [`Rig::fire`], with where and how they came out.
    pub(crate) fn arrivals(&self, shots: &[(From, Crafted)]) -> Result<Vec<Vec<Arrival>>> {
        arrivals(&self.lab, shots)
    }
}

/// Sends packets through any lab and says of each where and how it came out.
pub(crate) fn arrivals(lab: &Lab, shots: &[(From, Crafted)]) -> Result<Vec<Vec<Arrival>>> {
    let mut range = Range::new(lab)?;
    range.silence_machines()?;
    let shot = |(from, packet): &(From, Crafted)| Shot { from: from.index(lab), packet: packet.clone() };
    range.fire(&shots.iter().map(shot).collect::<Vec<_>>())
}

/// As [`arrivals`], of each only whether it came out.
pub(crate) fn fire(lab: &Lab, shots: &[(From, Crafted)]) -> Result<Vec<bool>> {
    Ok(arrivals(lab, shots)?.iter().map(|arrivals| !arrivals.is_empty()).collect())
}

/// Which machine sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// The first machine inside.
    Cluster,
    /// The first machine outside.
    Internet,
}

impl From {
    fn index(self, lab: &Lab) -> usize {
        match self {
            Self::Cluster => 0,
            Self::Internet => lab.inside.len(),
        }
    }
}

/// The address of a machine in the family of another.
pub(crate) fn own(machine: &Machine, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { machine.v4() } else { machine.v6() }
}

/// Source ports that no two packets of a process share, so that each is NEW.
pub(crate) fn fresh_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed) % 40_000 + 20_000
}

/// `ip:port` from texts.
pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}
