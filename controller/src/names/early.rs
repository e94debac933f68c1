//! Which packets the programs drop, for those who ask about one.

use std::net::IpAddr;

use fw_bpf::Mode;
use fw_bpf_common::{Address, TCP, UDP, Verdict};
use fw_policy::{ConntrackState, IfName, Packet, Transport};

use super::EarlyDrop;
use super::links::Links;
use super::programs::{Programs, reason_name};

/// Where the programs drop a packet and why, by what they and their maps are at this moment.
pub(super) fn drop_of(programs: &Programs, links: Option<&Links>, packet: &Packet) -> Option<EarlyDrop> {
    let Verdict::Bounce(reason) = programs.verdict(&as_seen(packet)?)? else { return None };
    let vrf_of = |name: &IfName| links?.ports.get(name)?.vrf.clone();
    let enters_by = |name: &IfName| *name == packet.input || vrf_of(name).as_ref() == Some(&packet.input);
    let attached = programs.attached().into_iter();
    let places = attached.filter(|(name, _)| enters_by(name)).map(|(name, mode)| (name, place(mode)));
    let drop = EarlyDrop { places: places.collect(), reason: reason_name(reason) };
    (!drop.places.is_empty()).then_some(drop)
}

/// The program that bounces in each mode.
fn place(mode: Mode) -> &'static str {
    match mode {
        Mode::Native | Mode::Generic => "xdp",
        Mode::Tcx => "tcx",
    }
}

/// As the programs see it; `None`: a packet they leave to nftables.
fn as_seen(packet: &Packet) -> Option<fw_bpf_common::Packet> {
    let (protocol, source_port, port) = match packet.transport {
        Transport::Tcp { source, destination } => (TCP, source, destination),
        Transport::Udp { source, destination } => (UDP, source, destination),
        Transport::Icmp { .. } | Transport::Other(_) => return None,
    };
    // What conntrack calls invalid may be anything but an opening.
    let opens = packet.state == ConntrackState::New;
    let address = |address| match address {
        IpAddr::V4(address) => Address::v4(address.octets()),
        IpAddr::V6(address) => Address::v6(address.octets()),
    };
    opens.then(|| fw_bpf_common::Packet {
        source: address(packet.source),
        destination: address(packet.destination),
        protocol,
        source_port,
        port,
        opens,
        to_group: false,
    })
}
