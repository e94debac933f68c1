//! Puts the data path on an interface, allows an address and waits: what the tests kill to see that all of it stays.
//! `hold PINS INTERFACE ADDRESS`

use std::io::Write as _;
use std::path::PathBuf;

use fw_bpf::{Datapath, Mode, Options, Sizes};
use fw_bpf_common::{Allow, Cell, Config, Step, TCP, flag};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pins, interface, address] = &arguments[..] else {
        return Err("usage: hold PINS INTERFACE ADDRESS".into());
    };
    let sizes = Sizes { ipv4: 64, ipv6: 64, prefixes: 64, sample_bytes: 65_536 };
    let mut datapath = Datapath::open(&Options { pins: PathBuf::from(pins), sizes, conntrack: true })?;
    datapath.put_class(2, &[Cell { protocol: TCP, first: 443, last: 443, index: 7, ..Cell::default() }])?;
    let mut allow = Allow::default();
    allow.steps[0] = Step { until_ns: u64::MAX, class: 2, reserved: 0 };
    datapath.put(address.parse()?, allow)?;
    datapath.set_config(Config { flags: flag::BOUNCE, mark_mask: 0xffff, ..Config::default() })?;
    datapath.attach(interface, Mode::Native)?;
    writeln!(std::io::stdout(), "holding")?;
    loop {
        std::thread::park();
    }
}
