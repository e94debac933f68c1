//! Nanoseconds a packet costs in the programs, by BPF_PROG_TEST_RUN: `cargo bench -p fw-bpf`. Needs root.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use aya::EbpfLoader;
use aya::programs::{TestRun as _, TestRunOptions};
use fw_bpf::{Datapath, Options, Program, Sizes};
use fw_bpf_common::{Allow, Cell, Config, Step, TCP, UDP, flag};

use fw_testkit::figures::{Goal, ROUNDS, Table};

/// Runs of one measurement: some tens of milliseconds.
const REPEAT: u32 = 500_000;
/// What finding an address may cost more than a program that does nothing.
const HIT_NS: f64 = 60.0;
/// Costs at many entries over costs at few: flat, but for what the machine's other work adds.
const FLAT: f64 = 1.5;
const FEW: u32 = 1_000;
const MANY: u32 = 100_000;

fn main() -> Result<(), Box<dyn Error>> {
    // cargo test runs benches too, with this argument missing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let open = |what: &str, conntrack| {
        let pins = PathBuf::from(format!("/run/fw-bpf-bench-{what}-{}", std::process::id()));
        Datapath::open(&Options { pins, sizes: Sizes::default(), conntrack })
    };
    let mut datapath = open("asking", true)?;
    let mut plain = open("plain", false)?;
    let result = measure(&mut datapath, &mut plain);
    datapath.unload()?;
    plain.unload()?;
    let table = result?;
    println!("{}", table.text());
    if !table.all_met() {
        std::process::exit(1);
    }
    Ok(())
}

/// Programs that do nothing.
struct Empty {
    object: aya::Ebpf,
}

impl Empty {
    fn load() -> Result<Self, Box<dyn Error>> {
        let mut loader = EbpfLoader::new();
        for map in ["ALLOW4", "ALLOW6", "STATIC4", "STATIC6"] {
            loader.map_max_entries(map, 1);
        }
        let mut object = loader.load(fw_bpf::object())?;
        for (name, program) in object.programs_mut() {
            match program {
                aya::programs::Program::Xdp(xdp) if name == "fw_none_xdp" => xdp.load()?,
                aya::programs::Program::SchedClassifier(tcx) if name == "fw_none_tcx" => tcx.load()?,
                _ => {}
            }
        }
        Ok(Self { object })
    }

    /// Nanoseconds of one run.
    fn run(&self, like: Program, frame: &[u8]) -> Result<f64, Box<dyn Error>> {
        let options = TestRunOptions { data_in: Some(frame), repeat: REPEAT, ..TestRunOptions::default() };
        let name = if matches!(like, Program::Tcx | Program::Stamp) { "fw_none_tcx" } else { "fw_none_xdp" };
        let result = match self.object.program(name).ok_or("the object has no empty program")? {
            aya::programs::Program::Xdp(xdp) => xdp.test_run(options)?,
            aya::programs::Program::SchedClassifier(tcx) => tcx.test_run(options)?,
            _ => return Err("the empty program is of another type".into()),
        };
        // A program of two instructions can take less than the clock shows.
        Ok(result.duration.as_nanos().max(1) as f64)
    }
}

/// A packet whose path through the programs is measured.
struct Case {
    what: &'static str,
    program: Program,
    frame: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let case = |what, program, to: IpAddr, port| Case { what, program, frame: syn(to, port) };
    let (hit4, hit6) = (ipv4(FEW / 2), ipv6(FEW / 2));
    let other = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
    vec![
        case("stamp, hit, IPv4", Program::Tcx, hit4, 443),
        case("stamp, hit, IPv6", Program::Tcx, hit6, 443),
        case("bouncer, hit, IPv4", Program::Xdp, hit4, 443),
        case("bouncer, hit, IPv6", Program::Xdp, hit6, 443),
        case("stamp, miss", Program::Stamp, other, 443),
        case("bouncer, miss, prefix table allows", Program::Xdp, other, 443),
        case("bouncer, miss, prefix table, dropped", Program::Xdp, other, 25),
    ]
}

/// Early drops with and without a look into conntrack (that of this network namespace, as it is). Who does not ask it
/// drops no datagrams.
fn drops(asking: &Datapath, plain: &Datapath, table: &mut Table) -> Result<(), Box<dyn Error>> {
    let to = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
    let datagram = {
        let mut frame = syn(to, 25);
        frame[23] = UDP;
        frame[38..40].copy_from_slice(&20_u16.to_be_bytes());
        frame
    };
    for (what, program, frame) in [
        ("XDP drops a SYN", Program::Xdp, syn(to, 25)),
        ("XDP drops a datagram (reference: passes it)", Program::Xdp, datagram.clone()),
        ("TCX drops a SYN", Program::Tcx, syn(to, 25)),
        ("TCX drops a datagram (reference: passes it)", Program::Tcx, datagram),
    ] {
        let mut samples = Vec::new();
        for _ in 0..ROUNDS {
            let [ours, reference] =
                [asking, plain].map(|datapath| datapath.test_run(program, &frame, 0, REPEAT));
            samples.push((f64::from(ours?.nanoseconds), f64::from(reference?.nanoseconds)));
        }
        table.add(&format!("{what}, asking conntrack beside not [ns]"), &samples, Goal::None);
    }
    Ok(())
}

