//! The price of a new connection at 2,000 policies beside that at 10.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fw_nft::{Kernel, NetlinkKernel, Table as KernelTable};
use fw_policy::{Block, Peers, Policy, PolicySet, PortRange, Ports, Protocol, Rule};
use fw_ruleset::{Counts, DEFAULT_CELL_LIMIT, compile, plan};
use fw_testkit::topology::Lab;
use nix::sys::socket::{setsockopt, sockopt::Linger};

use crate::policies;
use crate::table::{Goal, ROUNDS, Table};

const PORT: u16 = 7777;
/// Long enough for some ten thousand connections.
const WINDOW: Duration = Duration::from_millis(700);

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    for (kind, many, few) in [
        ("uniform", policies::uniform(2000), policies::uniform(10)),
        ("adversarial", policies::adversarial(2000), policies::adversarial(10)),
    ] {
        let many = with_target(many)?;
        let few = with_target(few)?;
        let lab = Lab::standard("bench-connections")?;
        let mut pairs = Vec::new();
        for round in 0..ROUNDS {
            let at_many = rate(&lab, &many)?;
            let at_few = rate(&lab, &few)?;
            eprintln!("{kind} round {round}: {at_many:.0} connections/s at 2,000, {at_few:.0} at 10");
            pairs.push((at_many, at_few));
        }
        table.add(&format!("connections/s at 2,000 policies / at 10, {kind}"), &pairs, Goal::AtLeast(0.8));
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

/// Connections a second from the cluster to the internet.
fn rate(lab: &Lab, set: &PolicySet) -> Result<f64> {
    apply(lab, set)?;
    lab.firewall.output("conntrack", &["-F"])?;
    let address = SocketAddr::new(lab.internet().v4(), PORT);
    let listener = lab.internet().ns.run(|| TcpListener::bind(address))??;
    listener.set_nonblocking(true)?;
    let done = Arc::new(AtomicBool::new(false));
    let server = {
        let done = done.clone();
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if listener.accept().is_err() {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        })
    };
    let counted = lab.cluster().ns.run(|| connect_for(address));
    done.store(true, Ordering::Relaxed);
    if server.join().is_err() {
        bail!("the server panicked");
    }
    counted?
}

fn connect_for(address: SocketAddr) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < WINDOW {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).context("connect")?;
        // A reset instead of TIME_WAIT, so that ports never run out.
        setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn apply(lab: &Lab, set: &PolicySet) -> Result<()> {
    lab.firewall.run(|| {
        let mut kernel = NetlinkKernel::open()?;
        if !matches!(kernel.read()?, KernelTable::Absent) {
            kernel.delete_table()?;
        }
        let compiled = compile(set, DEFAULT_CELL_LIMIT);
        kernel.commit(&plan(None, &compiled.ruleset, &Counts::default()), &compiled.ruleset)?;
        Ok(())
    })?
}
