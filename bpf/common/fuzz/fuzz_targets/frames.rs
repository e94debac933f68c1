//! Any octets as a frame, over small maps that hold anything, against a reader and a verdict as plain as can be.
#![no_main]

#[path = "../../tests/it/model.rs"]
mod model;

use std::net::IpAddr;

use fw_bpf_common::{
    Allow, CELLS_PER_CLASS, CLASS_HOPS, Cell, Class, Config, Conntrack, Frame, HEADERS_USUAL, Packet, Reason,
    STEPS, Step, TAGS_MAX, TCP, Tables, UDP, Unasked, Verdict, flag, judge, parse, reach,
};
use libfuzzer_sys::fuzz_target;
use model::{ip, network, read};

/// Slots of classes, which lead anywhere among them, also in a circle.
const SLOTS: u8 = 6;

/// Octets that are taken from the front; zeros when there are none left.
struct Octets<'a>(&'a [u8]);

impl Octets<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.next(), self.next()])
    }
}

/// Maps that hold what no loader would write as well: ranges that end before they begin, steps in any order.
#[derive(Debug)]
struct Maps {
    config: Config,
    now: u64,
    allows: Vec<(IpAddr, Allow)>,
    prefixes: Vec<(IpAddr, u8, u32)>,
    classes: Vec<Class>,
    asks: bool,
    lives: bool,
}

impl Maps {
    /// `near`: the destination of the frame, so that something is found.
    fn read(octets: &mut Octets<'_>, near: Option<IpAddr>) -> Self {
        let bits = octets.next();
        let on = |bit: u8, flag: u32| if bits & bit != 0 { flag } else { 0 };
        Self {
            config: Config {
                flags: on(1, flag::BOUNCE) | on(2, flag::DNS) | on(4, flag::DOT),
                ..Config::default()
            },
            now: u64::from(octets.next()),
            allows: (0..bits >> 6).map(|_| (address(octets, near), allow(octets))).collect(),
            prefixes: (0..(bits >> 4) & 3)
                .map(|_| (address(octets, near), octets.next() % 129, u32::from(octets.next() % SLOTS)))
                .collect(),
            classes: (0..SLOTS).map(|_| class(octets)).collect(),
            asks: bits & 8 != 0,
            lives: octets.next() & 1 == 1,
        }
    }

    fn allow(&self, address: IpAddr) -> Option<&Allow> {
        self.allows.iter().find(|(other, _)| *other == address).map(|(_, allow)| allow)
    }

    fn prefix(&self, address: IpAddr) -> Option<u32> {
        let holds = |(other, length, _): &&(IpAddr, u8, u32)| {
            let most = if address.is_ipv4() { 32 } else { 128 };
            other.is_ipv4() == address.is_ipv4()
                && *length <= most
                && network(*other, *length) == network(address, *length)
        };
        let longest = self.prefixes.iter().filter(holds).max_by_key(|(_, length, _)| *length);
        longest.map(|(_, _, class)| *class)
    }

    /// Index of the first cell with the packet's protocol and port, in as many slots as are looked at.
    fn index(&self, class: u32, packet: &Packet) -> Option<u32> {
        let slots = std::iter::successors(Some(class), |slot| {
            let class = self.classes.get(*slot as usize)?;
            class.cells.iter().all(|cell| cell.protocol != 0).then_some(class.next)
        });
        slots
            .take(CLASS_HOPS)
            .take_while(|slot| *slot != 0)
            .filter_map(|slot| self.classes.get(slot as usize))
            .flat_map(|class| class.cells.iter().take_while(|cell| cell.protocol != 0))
            .find(|cell| cell.protocol == packet.protocol && (cell.first..=cell.last).contains(&packet.port))
            .map(|cell| cell.index)
    }

    /// What becomes of a packet.
    fn expected(&self, packet: &Packet) -> Verdict {
        let destination = ip(packet.destination);
        let stays = match destination {
            IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local(),
        };
        if stays || packet.to_group {
            return Verdict::Pass;
        }
        let steps = self.allow(destination).map(|allow| allow.steps).unwrap_or_default();
        let live = steps.iter().find(|step| self.now < step.until_ns);
        match live.and_then(|step| self.index(step.class, packet)) {
            Some(0) => return Verdict::Pass,
            Some(index) => return Verdict::Stamp(index),
            None => {}
        }
        let has = |flag| self.config.flags & flag != 0;
        let passes = [
            !packet.opens,
            !has(flag::BOUNCE),
            packet.protocol == UDP && !self.asks,
            packet.protocol == UDP && packet.port == 68,
            packet.port == 53 && has(flag::DNS),
            packet.port == 853 && has(flag::DOT),
            self.prefix(destination).is_some_and(|class| self.index(class, packet).is_some()),
            self.asks && self.lives,
        ];
        if passes.contains(&true) {
            return Verdict::Pass;
        }
        let once = self.index(steps[0].class, packet).is_some();
        Verdict::Bounce(if once { Reason::Expired } else { Reason::Policy })
    }
}