fn measure(datapath: &mut Datapath, plain: &mut Datapath) -> Result<Table, Box<dyn Error>> {
    let empty = Empty::load()?;
    if let Some(why) = datapath.unasked() {
        return Err(format!("conntrack cannot be asked here: {why}").into());
    }
    for datapath in [&mut *datapath, plain] {
        datapath.set_config(Config { flags: flag::BOUNCE, mark_mask: 0xffff, ..Config::default() })?;
        datapath
            .put_class(2, &[Cell { protocol: TCP, first: 443, last: 443, index: 7, ..Cell::default() }])?;
        datapath.set_prefixes(&prefixes())?;
    }
    let cases = cases();
    // By case: (ours, empty) a round, with few and with many entries.
    let mut few = vec![Vec::new(); cases.len()];
    let mut many = vec![Vec::new(); cases.len()];
    for round in 0..ROUNDS {
        println!("packets: round {} of {ROUNDS}", round + 1);
        for (entries, samples) in [(FEW, &mut few), (MANY, &mut many)] {
            resize(datapath, entries)?;
            for (case, samples) in cases.iter().zip(samples) {
                let reference = empty.run(case.program, &case.frame)?;
                let run = datapath.test_run(case.program, &case.frame, 0, REPEAT)?;
                samples.push((f64::from(run.nanoseconds), reference));
            }
        }
    }
    let mut table = Table::new();
    for ((case, few), many) in cases.iter().zip(&few).zip(&many) {
        let goal = if case.what.contains("hit") { Goal::MoreBy(HIT_NS) } else { Goal::None };
        table.add(&format!("{}, {FEW} entries [ns]", case.what), few, goal);
        table.add(&format!("{}, {MANY} entries [ns]", case.what), many, goal);
        let flat: Vec<_> = many.iter().zip(few).map(|((many, _), (few, _))| (*many, *few)).collect();
        let goal = if case.what.contains("hit") { Goal::AtMost(FLAT) } else { Goal::None };
        table.add(&format!("{}, {MANY} beside {FEW} [ns]", case.what), &flat, goal);
    }
    drops(datapath, plain, &mut table)?;
    Ok(table)
}

/// Makes the maps hold that many addresses of each family.
fn resize(datapath: &mut Datapath, entries: u32) -> Result<(), fw_bpf::Error> {
    let mut allow = Allow::default();
    allow.steps[0] = Step { until_ns: u64::MAX, class: 2, reserved: 0 };
    if entries == FEW {
        let gone: Vec<IpAddr> = (FEW..MANY).flat_map(|n| [ipv4(n), ipv6(n)]).collect();
        datapath.remove_all(&gone)?;
    }
    let all: Vec<(IpAddr, Allow)> =
        (0..entries).flat_map(|n| [ipv4(n), ipv6(n)]).map(|address| (address, allow)).collect();
    datapath.put_all(&all)
}

fn ipv4(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + n).into()
}

fn ipv6(n: u32) -> IpAddr {
    Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(n)).into()
}

/// A thousand networks, and one that holds the address that no name has.
fn prefixes() -> BTreeMap<ipnet::IpNet, Vec<Cell>> {
    let cells = vec![Cell { protocol: TCP, first: 443, last: 443, ..Cell::default() }];
    let network = |n: u32| ipnet::Ipv4Net::new(Ipv4Addr::from(0x2c00_0000 + (n << 12)), 20);
    let many = (0..1000).filter_map(|n| network(n).ok()).map(ipnet::IpNet::from);
    let holder = ipnet::Ipv4Net::new(Ipv4Addr::new(198, 51, 100, 0), 24).ok().map(ipnet::IpNet::from);
    many.chain(holder).map(|prefix| (prefix, cells.clone())).collect()
}

/// An opening of a TCP connection.
fn syn(destination: IpAddr, port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match destination {
        IpAddr::V4(address) => {
            frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 9, 9, 9]);
            frame.extend(address.octets());
        }
        IpAddr::V6(address) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, TCP, 64]);
            frame.extend(Ipv6Addr::LOCALHOST.octets());
            frame.extend(address.octets());
        }
    }
    frame.extend([0xc0, 1]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0]);
    frame
}
