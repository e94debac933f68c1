//! Random packets and tables, and an oracle that says in the plainest way what becomes of a packet. The tests of the
//! loader use all of it for the programs in the kernel.
#![allow(dead_code, reason = "two test binaries, each using its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_bpf_common::{
    ALL_PORTS_CLASS, Address, Allow, CELLS_PER_CLASS, Cell, Class, Config, Conntrack, NO_CLASS, Packet,
    Reason, Step, Tables, Verdict, flag,
};

/// A small generator (SplitMix64): the same numbers from the same seed everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// What a frame is made of.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) group: bool,
    pub(crate) tags: Vec<u16>,
    pub(crate) destination: IpAddr,
    /// Bytes of IPv4 options (a multiple of 4).
    pub(crate) options: usize,
    /// IPv6 extension headers: type and its units of 8 bytes beyond the first.
    pub(crate) extensions: Vec<(u8, u8)>,
    /// Fragment offset in units of 8 bytes, and more fragments.
    pub(crate) fragment: Option<(u16, bool)>,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    pub(crate) flags: u8,
    pub(crate) tcp_options: usize,
    pub(crate) payload: usize,
    /// Bytes behind the IP packet (Ethernet pads to 60).
    pub(crate) padding: usize,
    /// Segments left of routing headers.
    pub(crate) segments_left: u8,
}

impl Spec {
    pub(crate) fn to(destination: impl Into<IpAddr>, protocol: u8, port: u16, flags: u8) -> Self {
        Self {
            group: false,
            tags: vec![],
            destination: destination.into(),
            options: 0,
            extensions: vec![],
            fragment: None,
            protocol,
            port,
            flags,
            tcp_options: 0,
            payload: 0,
            padding: 0,
            segments_left: 0,
        }
    }

    /// The frame; checksums are zero, nothing here looks at them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut frame = vec![if self.group { 3 } else { 2 }, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 104]);
        }
        let transport = self.transport();
        match self.destination {
            IpAddr::V4(address) => self.ipv4(address, &transport, &mut frame),
            IpAddr::V6(address) => self.ipv6(address, &transport, &mut frame),
        }
        frame.extend(vec![0; self.padding]);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![0xc0, 0x01];
        bytes.extend(self.port.to_be_bytes());
        match self.protocol {
            6 => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
                bytes.extend([((20 + self.tcp_options) as u8 / 4) << 4, self.flags, 1, 0, 0, 0, 0, 0]);
                bytes.extend(vec![1; self.tcp_options]);
            }
            _ => bytes.extend([0, 8 + self.payload as u8, 0, 0]),
        }
        bytes.extend(vec![0xaa; self.payload]);
        bytes
    }

    fn ipv4(&self, address: Ipv4Addr, transport: &[u8], frame: &mut Vec<u8>) {
        let header = 20 + self.options;
        frame.extend([0x08, 0x00, 0x40 | (header / 4) as u8, 0]);
        frame.extend(((header + transport.len()) as u16).to_be_bytes());
        let (offset, more) = self.fragment.unwrap_or_default();
        frame.extend([0, 1]);
        frame.extend((offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        frame.extend([64, self.protocol, 0, 0, 198, 51, 100, 1]);
        frame.extend(address.octets());
        frame.extend(vec![1; self.options]);
        frame.extend(transport);
    }

    fn ipv6(&self, address: Ipv6Addr, transport: &[u8], frame: &mut Vec<u8>) {
        let mut chain: Vec<(u8, Vec<u8>)> = Vec::new();
        for &(kind, units) in &self.extensions {
            let mut body = vec![0; 7 + usize::from(units) * 8];
            body[0] = units;
            if kind == 43 {
                body[2] = self.segments_left;
            }
            chain.push((kind, body));
        }
        if let Some((offset, more)) = self.fragment {
            let bits = (offset << 3) | u16::from(more);
            let mut body = vec![0];
            body.extend(bits.to_be_bytes());
            body.extend([0, 0, 0, 9]);
            chain.push((44, body));
        }
        let mut payload = Vec::new();
        for (position, (_, body)) in chain.iter().enumerate() {
            payload.push(chain.get(position + 1).map_or(self.protocol, |(kind, _)| *kind));
            payload.extend(body);
        }
        payload.extend(transport);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([chain.first().map_or(self.protocol, |(kind, _)| *kind), 64]);
        frame.extend([0x20, 0x01, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend(address.octets());
        frame.extend(payload);
    }
}

/// Addresses of the small world that tables and packets share.
pub(crate) fn address(random: &mut Random) -> IpAddr {
    let number = random.below(12) as u8;
    match random.below(12) {
        0 => IpAddr::V4(Ipv4Addr::new(224, 0, 0, number)),
        1 => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number.into())),
        2 => random.pick(&["255.255.255.255", "169.254.1.1", "ff02::1", "0.0.0.0"]).parse().unwrap(),
        n if n % 2 == 0 => IpAddr::V4(Ipv4Addr::new(10, number % 3, 0, number)),
        _ => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, u16::from(number % 3), 0, 0, 0, 0, number.into())),
    }
}

