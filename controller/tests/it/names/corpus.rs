//! Frames that parsers get wrong, through every mode: nothing passes that no rule allows, and what a stateful firewall
//! forwards arrives.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::dns::awkward;
use fw_testkit::nft;
use fw_testkit::traffic::corpus::{Ends, Sample, arrived, corpus};
use fw_testkit::traffic::craft::{Body, Crafted, Tag, flags};
use fw_testkit::traffic::inject::Injector;
use fw_testkit::traffic::range::{Range, Shot};
use fw_testkit::traffic::sniff::Sniffer;

use super::field::{Mode, Names, PORT};
use crate::daemon::eventually;
use crate::rig::policy;

/// A number that no other batch of this process has.
fn run_number() -> u32 {
    static RUNS: AtomicU32 = AtomicU32::new(1 << 30);
    RUNS.fetch_add(1, Ordering::Relaxed)
}

/// A name may be reached at [`PORT`] by TCP and UDP; another port of it may not, nor another name.
fn lab(label: &str, mode: Mode) -> Result<Names> {
    let rule = format!(
        "{{egress: [{{toFQDNs: [{{matchName: {}}}], ports: [{{protocol: TCP, port: {PORT}}}, \
         {{protocol: UDP, port: {PORT}}}]}}]}}",
        awkward::PLAIN
    );
    // A static rule beside it: the early drop has something to let through.
    let beside = "{egress: [{to: [{cidr: 203.0.113.128/25}], ports: [{protocol: TCP, port: 8888}]}]}";
    let names = Names::new(label, mode, "", &[policy("web", &rule), policy("beside", beside)])?;
    // Both names are known, one opens something.
    names.resolve(awkward::PLAIN)?;
    names.resolve(awkward::OTHER)?;
    for machine in names.lab.machines() {
        let deaf =
            "table inet silent {\nchain input {\ntype filter hook input priority -400; policy drop;\n}\n}\n";
        nft::load(&machine.ns, deaf)?;
    }
    Ok(names)
}

fn addresses_of(name: u8) -> Result<(Ipv4Addr, Ipv6Addr)> {
    match awkward::addresses_of(name) {
        [IpAddr::V4(v4), IpAddr::V6(v6)] => Ok((v4, v6)),
        other => bail!("one address of each family, not {other:?}"),
    }
}

/// The samples that came out anywhere.
fn fire(names: &Names, samples: &[Sample], run: u32) -> Result<BTreeSet<u32>> {
    let mut injector = Injector::on(names.lab.cluster())?;
    let mut sniffer = Sniffer::on(names.lab.internet())?;
    for sample in samples {
        injector.send_frames(&sample.frames)?;
    }
    let frames = sniffer.frames()?;
    ensure!(sniffer.statistics()?.dropped == 0, "the sniffer lost frames");
    Ok(arrived(&frames, run))
}

/// Readable for a kernel that takes its time, not for a program that sees single frames: they gain nothing from it.
const UNREADABLE: [&str; 4] = [
    "a routing header with one to go",
    "a routing header of type 2",
    "hop-by-hop behind destination options",
    "eight destination options",
];

/// The first frame of these is no first fragment; the mark of that one is the mark of the whole in any order.
const LAST_FIRST: [&str; 4] = [
    "v4 tcp: fragments, last first",
    "v4 udp: fragments, last first",
    "v6 tcp: fragments, last first",
    "v6 udp: fragments, last first",
];
/// No frame of it has the whole header.
const TINY: &str = "v4 tcp: fragments, eight bytes in the first";

/// Each batch comes from a machine of its own: fragments of one that were left alone wait for their like.
fn samples(names: &Names, (name, port): (u8, u16), run: u32) -> Result<Vec<Sample>> {
    let (v4, v6) = addresses_of(name)?;
    let mut ends = Ends::of(names.lab.cluster(), v4, v6, port);
    let number = 100 + run % 100;
    ends.v4.0 = Ipv4Addr::from_bits(ends.v4.0.to_bits() + number);
    ends.v6.0 = Ipv6Addr::from_bits(ends.v6.0.to_bits() + u128::from(number));
    Ok(corpus(&ends, run))
}

