//! Packets as people write them: `tcp 10.0.1.5:40000 -> 1.2.3.4:443 in vrf104009 out vlan179`.
//!
//! What [`Packet`] prints is accepted again. The source port and the word `state` may be left out.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use fw_policy::{ConntrackState, IfName, Packet, Transport};

/// Source port where none is written; no rule looks at source ports of forwarded packets.
const ANY_SOURCE_PORT: u16 = 40_000;
/// Longest text that is looked at, in bytes.
const MAX_BYTES: usize = 512;

/// Why a text is no packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Too long.
    #[error("a packet has at most {MAX_BYTES} bytes of text")]
    TooLong,
    /// The text ends too early.
    #[error("the packet ends where {0} should stand; write: {FORM}")]
    Missing(&'static str),
    /// A word is not what should stand there.
    #[error("{found:?} is not {wanted}; write: {FORM}")]
    Unexpected {
        /// What should stand there.
        wanted: &'static str,
        /// What stands there.
        found: String,
    },
    /// IPv4 to IPv6 or the other way round.
    #[error("source {0} and destination {1} are not of the same address family")]
    Families(IpAddr, IpAddr),
    /// A name that no interface can have.
    #[error(transparent)]
    Interface(#[from] fw_policy::NameError),
}

const FORM: &str = "PROTOCOL SOURCE[:PORT] -> DESTINATION:PORT in INTERFACE out INTERFACE [state STATE], \
                    e.g. 'tcp 10.0.1.5:40000 -> 1.2.3.4:443 in vrf104009 out vlan179'";

/// Reads a packet.
pub fn parse(text: &str) -> Result<Packet, PacketError> {
    if text.len() > MAX_BYTES {
        return Err(PacketError::TooLong);
    }
    let mut words = Words(text.split_whitespace());
    let mut protocol = protocol(&mut words)?;
    let mut source = words.next("the source")?;
    if let Protocol::Icmp(chosen) = &mut protocol {
        // `icmp 3/4 A -> B`: type and code come before the source.
        *chosen = type_and_code(source);
        if chosen.is_some() {
            source = words.next("the source")?;
        }
    }
    finish(protocol, source, words)
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Tcp,
    Udp,
    /// Type and code; `None` = an echo request.
    Icmp(Option<(u8, u8)>),
    Other(u8),
}

struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn next(&mut self, wanted: &'static str) -> Result<&'a str, PacketError> {
        self.0.next().ok_or(PacketError::Missing(wanted))
    }

    fn keyword(&mut self, word: &'static str) -> Result<(), PacketError> {
        let found = self.next(word)?;
        if found == word { Ok(()) } else { Err(unexpected(word, found)) }
    }
}

fn unexpected(wanted: &'static str, found: &str) -> PacketError {
    PacketError::Unexpected { wanted, found: found.to_owned() }
}

fn protocol(words: &mut Words<'_>) -> Result<Protocol, PacketError> {
    const WANTED: &str = "a protocol (tcp, udp, icmp, icmpv6, sctp, gre, esp, proto N)";
    let name = words.next(WANTED)?;
    Ok(match name.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" | "icmpv6" => Protocol::Icmp(None),
        "sctp" => Protocol::Other(132),
        "gre" => Protocol::Other(47),
        "esp" => Protocol::Other(50),
        "proto" => {
            let number = words.next("a protocol number")?;
            match number.parse().map_err(|_| unexpected("a protocol number (0 to 255)", number))? {
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                1 | 58 => Protocol::Icmp(None),
                other => Protocol::Other(other),
            }
        }
        _ => return Err(unexpected(WANTED, name)),
    })
}

fn finish(protocol: Protocol, source: &str, mut words: Words<'_>) -> Result<Packet, PacketError> {
    words.keyword("->")?;
    let destination = words.next("the destination")?;
    words.keyword("in")?;
    let input: IfName = words.next("an interface")?.parse()?;
    words.keyword("out")?;
    let output: IfName = words.next("an interface")?.parse()?;
    let mut state = ConntrackState::New;
    if let Some(word) = words.0.next() {
        if word != "state" {
            return Err(unexpected("'state' or the end", word));
        }
        state = conntrack_state(words.next("a conntrack state")?)?;
    }
    if let Some(word) = words.0.next() {
        return Err(unexpected("the end", word));
    }
    let (source, destination, transport) = endpoints(protocol, source, destination)?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(PacketError::Families(source, destination));
    }
    Ok(Packet { input, output, source, destination, transport, state })
}

fn endpoints(
    protocol: Protocol,
    source: &str,
    destination: &str,
) -> Result<(IpAddr, IpAddr, Transport), PacketError> {
    match protocol {
        Protocol::Tcp | Protocol::Udp => {
            let (from, source) = source_endpoint(source)?;
            let to = destination.parse::<SocketAddr>().map_err(|_| {
                unexpected("a destination with a port (1.2.3.4:443, [2001:db8::1]:443)", destination)
            })?;
            let destination = to.port();
            let transport = match protocol {
                Protocol::Tcp => Transport::Tcp { source, destination },
                _ => Transport::Udp { source, destination },
            };
            Ok((from, to.ip(), transport))
        }
        Protocol::Icmp(chosen) => {
            let (from, to) = (address(source)?, address(destination)?);
            let (kind, code) = chosen.unwrap_or(if from.is_ipv4() { (8, 0) } else { (128, 0) });
            Ok((from, to, Transport::Icmp { kind, code }))
        }
        Protocol::Other(number) => Ok((address(source)?, address(destination)?, Transport::Other(number))),
    }
}

