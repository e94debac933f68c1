//! `make bench`, the drop log: what it costs those whose packets are allowed, and how soon a line is there. Exits 1 when a
//! ratio misses its goal. Needs root, and `droptailer` built beside (`cargo build --release --workspace`).
//!
//! One lab with our rules and no limit of the log. Rounds with droptailer's client and server, at the priority that the
//! unit gives the client, take turns with rounds without any listener; the same flood of denied packets runs in both.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_intake::{HostFacts, Objects, intake, parse};
use fw_nft::{Kernel, NetlinkKernel};
use fw_ruleset::{Counts, DEFAULT_CELL_LIMIT, compile, plan};
use fw_testkit::figures::{Goal, ROUNDS, Table};
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::flood::Flood;
use fw_testkit::traffic::inject::Injector;
use fw_testkit::traffic::meter;
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::{Process, WorkDir};

const OBJECTS: &str = "
apiVersion: metal-stack.io/v1
kind: Firewall
metadata: {name: firewall, namespace: firewall}
spec:
  internalprefixes: [10.0.0.0/8]
  dropLog: {rate: 0}
  firewallNetworks:
  - {networkid: cluster, networktype: privateprimaryunshared, vrf: 104009, prefixes: [10.0.16.0/22]}
  - {networkid: internet, networktype: external, vrf: 179, prefixes: [203.0.113.0/24]}
---
apiVersion: metal-stack.io/v1
kind: ClusterwideNetworkPolicy
metadata: {name: web, namespace: firewall}
spec: {egress: [{to: [{cidr: 203.0.113.0/24}], ports: [{protocol: TCP, port: 7777}]}]}
";
const PATIENCE: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURE: Duration = Duration::from_secs(2);
/// Denied packets a second, and between two parts of them.
const RATE: u64 = 50_000;
const STEP: Duration = Duration::from_millis(10);
/// Packets whose way to the line is timed.
const TIMED: u16 = 200;