fn port(random: &mut Random) -> u16 {
    random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 53, 68, 80, 443, 853, 1000, 65_535])
}

/// A frame, often a sound one.
pub(crate) fn frame(random: &mut Random) -> Vec<u8> {
    let mut spec = Spec::to(address(random), random.pick(&[6, 6, 6, 17, 17, 1, 58]), port(random), SYN);
    spec.flags = random.pick(&[SYN, SYN, SYN, ACK, SYN | ACK, SYN | RST, SYN | FIN, SYN | 0xc8, 0, 255]);
    spec.group = random.one_in(20);
    spec.padding = random.pick(&[0, 0, 6, 20]);
    spec.payload = random.pick(&[0, 0, 1, 20]);
    if random.one_in(3) {
        spec.tags = (0..random.below(4)).map(|_| random.pick(&[0x8100, 0x88a8])).collect();
    }
    if random.one_in(3) {
        spec.options = random.below(11) * 4;
        spec.tcp_options = random.below(11) * 4;
        let count = random.below(9);
        spec.extensions =
            (0..count).map(|_| (random.pick(&[0, 43, 60, 60, 60, 51, 135]), random.below(3) as u8)).collect();
        if random.one_in(2) {
            spec.extensions.truncate(2);
        }
        spec.segments_left = u8::from(random.one_in(3));
    }
    if random.one_in(4) {
        spec.fragment = Some((random.pick(&[0, 0, 1, 185]), random.one_in(2)));
    }
    let mut bytes = spec.encode();
    match random.below(6) {
        0 => {
            let length = 14 + random.below(bytes.len().saturating_sub(14).max(1));
            bytes.truncate(length);
        }
        1 | 2 => {
            for _ in 0..=random.below(3) {
                let position = random.below(bytes.len());
                bytes[position] = random.next() as u8;
            }
        }
        _ => {}
    }
    bytes
}

/// Tables, as the maps hold them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) now: u64,
    pub(crate) allows: BTreeMap<IpAddr, Allow>,
    pub(crate) classes: BTreeMap<u32, Vec<Cell>>,
    /// Network, prefix length, class; each holds what those hold that hold it.
    pub(crate) prefixes: BTreeMap<(IpAddr, u8), Vec<Cell>>,
    pub(crate) slots: BTreeMap<u32, Class>,
    /// Conntrack can be asked.
    pub(crate) asks: bool,
    /// Of live connections: protocol, destination and its port; all frames here come from one source.
    pub(crate) connections: BTreeSet<(u8, IpAddr, u16)>,
}

/// Where all frames come from: the address of either family, and the port.
pub(crate) const SOURCE: (&str, &str, u16) = ("198.51.100.1", "2001:db8:9::1", 0xc001);

