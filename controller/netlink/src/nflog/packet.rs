//! NFLOG's messages, pure.

use crate::attr::{Attr, Attrs, DecodeError, Writer};
use crate::message::{Head, Message, subsystem};

/// NFULNL_MSG_PACKET and NFULNL_MSG_CONFIG.
const PACKET: u8 = 0;
const CONFIG: u8 = 1;

/// One request to the kernel about a group. Each is a message of its own, answered by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Config {
    /// Become the group's listener; EBUSY when it has one.
    Bind,
    /// Copy this many bytes of each packet.
    Snaplen(u32),
    /// Number the packets, so that losses show.
    Sequence,
    /// Bytes the kernel collects before it sends; 128 KiB at most.
    BufferSize(u32),
    /// Packets it collects before it sends.
    Threshold(u32),
    /// Hundredths of a second it collects before it sends.
    Timeout(u32),
}

impl Config {
    /// The header of the request.
    pub fn head(group: u16) -> Head {
        Head { subsystem: subsystem::ULOG, message: CONFIG, resource: group, ..Head::default() }
    }

    /// Writes its attribute.
    pub fn encode(self, w: &mut Writer<'_>) {
        match self {
            // NFULNL_CFG_CMD_BIND
            Self::Bind => w.u8(1, 1),
            Self::Snaplen(bytes) => {
                // struct nfulnl_msg_config_mode: be32 range, u8 mode (2 = NFULNL_COPY_PACKET), u8 padding.
                let [a, b, c, d] = bytes.to_be_bytes();
                w.bytes(2, &[a, b, c, d, 2, 0]);
            }
            Self::BufferSize(bytes) => w.be32(3, bytes),
            Self::Timeout(hundredths) => w.be32(4, hundredths),
            Self::Threshold(packets) => w.be32(5, packets),
            // NFULNL_CFG_F_SEQ
            Self::Sequence => w.be16(6, 1),
        }
    }
}

/// One logged packet. Borrows from the datagram it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Packet<'a> {
    /// NFLOG group.
    pub group: u16,
    /// NFPROTO_* of the hook.
    pub family: u8,
    /// EtherType; 0x0800 is IPv4, 0x86dd IPv6.
    pub protocol: u16,
    /// NF_INET_* hook it was logged in.
    pub hook: u8,
    /// The rule's prefix.
    pub prefix: &'a str,
    /// Index of the interface it came in by.
    pub input: Option<u32>,
    /// Index of the interface it leaves by.
    pub output: Option<u32>,
    /// Packet mark.
    pub mark: u32,
    /// When it arrived: seconds and microseconds since 1970. Packets of this machine have none.
    pub timestamp: Option<(u64, u64)>,
    /// Source hardware address, up to 8 bytes.
    pub hardware_source: &'a [u8],
    /// The whole link-layer header it came with: destination, source and type on Ethernet.
    pub hardware_header: &'a [u8],
    /// Its number within the group's listener, from 0.
    pub sequence: Option<u32>,
    /// The packet from its network header on, cut to the snap length.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a message; `None` when it is not a logged packet.
    pub fn decode(message: &Message<'a>) -> Result<Option<Self>, DecodeError> {
        if message.nfnl() != (subsystem::ULOG, PACKET) {
            return Ok(None);
        }
        let (family, group) = message.nfgen()?;
        let mut packet = Self { group, family, ..Self::default() };
        packet.read(message.attrs())?;
        Ok(Some(packet))
    }

    fn read(&mut self, attrs: Attrs<'a>) -> Result<(), DecodeError> {
        for attr in attrs {
            let attr = attr?;
            match attr.kind {
                1 => {
                    let [high, low, hook, _] = attr.array()?;
                    self.protocol = u16::from_be_bytes([high, low]);
                    self.hook = hook;
                }
                2 => self.mark = attr.be32()?,
                3 => self.timestamp = Some(timestamp(&attr)?),
                4 => self.input = Some(attr.be32()?),
                5 => self.output = Some(attr.be32()?),
                8 => self.hardware_source = hardware_source(&attr)?,
                9 => self.payload = attr.value,
                10 => self.prefix = text(&attr)?,
                12 => self.sequence = Some(attr.be32()?),
                16 => self.hardware_header = attr.value,
                _ => {}
            }
        }
        Ok(())
    }
}