fn main() -> Result<ExitCode> {
    // cargo test runs benches too, with this argument missing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    let lab = Lab::standard("bench-droplog")?;
    apply(&lab)?;
    let files = WorkDir::new("bench-droplog")?;
    let made =
        std::process::Command::new(binary()?).args(["certs", "--directory"]).arg(files.path()).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    goodput(&mut table, &lab, &files)?;
    latency(&mut table, &lab, &files)?;
    println!("{}", table.text());
    Ok(if table.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn apply(lab: &Lab) -> Result<()> {
    let parsed = parse("bench.yaml", OBJECTS.as_bytes())?;
    let compiled = compile(&intake(&Objects::new(&parsed), &HostFacts::default()).set, DEFAULT_CELL_LIMIT);
    lab.firewall.run(|| {
        let mut kernel = NetlinkKernel::open()?;
        kernel.read()?;
        kernel.commit(&plan(None, &compiled.ruleset, &Counts::default()), &compiled.ruleset)?;
        Ok(())
    })?
}

fn binary() -> Result<PathBuf> {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_firewall-controller")).with_file_name("droptailer");
    ensure!(path.is_file(), "{} is missing: cargo build --release --workspace", path.display());
    Ok(path)
}

/// Client and server in the firewall, the client as nice as its unit has it.
struct Droptailer {
    server: Process,
    _client: Process,
}

impl Droptailer {
    fn start(lab: &Lab, files: &WorkDir) -> Result<Self> {
        let with_files = |mut command: std::process::Command, side: &str, prefix: &str| {
            let directory = files.path().join(side);
            command.arg(format!("--{prefix}certificate")).arg(directory.join("tls.crt"));
            command.arg(format!("--{prefix}key")).arg(directory.join("tls.key"));
            command.arg("--ca-certificate").arg(directory.join("ca.crt"));
            command
        };
        let mut command = lab.firewall.command("nice");
        command.args(["-n", "19"]).arg(binary()?).args([
            "server",
            "--address",
            "127.0.0.1",
            "--metrics-addr",
            "127.0.0.1:0",
        ]);
        let server = Process::spawn(with_files(command, "server", ""))?;
        server.wait_for_line("listening on", PATIENCE)?;
        let mut command = lab.firewall.command("nice");
        command.args(["-n", "19"]).arg(binary()?).args(["client", "--server-address", "127.0.0.1:50051"]);
        command.arg("--socket").arg(files.path().join("droptailer.sock"));
        command.arg("--control-socket").arg(files.path().join("none.sock"));
        let client = Process::spawn(with_files(command, "client", "client-"))?;
        client.wait_for_line("listening to NFLOG", PATIENCE)?;
        client.wait_for_line("connected to", PATIENCE)?;
        Ok(Self { server, _client: client })
    }
}

/// Bytes a second of an allowed download while denied packets come at a rate, the same in all rounds.
fn goodput(table: &mut Table, lab: &Lab, files: &WorkDir) -> Result<()> {
    let source = SocketAddr::new(lab.internet().v4(), 7777);
    let _service = Server::tcp(&lab.internet().ns, &[source], Service::Source)?;
    let denied: Vec<Crafted> = (0..500)
        .map(|number| Ok(Crafted::udp(at("10.0.16.2", 4000 + number)?, at("198.18.0.1", 4000)?)))
        .collect::<Result<_>>()?;
    let measure = || -> Result<(f64, u64)> {
        let mut flood = Flood::new(lab.cluster(), &denied)?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let flooding = scope.spawn(|| paced(&mut flood, &stop));
            let rate = meter::download(&lab.cluster().ns, None, source, WARM_UP, MEASURE);
            stop.store(true, Ordering::Relaxed);
            let sent = flooding.join().ok().context("the flood panicked")??;
            Ok((rate?.per_second() / 1e6, sent))
        })
    };
    let mut pairs = Vec::new();
    for round in 0..ROUNDS {
        let (without, sent_without) = measure()?;
        let droptailer = Droptailer::start(lab, files)?;
        let (with, sent_with) = measure()?;
        drop(droptailer);
        eprintln!(
            "round {round}: {with:.0} MB/s and {sent_with} denied with droptailer, {without:.0} MB/s and {sent_without} without"
        );
        pairs.push((with, without));
    }
    table.add("allowed MB/s while denied packets are logged / not read", &pairs, Goal::AtLeast(0.9));
    Ok(())
}

/// Sends at [`RATE`] until it is stopped; gives the number of packets.
fn paced(flood: &mut Flood, stop: &AtomicBool) -> Result<u64> {
    let (begin, mut sent) = (Instant::now(), 0);
    for step in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        sent += flood.send(RATE / 100)?.sent;
        std::thread::sleep((begin + STEP * step).saturating_duration_since(Instant::now()));
    }
    Ok(sent)
}

/// From the packet to the server's line.
fn latency(table: &mut Table, lab: &Lab, files: &WorkDir) -> Result<()> {
    let droptailer = Droptailer::start(lab, files)?;
    let mut injector = Injector::on(lab.cluster())?;
    let mut times = Vec::new();
    for number in 0..TIMED {
        let packet = Crafted::udp(at("10.0.16.2", 10_000 + number)?, at("198.18.0.1", 9)?);
        let bytes = packet.encode(Tag { run: 0, id: 0 })?;
        let begin = Instant::now();
        injector.send(&bytes)?;
        droptailer.server.wait_for_line(&format!("\"SPT\":\"{}\"", 10_000 + number), PATIENCE)?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "an index of 200"
        )]
        let index = ((times.len() - 1) as f64 * part) as usize;
        let time = times.get(index).copied().context("nothing was timed")?;
        table.add(
            &format!("ms from packet to line, {name}, beside 100 ms"),
            &[(time, 100.0)],
            Goal::AtMost(1.0),
        );
    }
    Ok(())
}

fn at(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port))
}