pub(crate) fn ip(address: Address) -> IpAddr {
    match address {
        Address::V4(word) => IpAddr::from(word.to_ne_bytes()),
        Address::V6(words) => IpAddr::from(Ipv6Addr::from_bits(u128::from_be_bytes(
            words.map(u64::to_ne_bytes).concat().try_into().unwrap(),
        ))),
    }
}

pub(crate) fn cell(protocol: u8, first: u16, last: u16, index: u32) -> Cell {
    Cell { protocol, reserved: [0; 3], first, last, index }
}

/// Disjoint cells, sorted; sometimes many.
fn cells(random: &mut Random, long: usize) -> Vec<Cell> {
    let mut cells = Vec::new();
    for protocol in [6, 17] {
        let mut next = 0_u16;
        let many = long > 0 && random.one_in(long);
        for _ in 0..if many { 64 } else { random.below(5) } {
            let first = next + random.below(if many { 3 } else { 500 }) as u16;
            let last = first + random.below(if many { 4 } else { 500 }) as u16;
            cells.push(cell(protocol, first, last, 1 + random.below(1000) as u32));
            next = last + 1;
        }
    }
    cells
}

impl Model {
    pub(crate) fn random(random: &mut Random, now: u64) -> Self {
        let flags = random.pick(&[
            flag::BOUNCE,
            flag::BOUNCE,
            flag::BOUNCE | flag::DNS,
            flag::BOUNCE | flag::DNS | flag::DOT,
            0,
        ]);
        let mut model = Self {
            config: Config { flags, mark_mask: 0x00ff_ffff, samples_per_second: 0, mark_shift: 0 },
            now,
            ..Self::default()
        };
        // Sets of classes of which each holds the next ones: as the steps of an address need them.
        let mut chains = Vec::new();
        for chain in 0..6_u32 {
            let mut whole = cells(random, 6);
            let mut ids = Vec::new();
            for step in 0..4 {
                if whole.is_empty() {
                    break;
                }
                let id = 2 + chain * 4 + step;
                model.classes.insert(id, whole.clone());
                ids.push(id);
                let keep = random.below(whole.len());
                whole.truncate(keep);
            }
            chains.push(ids);
        }
        for _ in 0..16 {
            let ids = &chains[random.below(chains.len())];
            let mut allow = Allow::default();
            let over = random.below(5);
            for (step, &id) in ids.iter().take(1 + random.below(4)).enumerate() {
                // Far from now, so that the clock of the kernel judges alike.
                let until_ns = if step < over { 1 + step as u64 } else { u64::MAX - 10 + step as u64 };
                allow.steps[step] = Step { until_ns, class: id, reserved: 0 };
            }
            model.allows.insert(address(random), allow);
        }
        model.prefixes(random);
        model.arrange();
        model.asks = !random.one_in(3);
        for _ in 0..40 {
            model.connections.insert((random.pick(&[6, 17]), address(random), port(random)));
        }
        model
    }

    fn prefixes(&mut self, random: &mut Random) {
        let mut given = BTreeMap::new();
        for _ in 0..random.below(8) {
            let address = address(random);
            let lengths = if address.is_ipv4() { [0, 8, 16, 32] } else { [0, 32, 48, 128] };
            let length = random.pick(&lengths);
            given.insert((network(address, length), length), cells(random, 0));
        }
        for &(address, length) in given.keys() {
            let holders = given.iter().filter(|((holder, bits), _)| {
                holder.is_ipv4() == address.is_ipv4() && *bits <= length && network(address, *bits) == *holder
            });
            let all =
                holders.flat_map(|(_, cells)| cells.clone()).map(|cell| Cell { index: 0, ..cell }).collect();
            self.prefixes.insert((address, length), all);
        }
    }