fn address(octets: &mut Octets<'_>, near: Option<IpAddr>) -> IpAddr {
    let which = octets.next();
    near.filter(|_| which < 0xc0).unwrap_or_else(|| IpAddr::from([10, 0, 0, which]))
}

fn allow(octets: &mut Octets<'_>) -> Allow {
    let mut allow = Allow::default();
    for step in &mut allow.steps[..STEPS] {
        let until_ns = u64::from(octets.next());
        *step = Step { until_ns, class: u32::from(octets.next() % SLOTS), reserved: 0 };
    }
    allow
}

fn class(octets: &mut Octets<'_>) -> Class {
    let mut class = Class::default();
    let bits = octets.next();
    for cell in &mut class.cells[..usize::from(bits & 15).min(CELLS_PER_CLASS)] {
        let protocol = [TCP, UDP, 0, TCP][usize::from(octets.next() & 3)];
        let (first, last, index) = (octets.word(), octets.word(), u32::from(octets.next()));
        *cell = Cell { protocol, first, last, index, ..Cell::default() };
    }
    class.next = u32::from(bits >> 4) % u32::from(SLOTS);
    class
}

impl Tables for Maps {
    fn config(&self) -> Config {
        self.config
    }

    fn now_ns(&self) -> u64 {
        self.now
    }

    fn allow4(&self, address: &[u8; 4]) -> Option<&Allow> {
        self.allow(IpAddr::from(*address))
    }

    fn allow6(&self, address: &[u8; 16]) -> Option<&Allow> {
        self.allow(IpAddr::from(*address))
    }

    fn class(&self, slot: u32) -> Option<&Class> {
        self.classes.get(slot as usize)
    }

    fn static4(&self, address: &[u8; 4]) -> Option<u32> {
        self.prefix(IpAddr::from(*address))
    }

    fn static6(&self, address: &[u8; 16]) -> Option<u32> {
        self.prefix(IpAddr::from(*address))
    }
}

impl Conntrack for Maps {
    fn can_be_asked(&self) -> bool {
        self.asks
    }

    fn knows(&self, _packet: &Packet) -> bool {
        self.lives
    }
}

/// A frame of which only the first octets can be reached.
struct Part<'a>(&'a [u8], u32);

impl Frame for Part<'_> {
    fn length(&self) -> u32 {
        self.1
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.read(offset)
    }
}

/// Where an untagged frame says so itself: a fragment that is not the first one.
fn is_later_fragment(frame: &[u8]) -> bool {
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, _, _, _, _, _, _, high, low, ..] => {
            u16::from_be_bytes([*high, *low]) & 0x1fff != 0
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, rest @ ..] => {
            rest.get(6) == Some(&44)
                && rest.get(42..44).is_some_and(|bits| u16::from_be_bytes([bits[0], bits[1]]) & 0xfff8 != 0)
        }
        _ => false,
    }
}

fuzz_target!(|input: &[u8]| {
    let mut octets = Octets(input);
    let (tags, cut) = (u32::from(octets.next()) % (TAGS_MAX + 1), usize::from(octets.next()));
    // The frame stands first, so that what is learned about it holds whatever the maps are.
    let length = usize::from(octets.word()).min(octets.0.len());
    let (frame, rest) = octets.0.split_at(length);
    let packet = parse(frame, tags);
    assert_eq!(packet, read(frame, tags), "read otherwise");
    let maps = Maps::read(&mut Octets(rest), packet.map(|packet| ip(packet.destination)));
    let verdict = judge(frame, tags, &maps, &maps);
    match packet {
        None => assert_eq!(verdict, Verdict::Pass, "what cannot be read gains nothing and loses nothing"),
        Some(packet) => assert_eq!(verdict, maps.expected(&packet), "{packet:?} {maps:?}"),
    }
    assert!(!is_later_fragment(frame) || verdict == Verdict::Pass, "a later fragment opens nothing");
    assert_ne!(verdict, Verdict::Stamp(0));
    // Where conntrack is not asked, fewer are dropped, and none is marked otherwise.
    match (judge(frame, tags, &maps, &Unasked), verdict) {
        (Verdict::Bounce(_), now) => assert!(maps.lives && maps.asks || now != Verdict::Pass),
        (Verdict::Stamp(index), now) => assert_eq!(now, Verdict::Stamp(index)),
        (Verdict::Pass, now) => assert!(!matches!(now, Verdict::Stamp(_))),
    }
    // Of a frame in pieces the reader sees the front: it reads the same, or nothing.
    let whole = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let seen = parse(&Part(&frame[..cut.min(frame.len())], whole), tags);
    assert!(seen.is_none() || seen == packet, "read otherwise in part");
    let reach = reach(frame);
    if reach < HEADERS_USUAL {
        let front = &frame[..frame.len().min(reach as usize)];
        assert_eq!(parse(&Part(front, whole), tags), packet, "it reaches further than it says");
    }
});
