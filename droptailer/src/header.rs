//! A packet's headers as the kernel's LOG line has them (net/netfilter/nf_log_syslog.c); pure.
//!
//! The bytes come from strangers and are cut to a snap length: what is missing is said (`TRUNCATED`,
//! `INCOMPLETE`), never guessed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_policy::Transport;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ESP: u8 = 50;
const AH: u8 = 51;
const ICMPV6: u8 = 58;
const UDPLITE: u8 = 136;

/// Extension headers that may come between IPv6 and transport: more of them than a packet has use for.
const MOST_EXTENSIONS: usize = 8;

/// What a packet's headers say.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// Source and destination; `None` when the IP header is cut or no IP header.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// Transport header; `None` in later fragments and where it is cut.
    pub transport: Option<Transport>,
    /// Keys and values of the LOG line; flags have an empty value. Where the line has a key twice, the last one
    /// counts, as in every pipeline that made a map of it: `LEN` of UDP is that of the datagram, `ID` of an echo
    /// is the echo's. The packet that an ICMP error quotes is left out.
    pub fields: BTreeMap<String, String>,
}

impl Header {
    /// Reads a packet from its IP header on. Never fails: whatever can be read is there.
    pub fn read(packet: &[u8]) -> Self {
        let mut header = Self::default();
        let complete = match packet.first().map(|byte| byte >> 4) {
            Some(4) => header.read_v4(packet),
            Some(6) => header.read_v6(packet),
            _ => None,
        };
        if complete.is_none() {
            header.flag("TRUNCATED");
        }
        header
    }

    fn set(&mut self, key: &str, value: impl ToString) {
        self.fields.insert(key.to_owned(), value.to_string());
    }

    fn flag(&mut self, key: &str) {
        self.set(key, "");
    }

    /// `None` when the header is cut.
    fn read_v4(&mut self, packet: &[u8]) -> Option<()> {
        let length = usize::from(packet.first()? & 0xf) * 4;
        let fixed: &[u8; 20] = packet.first_chunk()?;
        let source = Ipv4Addr::from(word(fixed, 12)?);
        let destination = Ipv4Addr::from(word(fixed, 16)?);
        self.addresses = Some((source.into(), destination.into()));
        self.set("SRC", source);
        self.set("DST", destination);
        self.set("LEN", half(fixed, 2)?);
        self.set("TOS", format_args!("0x{:02X}", fixed[1] & 0x1e));
        self.set("PREC", format_args!("0x{:02X}", fixed[1] & 0xe0));
        self.set("TTL", fixed[8]);
        self.set("ID", half(fixed, 4)?);
        let fragment = half(fixed, 6)?;
        for (bit, flag) in [(0x8000, "CE"), (0x4000, "DF"), (0x2000, "MF")] {
            if fragment & bit != 0 {
                self.flag(flag);
            }
        }
        let offset = fragment & 0x1fff;
        if offset != 0 {
            self.flag(&format!("FRAG:{offset}"));
        }
        if length < 20 {
            return None;
        }
        self.read_transport(fixed[9], packet.get(length..).unwrap_or_default(), offset != 0, true);
        Some(())
    }

