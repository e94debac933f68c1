//! Whether this kernel runs the programs as it should, shown on maps of their own.

use fw_bpf_common::{ALL_PORTS_CLASS, Allow, Cell, Config, Reason, Step, TCP, UDP, flag};

use crate::datapath::{Datapath, Options, Sizes};
use crate::error::Error;
use crate::object::Program;
use crate::open::discard;

/// First id of the learner.
const CLASS: u32 = ALL_PORTS_CLASS + 1;
const INDEX: u32 = 7;
const MASK: u32 = 0xffff;
const NAMED: [u8; 4] = [192, 0, 2, 1];
const OVER: [u8; 4] = [192, 0, 2, 2];
const UNKNOWN: [u8; 4] = [192, 0, 2, 3];
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_ACT_SHOT: u32 = 2;
const TCX_NEXT: u32 = u32::MAX;

/// Loads the programs a second time, with small maps in a folder of its own beside that of `options`, and lets them judge
/// some packets; leaves nothing behind and does not touch live maps.
///
/// # Errors
/// [`Error::SelfTest`] with what went wrong; what [`Datapath::open`] says.
pub fn self_test(options: &Options) -> Result<(), Error> {
    let pins = &options.pins;
    let sizes = Sizes { ipv4: 16, ipv6: 16, prefixes: 16, sample_bytes: 65_536 };
    let folder = pins.with_file_name(format!(
        "{}_self_test_{}",
        pins.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let options = Options { pins: folder, sizes, conntrack: options.conntrack };
    let result = Datapath::open(&options).and_then(|mut datapath| {
        let result = run(&mut datapath);
        datapath.unload()?;
        result
    });
    if result.is_err() {
        discard(&options.pins);
    }
    result
}

fn run(datapath: &mut Datapath) -> Result<(), Error> {
    let cell = Cell { protocol: TCP, first: 443, last: 443, index: INDEX, ..Cell::default() };
    datapath.put_class(CLASS, &[cell])?;
    for (address, until_ns) in [(NAMED, u64::MAX), (OVER, 1)] {
        let mut allow = Allow::default();
        allow.steps[0] = Step { until_ns, class: CLASS, reserved: 0 };
        datapath.put(address.into(), allow)?;
    }
    datapath.set_config(Config { flags: flag::BOUNCE, mark_mask: MASK, ..Config::default() })?;
    let foreign = 0xabcd_0000;
    // Only who asks conntrack drops datagrams.
    let asks = datapath.unasked().is_none();
    let datagram = if asks { (XDP_DROP, TC_ACT_SHOT) } else { (XDP_PASS, TCX_NEXT) };
    for (what, frame, (xdp, tcx), mark) in [
        ("an allowed packet", &syn(NAMED)[..], (XDP_PASS, TCX_NEXT), INDEX),
        ("a packet whose allow is over", &syn(OVER), (XDP_DROP, TC_ACT_SHOT), 0),
        ("a packet nothing allows", &syn(UNKNOWN), (XDP_DROP, TC_ACT_SHOT), 0),
        ("a datagram nothing allows", &datagram_to(UNKNOWN), datagram, 0),
    ] {
        let expect = |program: Program, result: u32, mark: u32| {
            let run = datapath.test_run(program, frame, foreign | 0x1234, 1)?;
            let of_tcx = matches!(program, Program::Tcx | Program::Stamp);
            if run.result == result && (!of_tcx || run.mark == mark | foreign) {
                return Ok(());
            }
            let seen = format!("{what}: {} gave {} and mark {:#x}", program.name(), run.result, run.mark);
            Err(Error::SelfTest(seen))
        };
        expect(Program::Xdp, xdp, 0)?;
        expect(Program::XdpFrags, xdp, 0)?;
        expect(Program::Tcx, tcx, mark)?;
        expect(Program::Stamp, TCX_NEXT, mark)?;
    }
    let drops = datapath.drops()?;
    let by_policy = 1 + u64::from(asks);
    if drops.xdp != [2 * by_policy, 2] || drops.tcx != [by_policy, 1] {
        let [policy, expired] = [Reason::Policy, Reason::Expired].map(|reason| drops.xdp[reason as usize]);
        return Err(Error::SelfTest(format!("drops were miscounted: policy {policy}, expired {expired}")));
    }
    Ok(())
}

/// A datagram to port 443.
fn datagram_to(destination: [u8; 4]) -> [u8; 54] {
    const UDP_LENGTH: u8 = 20;
    let mut frame = syn(destination);
    frame[23] = UDP;
    frame[38..54].fill(0);
    frame[39] = UDP_LENGTH;
    frame
}

/// An opening of a connection to port 443.
fn syn(destination: [u8; 4]) -> [u8; 54] {
    let mut frame = [0; 54];
    frame[0] = 2;
    frame[6] = 2;
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP]);
    frame[26..30].copy_from_slice(&[198, 51, 100, 1]);
    frame[30..34].copy_from_slice(&destination);
    frame[34..38].copy_from_slice(&[0xc0, 0, 0x01, 0xbb]);
    frame[46..48].copy_from_slice(&[0x50, 0x02]);
    frame
}