fn timestamp(attr: &Attr<'_>) -> Result<(u64, u64), DecodeError> {
    let both = u128::from_be_bytes(attr.array()?);
    let low = u64::try_from(both & u128::from(u64::MAX)).map_err(|_| DecodeError::Value(attr.kind))?;
    let high = u64::try_from(both >> 64).map_err(|_| DecodeError::Value(attr.kind))?;
    Ok((high, low))
}

/// struct nfulnl_msg_packet_hw: be16 length, 2 bytes of padding, 8 bytes of address.
fn hardware_source<'a>(attr: &Attr<'a>) -> Result<&'a [u8], DecodeError> {
    let wrong = DecodeError::Size(attr.kind);
    let head: [u8; 2] = attr.value.get(..2).and_then(|b| b.try_into().ok()).ok_or(wrong)?;
    let end = 4 + usize::from(u16::from_be_bytes(head)).min(8);
    attr.value.get(4..end).ok_or(wrong)
}

fn text<'a>(attr: &Attr<'a>) -> Result<&'a str, DecodeError> {
    let bytes = attr.value.strip_suffix(&[0]).unwrap_or(attr.value);
    std::str::from_utf8(bytes).map_err(|_| DecodeError::Text(attr.kind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Messages, write};

    fn datagram(group: u16, fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let head = Head {
            subsystem: subsystem::ULOG,
            message: PACKET,
            family: 1,
            resource: group,
            ..Head::default()
        };
        assert!(write(&mut bytes, &head, fill));
        bytes
    }

    #[test]
    fn several_packets_in_one_datagram_are_read_with_all_their_fields() {
        let mut bytes = datagram(7, |w| {
            w.bytes(1, &[0x86, 0xdd, 2, 0]);
            w.be32(2, 9);
            w.bytes(3, &[0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6]);
            w.be32(4, 3);
            w.be32(5, 4);
            w.bytes(8, &[0, 6, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0]);
            w.bytes(9, &[0x60, 0]);
            w.text(10, "drop: ");
            w.be32(12, 41);
        });
        bytes.extend(datagram(8, |w| w.be32(12, 42)));
        let packets: Vec<_> =
            Messages::new(&bytes).map(|m| Packet::decode(&m.unwrap()).unwrap().unwrap()).collect();
        let expected = Packet {
            group: 7,
            family: 1,
            protocol: 0x86dd,
            hook: 2,
            prefix: "drop: ",
            input: Some(3),
            output: Some(4),
            mark: 9,
            timestamp: Some((5, 6)),
            hardware_source: &[1, 2, 3, 4, 5, 6],
            hardware_header: &[],
            sequence: Some(41),
            payload: &[0x60, 0],
        };
        assert_eq!(packets[0], expected);
        assert_eq!((packets[1].group, packets[1].sequence), (8, Some(42)));
    }

    #[test]
    fn a_hardware_address_longer_than_its_room_is_refused() {
        let bytes = datagram(1, |w| w.bytes(8, &[0, 6, 0, 0, 1, 2]));
        let message = Messages::new(&bytes).next().unwrap().unwrap();
        assert_eq!(Packet::decode(&message), Err(DecodeError::Size(8)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for message in Messages::new(&bytes).flatten() {
                let _ = Packet::decode(&message);
            }
            let bytes = datagram(1, |w| w.bytes(9, &bytes));
            let message = Messages::new(&bytes).next().unwrap().unwrap();
            prop_assert!(Packet::decode(&message).unwrap().is_some());
        }
    }
}