    fn read_v6(&mut self, packet: &[u8]) -> Option<()> {
        let fixed: &[u8; 40] = packet.first_chunk()?;
        let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(fixed.get(at..at + 16)?).ok()?));
        let (source, destination) = (address(8)?, address(24)?);
        self.addresses = Some((source.into(), destination.into()));
        self.set("SRC", long_form(source));
        self.set("DST", long_form(destination));
        self.set("LEN", u32::from(half(fixed, 4)?) + 40);
        let first = word(fixed, 0)?;
        self.set("TC", (first >> 20) & 0xff);
        self.set("HOPLIMIT", fixed[7]);
        self.set("FLOWLBL", first & 0x000f_ffff);
        let (mut protocol, mut rest) = (fixed[6], &packet[40..]);
        let mut later_fragment = false;
        for _ in 0..MOST_EXTENSIONS {
            // Hop-by-hop options, routing, destination options, fragment.
            let length = match protocol {
                0 | 43 | 60 => usize::from(rest.get(1).copied().unwrap_or(0)) * 8 + 8,
                44 => 8,
                _ => break,
            };
            let Some(extension) = rest.get(..length) else {
                self.flag("TRUNCATED");
                return Some(());
            };
            if protocol == 44 {
                later_fragment |= self.read_fragment(extension)?;
            }
            (protocol, rest) = (extension[0], &rest[length..]);
            if later_fragment {
                break;
            }
        }
        self.read_transport(protocol, rest, later_fragment, false);
        Some(())
    }

    /// True when it is not the first fragment.
    fn read_fragment(&mut self, extension: &[u8]) -> Option<bool> {
        let field = half(extension, 2)?;
        self.flag(&format!("FRAG:{}", field & 0xfff8));
        if field & 1 != 0 {
            self.flag("INCOMPLETE");
        }
        self.flag(&format!("ID:{:08x}", word(extension, 4)?));
        Some(field & 0xfff8 != 0)
    }

    fn read_transport(&mut self, protocol: u8, bytes: &[u8], later_fragment: bool, v4: bool) {
        let name = match protocol {
            TCP => "TCP",
            UDP => "UDP",
            UDPLITE => "UDPLITE",
            ICMP if v4 => "ICMP",
            ICMPV6 if !v4 => "ICMPv6",
            AH => "AH",
            ESP => "ESP",
            _ => {
                self.set("PROTO", protocol);
                self.transport = Some(Transport::Other(protocol));
                return;
            }
        };
        self.set("PROTO", name);
        if later_fragment {
            return;
        }
        let complete = match protocol {
            TCP => self.read_tcp(bytes),
            UDP | UDPLITE => self.read_udp(protocol, bytes),
            AH | ESP => self.read_security(protocol, bytes),
            _ => self.read_icmp(bytes, v4),
        };
        if complete.is_none() {
            self.flag("INCOMPLETE");
        }
    }

    fn read_tcp(&mut self, bytes: &[u8]) -> Option<()> {
        let (source, destination) = self.read_ports(bytes)?;
        self.transport = Some(Transport::Tcp { source, destination });
        let fixed: &[u8; 20] = bytes.first_chunk()?;
        self.set("WINDOW", half(fixed, 14)?);
        // The four reserved bits, shifted as the kernel prints them.
        self.set("RES", format_args!("0x{:02X}", (fixed[12] & 0x0f) << 2));
        let flags = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        for (bit, flag) in flags.iter().enumerate() {
            if fixed[13] >> bit & 1 == 1 {
                self.flag(flag);
            }
        }
        self.set("URGP", half(fixed, 18)?);
        Some(())
    }

    fn read_udp(&mut self, protocol: u8, bytes: &[u8]) -> Option<()> {
        let (source, destination) = self.read_ports(bytes)?;
        self.transport = Some(match protocol {
            UDP => Transport::Udp { source, destination },
            other => Transport::Other(other),
        });
        self.set("LEN", half(bytes, 4)?);
        Some(())
    }

    fn read_ports(&mut self, bytes: &[u8]) -> Option<(u16, u16)> {
        let (source, destination) = (half(bytes, 0)?, half(bytes, 2)?);
        self.set("SPT", source);
        self.set("DPT", destination);
        Some((source, destination))
    }

    fn read_icmp(&mut self, bytes: &[u8], v4: bool) -> Option<()> {
        let (kind, code) = (*bytes.first()?, *bytes.get(1)?);
        self.transport = Some(Transport::Icmp { kind, code });
        self.set("TYPE", kind);
        self.set("CODE", code);
        match (v4, kind) {
            (true, 0 | 8) | (false, 128 | 129) => {
                self.set("ID", half(bytes, 4)?);
                self.set("SEQ", half(bytes, 6)?);
            }
            // Redirect, parameter problem, fragmentation needed.
            (true, 5) => self.set("GATEWAY", Ipv4Addr::from(word(bytes, 4)?)),
            (true, 12) => self.set("PARAMETER", *bytes.get(4)?),
            (true, 3) if code == 4 => self.set("MTU", half(bytes, 6)?),
            // Packet too big, parameter problem.
            (false, 2) => self.set("MTU", word(bytes, 4)?),
            (false, 4) => self.set("POINTER", format_args!("{:08x}", word(bytes, 4)?)),
            _ => {}
        }
        Some(())
    }

    fn read_security(&mut self, protocol: u8, bytes: &[u8]) -> Option<()> {
        self.transport = Some(Transport::Other(protocol));
        let at = if protocol == AH { 4 } else { 0 };
        self.set("SPI", format_args!("{:#x}", word(bytes, at)?));
        Some(())
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// `%pI6`: all eight groups with all their digits.
fn long_form(address: Ipv6Addr) -> String {
    address.segments().map(|group| format!("{group:04x}")).join(":")
}

#[cfg(test)]
mod tests;
