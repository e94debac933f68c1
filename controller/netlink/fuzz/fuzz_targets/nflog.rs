//! Any bytes as a datagram of NFLOG.
#![no_main]

use fw_netlink::message::{Head, Message, Messages, subsystem, write};
use fw_netlink::nflog::Packet;
use libfuzzer_sys::fuzz_target;

fn packet(message: &Message<'_>) {
    if let Ok(Some(packet)) = Packet::decode(message) {
        assert!(packet.hardware_source.len() <= 8);
        assert!(packet.payload.len() <= message.payload.len());
    }
}

fuzz_target!(|bytes: &[u8]| {
    for message in Messages::new(bytes).flatten() {
        packet(&message);
    }
    // As the attributes of a packet.
    let mut datagram = Vec::new();
    write(&mut datagram, &Head { subsystem: subsystem::ULOG, ..Head::default() }, |_| {});
    datagram.extend_from_slice(bytes);
    let Ok(length) = u32::try_from(datagram.len()) else { return };
    datagram[..4].copy_from_slice(&length.to_ne_bytes());
    let message = Messages::new(&datagram).next().expect("one message").expect("whose length is right");
    packet(&message);
});