    /// Lays the classes out in slots, as the loader does.
    pub(crate) fn arrange(&mut self) {
        let mut free = 32_768;
        self.slots.clear();
        let prefixes =
            self.prefixes.values().enumerate().map(|(number, cells)| (16_384 + number as u32, cells));
        for (mut slot, cells) in self.classes.iter().map(|(&id, cells)| (id, cells)).chain(prefixes) {
            let mut chunks = cells.chunks(CELLS_PER_CLASS).peekable();
            while let Some(chunk) = chunks.next() {
                let mut class = Class::default();
                class.cells[..chunk.len()].copy_from_slice(chunk);
                if chunks.peek().is_some() {
                    class.next = free;
                    free += 1;
                }
                self.slots.insert(std::mem::replace(&mut slot, class.next), class);
            }
        }
        let all = [cell(6, 0, u16::MAX, 0), cell(17, 0, u16::MAX, 0)];
        let mut class = Class::default();
        class.cells[..2].copy_from_slice(&all);
        self.slots.insert(ALL_PORTS_CLASS, class);
    }

    /// What becomes of a packet, said once more.
    pub(crate) fn expected(&self, packet: &Packet) -> Verdict {
        let destination = ip(packet.destination);
        let local = match destination {
            IpAddr::V4(address) => {
                address.is_multicast() || address.is_broadcast() || address.is_link_local()
            }
            IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
        };
        if local || packet.to_group {
            return Verdict::Pass;
        }
        let hit = |cells: &[Cell]| {
            let held = |cell: &&Cell| {
                cell.protocol == packet.protocol && (cell.first..=cell.last).contains(&packet.port)
            };
            cells.iter().find(held).map(|cell| cell.index)
        };
        let steps: Vec<Step> = self.allows.get(&destination).map_or(vec![], |allow| {
            allow.steps.iter().filter(|step| step.class != NO_CLASS).copied().collect()
        });
        let live: Vec<u32> = steps
            .iter()
            .filter(|step| step.until_ns > self.now)
            .filter_map(|step| hit(&self.classes[&step.class]))
            .collect();
        if let Some(&index) = live.first() {
            return Verdict::Stamp(index);
        }
        let flags = self.config.flags;
        let intercepted =
            (packet.port == 53 && flags & flag::DNS != 0) || (packet.port == 853 && flags & flag::DOT != 0);
        let datagram = packet.protocol == 17;
        let passed = datagram && (!self.asks || packet.port == 68);
        if !packet.opens || flags & flag::BOUNCE == 0 || intercepted || passed {
            return Verdict::Pass;
        }
        let longest = self
            .prefixes
            .iter()
            .filter(|((address, length), _)| {
                address.is_ipv4() == destination.is_ipv4() && network(destination, *length) == *address
            })
            .max_by_key(|((_, length), _)| *length);
        if longest.is_some_and(|(_, cells)| hit(cells).is_some()) {
            return Verdict::Pass;
        }
        if self.asks && self.knows(packet) {
            return Verdict::Pass;
        }
        let once = steps.iter().any(|step| hit(&self.classes[&step.class]).is_some());
        Verdict::Bounce(if once { Reason::Expired } else { Reason::Policy })
    }
}

/// The address with all bits behind the prefix cleared.
pub(crate) fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl Conntrack for Model {
    fn can_be_asked(&self) -> bool {
        self.asks
    }

    fn knows(&self, packet: &Packet) -> bool {
        let (v4, v6, port) = SOURCE;
        let from_here = [v4, v6].map(|text| text.parse().unwrap()).contains(&ip(packet.source));
        from_here
            && packet.source_port == port
            && self.connections.contains(&(packet.protocol, ip(packet.destination), packet.port))
    }
}

impl Tables for Model {
    fn config(&self) -> Config {
        self.config
    }

    fn now_ns(&self) -> u64 {
        self.now
    }

    fn allow4(&self, address: &[u8; 4]) -> Option<&Allow> {
        self.allows.get(&IpAddr::from(*address))
    }

