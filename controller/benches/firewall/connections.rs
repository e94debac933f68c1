//! The price of a new connection at 2,000 policies, beside that at 10 and beside 2,000 rules that are tried one
//! after the other.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use fw_nft::{Kernel, NetlinkKernel};
use fw_policy::{Block, Peers, Policy, PolicySet, PortRange, Ports, Protocol, Rule};
use fw_ruleset::{Counts, DEFAULT_CELL_LIMIT, compile, plan};
use fw_testkit::figures::{Goal, ROUNDS, Table};
use fw_testkit::nft;
use fw_testkit::topology::Lab;
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::{conntrack, meter};

use crate::policies;

const PORT: u16 = 7777;
/// What is compared takes turns in short slices, so that a neighbour's load meets all alike.
const SLICES: usize = 5;
const SLICE: Duration = Duration::from_millis(120);

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    for (kind, many, few) in [
        ("uniform", policies::uniform(2000), policies::uniform(10)),
        ("adversarial", policies::adversarial(2000), policies::adversarial(10)),
    ] {
        let many = with_target(many)?;
        let mut at_many = Bench::new(|lab| apply(lab, &many))?;
        let few = with_target(few)?;
        let mut at_few = Bench::new(|lab| apply(lab, &few))?;
        let mut one_by_one = Bench::new(|lab| nft::load(&lab.firewall, &policies::as_rules(&many)))?;
        let (mut beside_few, mut beside_rules) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let mut sums = [0.0; 3];
            for _ in 0..SLICES {
                for (sum, bench) in sums.iter_mut().zip([&mut at_many, &mut at_few, &mut one_by_one]) {
                    *sum += bench.rate()?;
                }
            }
            let [many, few, rules] = sums.map(|sum| sum / 5.0);
            eprintln!(
                "{kind} round {round}: {many:.0} connections/s, {few:.0} at 10, {rules:.0} rule by rule"
            );
            beside_few.push((many, few));
            beside_rules.push((many, rules));
        }
        table.add(
            &format!("connections/s at 2,000 policies / at 10, {kind}"),
            &beside_few,
            Goal::AtLeast(0.8),
        );
        table.add(&format!("  / 2,000 rules one by one, {kind}"), &beside_rules, Goal::AtLeast(1.0));
    }
    Ok(())
}

/// Adds the policy that allows what is measured, under the last name and on a wide prefix: what comes last.
fn with_target(mut set: PolicySet) -> Result<PolicySet> {
    let range = PortRange { index: 0, protocol: Protocol::Tcp, first: PORT, last: PORT };
    let blocks = vec![Block { index: 0, net: "203.0.0.0/8".parse()?, except: vec![] }];
    let rule = Rule { index: 0, peers: Peers::Blocks(blocks), ports: Ports::Ranges(vec![range]) };
    set.policies.insert("zzz".to_owned(), Policy { ingress: vec![], egress: vec![rule] });
    Ok(set)
}

/// A lab with rules and a server behind them.
struct Bench {
    lab: Lab,
    server: Server,
}

impl Bench {
    fn new(load: impl FnOnce(&Lab) -> Result<()>) -> Result<Self> {
        let lab = Lab::standard("bench")?;
        load(&lab)?;
        let address = SocketAddr::new(lab.internet().v4(), PORT);
        let server = Server::tcp(&lab.internet().ns, &[address], Service::Close)?;
        Ok(Self { lab, server })
    }

    /// Connections a second from the cluster to the internet.
    fn rate(&mut self) -> Result<f64> {
        let to = self.server.addresses()[0];
        let rate = meter::connections(&self.lab.cluster().ns, None, to, SLICE, 1)?;
        conntrack::flush(&self.lab.firewall)?;
        Ok(rate.per_second())
    }
}

fn apply(lab: &Lab, set: &PolicySet) -> Result<()> {
    lab.firewall.run(|| {
        let mut kernel = NetlinkKernel::open()?;
        kernel.read()?;
        let compiled = compile(set, DEFAULT_CELL_LIMIT);
        kernel.commit(&plan(None, &compiled.ruleset, &Counts::default()), &compiled.ruleset)?;
        Ok(())
    })?
}