fn source_endpoint(text: &str) -> Result<(IpAddr, u16), PacketError> {
    if let Ok(endpoint) = text.parse::<SocketAddr>() {
        return Ok((endpoint.ip(), endpoint.port()));
    }
    address(text).map(|address| (address, ANY_SOURCE_PORT))
}

fn address(text: &str) -> Result<IpAddr, PacketError> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let parsed = match bare {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => text.parse(),
    };
    parsed.map_err(|_| unexpected("an address", text))
}

fn type_and_code(text: &str) -> Option<(u8, u8)> {
    let (kind, code) = text.split_once('/')?;
    Some((kind.parse().ok()?, code.parse().ok()?))
}

fn conntrack_state(text: &str) -> Result<ConntrackState, PacketError> {
    Ok(match text {
        "new" => ConntrackState::New,
        "established" => ConntrackState::Established,
        "related" => ConntrackState::Related,
        "invalid" => ConntrackState::Invalid,
        _ => return Err(unexpected("one of new, established, related, invalid", text)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_packets_are_read() {
        let packet = parse("tcp 10.0.1.5:40000 -> 1.2.3.4:443 in vrf104009 out vlan179").unwrap();
        assert_eq!(packet.transport, Transport::Tcp { source: 40_000, destination: 443 });
        assert_eq!(packet.input.as_str(), "vrf104009");
        assert_eq!(packet.state, ConntrackState::New);
        let packet = parse("udp [2001:db8::5]:5353 -> [2001:db8:1::53]:53 in a out b").unwrap();
        assert_eq!(packet.destination, "2001:db8:1::53".parse::<IpAddr>().unwrap());
        let packet = parse("icmp 10.0.1.5 -> 1.2.3.4 in a out b").unwrap();
        assert_eq!(packet.transport, Transport::Icmp { kind: 8, code: 0 });
        let packet = parse("icmp 2001:db8::5 -> 2001:db8::6 in a out b").unwrap();
        assert_eq!(packet.transport, Transport::Icmp { kind: 128, code: 0 });
        let packet = parse("icmp 3/4 1.2.3.4 -> 10.0.1.5 in a out b state related").unwrap();
        assert_eq!(packet.transport, Transport::Icmp { kind: 3, code: 4 });
        assert_eq!(packet.state, ConntrackState::Related);
        let packet = parse("proto 47 10.0.1.5 -> 1.2.3.4 in a out b").unwrap();
        assert_eq!(packet.transport, Transport::Other(47));
    }

    #[test]
    fn the_source_port_may_be_left_out() {
        for source in ["10.0.1.5", "[2001:db8::5]", "2001:db8::5"] {
            let destination = if source.starts_with('1') { "1.2.3.4:53" } else { "[::1]:53" };
            let packet = parse(&format!("udp {source} -> {destination} in a out b")).unwrap();
            assert!(matches!(packet.transport, Transport::Udp { source: ANY_SOURCE_PORT, destination: 53 }));
        }
    }

    #[test]
    fn errors_name_the_word_and_the_form() {
        for (text, part) in [
            ("", "protocol"),
            ("tpc 1.1.1.1 -> 2.2.2.2:1 in a out b", "\"tpc\""),
            ("tcp 1.1.1.1 -> 2.2.2.2 in a out b", "with a port"),
            ("tcp 1.1.1.1 -> 2.2.2.2:70000 in a out b", "70000"),
            ("tcp 1.1.1.1 2.2.2.2:1 in a out b", "->"),
            ("tcp 1.1.1.1 -> 2.2.2.2:1 in a", "out"),
            ("tcp 1.1.1.1 -> [::1]:1 in a out b", "same address family"),
            ("tcp 1.1.1.1 -> 2.2.2.2:1 in waytoolonginterface out b", "15 bytes"),
            ("tcp 1.1.1.1 -> 2.2.2.2:1 in a out b state odd", "\"odd\""),
            ("tcp 1.1.1.1 -> 2.2.2.2:1 in a out b rest", "\"rest\""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?} gives {error:?}");
        }
        assert_eq!(parse(&"x".repeat(10_000)), Err(PacketError::TooLong));
    }

    fn packets() -> impl Strategy<Value = Packet> {
        let addresses = prop_oneof![
            (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
            (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        ];
        let transport = prop_oneof![
            any::<(u16, u16)>().prop_map(|(source, destination)| Transport::Tcp { source, destination }),
            any::<(u16, u16)>().prop_map(|(source, destination)| Transport::Udp { source, destination }),
            any::<(u8, u8)>().prop_map(|(kind, code)| Transport::Icmp { kind, code }),
            (60_u8..).prop_map(Transport::Other),
        ];
        (addresses, transport, "[a-z][a-z0-9.]{0,14}", "[a-z][a-z0-9.]{0,14}").prop_map(
            |((source, destination), transport, input, output)| Packet {
                input: input.parse().unwrap(),
                output: output.parse().unwrap(),
                source,
                destination,
                transport,
                state: ConntrackState::New,
            },
        )
    }

    proptest! {
        #[test]
        fn what_a_packet_prints_is_read_back(packet in packets()) {
            prop_assert_eq!(parse(&packet.to_string()), Ok(packet));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(tcp|udp|icmp|proto) [ -~]{0,80}") {
            parse(&text).ok();
        }
    }
}