    fn allow6(&self, address: &[u8; 16]) -> Option<&Allow> {
        self.allows.get(&IpAddr::from(*address))
    }

    fn class(&self, slot: u32) -> Option<&Class> {
        self.slots.get(&slot)
    }

    fn static4(&self, address: &[u8; 4]) -> Option<u32> {
        self.longest(IpAddr::from(*address))
    }

    fn static6(&self, address: &[u8; 16]) -> Option<u32> {
        self.longest(IpAddr::from(*address))
    }
}

impl Model {
    fn longest(&self, address: IpAddr) -> Option<u32> {
        let lengths = 0..=if address.is_ipv4() { 32 } else { 128 };
        let keys: Vec<_> = self.prefixes.keys().collect();
        let found = lengths
            .rev()
            .find_map(|length| keys.iter().position(|key| **key == (network(address, length), length)));
        found.map(|position| 16_384 + position as u32)
    }
}

/// A reader that takes a frame apart by cutting slices.
pub(crate) fn read(frame: &[u8], tags: u32) -> Option<Packet> {
    let (ethernet, mut rest) = frame.split_at_checked(14)?;
    let mut ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    let mut seen = 0;
    while [0x8100, 0x88a8].contains(&ethertype) && seen < 2 {
        if seen == tags {
            return None;
        }
        seen += 1;
        ethertype = u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?);
        rest = &rest[4..];
    }
    let word = |bytes: &[u8], at: usize| {
        Some(usize::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
    };
    let (source, destination, mut protocol, mut body) = match ethertype {
        0x0800 => {
            let length = usize::from(rest.first()? & 15) * 4;
            let packet = rest.get(..word(rest, 2)?)?;
            if rest[0] >> 4 != 4 || length < 20 || word(packet, 6)? & 0x1fff != 0 {
                return None;
            }
            let address = |at| Some(Address::v4(packet.get(at..at + 4)?.try_into().ok()?));
            (address(12)?, address(16)?, *packet.get(9)?, packet.get(length..)?)
        }
        0x86dd => {
            let body = rest.get(40..)?.get(..word(rest, 4)?)?;
            if rest[0] >> 4 != 6 || body.is_empty() {
                return None;
            }
            let address = |at: usize| Some(Address::v6(rest[at..at + 16].try_into().ok()?));
            (address(8)?, address(24)?, rest[6], body)
        }
        _ => return None,
    };
    let more4 = ethertype == 0x0800 && word(rest, 6)? & 0x2000 != 0;
    let mut fragment = more4;
    let mut position = 0;
    let mut fragments = 0;
    while ethertype == 0x86dd && [0, 43, 44, 60].contains(&protocol) && position < 6 {
        let next = *body.first()?;
        let length = if protocol == 44 { 8 } else { (usize::from(*body.get(1)?) + 1) * 8 };
        body.get(..8)?;
        let bad = match protocol {
            0 => position > 0,
            43 => body[3] != 0,
            44 => {
                fragments += 1;
                fragment = body[3] & 1 == 1;
                fragments > 1 || word(body, 2)? & 0xfff8 != 0
            }
            _ => false,
        };
        if bad {
            return None;
        }
        (protocol, position) = (next, position + 1);
        body = body.get(length..)?;
    }
    let (source_port, port) = (word(body, 0)? as u16, word(body, 2)? as u16);
    let opens = match protocol {
        6 => {
            let length = usize::from(body.get(12)? >> 4) * 4;
            if length < 20 || body.len() < length {
                return None;
            }
            !fragment && body[13] & 0b1_0111 == SYN
        }
        17 => {
            let length = word(body, 4)?;
            if body.len() < 8 || length < 8 || (!fragment && length > body.len()) {
                return None;
            }
            !fragment
        }
        _ => return None,
    };
    Some(Packet { source, destination, protocol, source_port, port, opens, to_group: frame[0] & 1 == 1 })
}