fn in_mode(mode: Mode) -> Result<()> {
    let names = lab("corpus-names", mode)?;
    for (name, port) in [(1, PORT + 1), (2, PORT), (9, PORT)] {
        let run = run_number();
        let samples = samples(&names, (name, port), run)?;
        let seen = fire(&names, &samples, run)?;
        let passed = samples.iter().filter(|sample| seen.contains(&sample.tag.id));
        let passed: Vec<&str> = passed.map(|sample| sample.name.as_str()).collect();
        ensure!(passed.is_empty(), "address {name}, port {port}: these passed: {passed:#?}");
    }
    let run = run_number();
    let samples = samples(&names, (1, PORT), run)?;
    let seen = fire(&names, &samples, run)?;
    let (mut wrong, mut judged, mut scattered) = (Vec::new(), 0, Vec::new());
    for Sample { name, tag, forwarded, complete, .. } in &samples {
        let arrived = seen.contains(&tag.id);
        let readable = mode == Mode::Off || !UNREADABLE.iter().any(|odd| name.ends_with(odd));
        if *forwarded && !*complete {
            if arrived {
                scattered.push(name.as_str());
            }
        } else if arrived != (*forwarded && readable) {
            wrong.push(format!("{name}: forwarded {forwarded}, readable {readable}, arrived {arrived}"));
        }
        judged += u32::from(arrived && *complete);
    }
    eprintln!("{}: {} samples, {judged} readable ones passed", mode.name(), samples.len());
    ensure!(wrong.is_empty(), "{}: {} samples:\n{}", mode.name(), wrong.len(), wrong.join("\n"));
    let mut expected: Vec<&str> = LAST_FIRST.into_iter().chain((mode == Mode::Off).then_some(TINY)).collect();
    expected.sort_unstable();
    scattered.sort_unstable();
    ensure!(scattered == expected, "{}: in pieces passed {scattered:?}", mode.name());
    ensure!(judged > 50, "only {judged} samples were forwarded");
    Ok(())
}

#[test]
fn awkward_frames_pass_to_an_allowed_name_and_never_past_one_with_xdp_in_the_driver() -> Result<()> {
    in_mode(Mode::Native)
}

#[test]
fn awkward_frames_pass_to_an_allowed_name_and_never_past_one_with_generic_xdp() -> Result<()> {
    in_mode(Mode::Generic)
}

#[test]
fn awkward_frames_pass_to_an_allowed_name_and_never_past_one_with_tcx_alone() -> Result<()> {
    in_mode(Mode::Tcx)
}

#[test]
fn awkward_frames_pass_to_an_allowed_name_and_never_past_one_without_ebpf() -> Result<()> {
    in_mode(Mode::Off)
}

/// Datagrams and segments whose first packet is in fragments.
fn fragmented(names: &Names, name: u8, port: u16) -> Result<Vec<Shot>> {
    let own = names.lab.cluster();
    let (v4, v6) = addresses_of(name)?;
    let mut shots = Vec::new();
    for (source, destination) in [(own.v4(), IpAddr::V4(v4)), (own.v6(), IpAddr::V6(v6))] {
        // From the header and a tag on, which the first piece must show where it arrives.
        for (number, size) in [(0_u16, 40), (1, 80), (2, 600), (3, 1400)] {
            let ports = (30_000 + number, port);
            let bodies = [
                Body::Udp { source: ports.0, destination: ports.1 },
                Body::Tcp { source: ports.0, destination: ports.1, flags: flags::SYN },
            ];
            for body in bodies {
                let mut packet = Crafted::new(source, destination, body);
                packet.padding = 4000 - Tag::LENGTH;
                packet.fragment_bytes = Some(size);
                shots.push(Shot { from: 0, packet });
            }
        }
    }
    Ok(shots)
}

#[test]
fn a_flow_to_a_name_whose_first_packet_is_in_fragments_passes_and_one_past_it_does_not() -> Result<()> {
    for mode in Mode::ALL {
        let names = lab("fragments", mode)?;
        let mut range = Range::new(&names.lab)?;
        for (name, port, passes) in [(1, PORT, true), (1, PORT + 1, false), (2, PORT, false)] {
            let shots = fragmented(&names, name, port)?;
            let arrivals = range.fire(&shots)?;
            for (shot, arrivals) in shots.iter().zip(&arrivals) {
                ensure!(
                    arrivals.len() == usize::from(passes),
                    "{}: {:?} in pieces of {:?} to {} came out at {arrivals:?}",
                    mode.name(),
                    shot.packet.body,
                    shot.packet.fragment_bytes,
                    shot.packet.destination
                );
            }
        }
        // Four sizes in two families; the status is not read from the kernel each time.
        for protocol in ["udp", "tcp"] {
            eventually(&format!("{}: fragments are counted for the name", mode.name()), || {
                Ok(names.counted("web", protocol, awkward::PLAIN)? == Some(8))
            })
            .with_context(|| format!("{protocol}: {:?}", names.counted("web", protocol, awkward::PLAIN)))?;
        }
    }
    Ok(())
}
