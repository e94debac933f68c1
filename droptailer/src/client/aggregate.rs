//! Packets of one flow become one record under pressure; pure.

use std::collections::BTreeMap;

use super::raw::Raw;

/// Packets of one flow: the first of them, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) first: Raw,
    pub(crate) count: u64,
}

/// Puts packets of equal flows together, in the order of their first ones.
pub(crate) fn aggregate(packets: Vec<Raw>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut places: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for packet in packets {
        let key = flow(&packet);
        let known = key.as_ref().and_then(|key| places.get(key)).and_then(|place| groups.get_mut(*place));
        match known {
            Some(group) => group.count += 1,
            None => {
                if let Some(key) = key {
                    places.insert(key, groups.len());
                }
                groups.push(Group { first: packet, count: 1 });
            }
        }
    }
    groups
}

/// Each packet for itself.
pub(crate) fn one_by_one(packets: Vec<Raw>) -> Vec<Group> {
    packets.into_iter().map(|first| Group { first, count: 1 }).collect()
}

/// Addresses, protocol, and ports or type and code, where the packet came from and went to, and what became of it.
/// `None`: a fragment or something else without a flow.
fn flow(raw: &Raw) -> Option<Vec<u8>> {
    let packet = raw.packet();
    let (addresses, protocol, rest) = match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet.first()? & 0xf) * 4;
            // MF or an offset.
            if u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x3fff != 0 {
                return None;
            }
            (packet.get(12..20)?, *packet.get(9)?, packet.get(length..)?)
        }
        6 => (packet.get(8..40)?, *packet.get(6)?, packet.get(40..)?),
        _ => return None,
    };
    let transport = match protocol {
        6 | 17 => rest.get(..4)?,
        1 | 58 => rest.get(..2)?,
        _ => return None,
    };
    let mut key = raw.place().to_vec();
    key.push(protocol);
    key.extend_from_slice(transport);
    key.extend_from_slice(addresses);
    Some(key)
}

#[cfg(test)]
mod tests {
    use fw_netlink::nflog::Packet;
    use proptest::prelude::*;

    use super::*;
    use crate::record::Action;

    fn udp(port: u8, input: u32, fragment: u8) -> Raw {
        let payload = [
            0x45, 0, 0, 28, 0, port, fragment, 0, 64, 17, 0, 0, 10, 0, 0, 5, 192, 0, 2, 1, 0, 7, 0, port, 0,
            8, 0, 0,
        ];
        let packet = Packet { input: Some(input), payload: &payload, ..Packet::default() };
        Raw::copy(&packet, Action::Drop)
    }

    #[test]
    fn only_packets_of_one_flow_on_one_way_are_put_together_and_fragments_never() {
        let packets =
            vec![udp(1, 1, 0), udp(2, 1, 0), udp(1, 2, 0), udp(1, 1, 0), udp(9, 1, 0x20), udp(9, 1, 0x20)];
        let counts: Vec<u64> = aggregate(packets.clone()).iter().map(|group| group.count).collect();
        assert_eq!(counts, [2, 1, 1, 1, 1]);
        assert_eq!(one_by_one(packets).len(), 6);
    }

    proptest! {
        #[test]
        fn no_packet_is_lost_or_invented(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..60)) {
            let copy = |payload: &Vec<u8>| {
                Raw::copy(&Packet { payload, ..Packet::default() }, Action::Accept)
            };
            let groups = aggregate(packets.iter().map(copy).collect());
            let sum: u64 = groups.iter().map(|group| group.count).sum();
            prop_assert_eq!(sum, u64::try_from(packets.len()).unwrap());
        }
    }
}
