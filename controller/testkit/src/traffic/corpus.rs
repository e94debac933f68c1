//! Frames that parsers get wrong, each with what an ordinary stack makes of it.
//!
//! Expectations are Linux's, checked against a kernel by `tests/it/corpus.rs`: options, fragments, extension headers,
//! tags, runts, lengths and TCP flags in both families.

mod build;
mod v4;
mod v6;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::topology::Machine;
use crate::traffic::craft::Tag;

use build::Builder;

/// Where the frames come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Ethernet address of the sender.
    pub mac: [u8; 6],
    /// Ethernet address of the firewall.
    pub gateway_mac: [u8; 6],
    /// Source and destination, IPv4.
    pub v4: (Ipv4Addr, Ipv4Addr),
    /// Source and destination, IPv6.
    pub v6: (Ipv6Addr, Ipv6Addr),
    /// Destination port of TCP and UDP. Source ports count up from 10,000, one for each sample.
    pub port: u16,
}

impl Ends {
    /// From a machine of a lab to any addresses.
    pub fn of(machine: &Machine, v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> Self {
        let own = machine.link.machine;
        Self { mac: machine.mac, gateway_mac: machine.gateway_mac, v4: (own.0, v4), v6: (own.1, v6), port }
    }
}

/// What an ordinary stack reads from a sample, put together again where it is in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where it goes.
    pub destination: IpAddr,
    /// 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

/// One or more frames that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Says what is odd about it.
    pub name: String,
    /// Ethernet frames, in the order in which they are sent.
    pub frames: Vec<Vec<u8>>,
    /// In the payload as often as it fits: in every piece of 24 bytes or more.
    pub tag: Tag,
    /// `None`: no port can be read, or no ordinary stack would read it.
    pub flow: Option<Flow>,
    /// The first frame alone has the whole transport header at its place, behind at most two tags, so that a program
    /// which sees single frames can judge the flow.
    pub complete: bool,
    /// A stateful firewall that drops what conntrack calls invalid, and allows the flow, forwards it.
    pub forwarded: bool,
}

/// All samples, tagged with the given run.
pub fn corpus(ends: &Ends, run: u32) -> Vec<Sample> {
    let mut builder = Builder::new(*ends, run);
    v4::add(&mut builder);
    v6::add(&mut builder);
    builder.samples
}

/// The tags of a run that are anywhere in these frames: which samples arrived.
pub fn arrived(frames: &[Vec<u8>], run: u32) -> BTreeSet<u32> {
    let tags = frames.iter().filter_map(|frame| Tag::find(frame, false));
    tags.filter(|tag| tag.run == run).map(|tag| tag.id).collect()
}
