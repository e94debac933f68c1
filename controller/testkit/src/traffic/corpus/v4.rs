//! What only IPv4 has.

use crate::traffic::corpus::build::{Builder, Fate, TCP, UDP, add_common, length_of};

pub(super) fn add(builder: &mut Builder) {
    add_common(builder, false);
    options(builder);
    headers(builder);
}

/// Options (RFC 791 section 3.1).
fn options(builder: &mut Builder) {
    use Fate::{Refused, Whole};
    let there = builder.ends.v4.1.octets();
    let route = |kind: u8| {
        let mut option = vec![kind, 7, 4];
        option.extend(there);
        option.push(0);
        option
    };
    let mut record = vec![7, 15, 4];
    record.extend([0; 13]);
    let mut times = vec![68, 12, 5, 0];
    times.extend([0; 8]);
    let all: Vec<(&str, Vec<u8>, Fate)> = vec![
        ("no operation, four times", vec![1; 4], Whole),
        ("forty bytes of no operation", vec![1; 40], Whole),
        ("end of options, and junk behind it", vec![0, 9, 9, 9], Whole),
        ("router alert", vec![148, 4, 0, 0], Whole),
        ("record route", record, Whole),
        ("timestamps", times, Whole),
        ("an unknown option", vec![0x9e, 4, 0, 0], Whole),
        // `accept_source_route` is off.
        ("loose source route", route(131), Refused),
        ("strict source route", route(137), Refused),
        ("an option of length 0", vec![7, 0, 4, 0], Refused),
        ("an option of length 1", vec![7, 1, 4, 0], Refused),
        ("an option longer than the header", vec![7, 40, 4, 0], Refused),
    ];
    for (name, options, fate) in all {
        for protocol in [TCP, UDP] {
            builder.add(false, protocol, name, fate, |seed| {
                vec![seed.frame(&seed.v4(&options, 0, &seed.segment()))]
            });
        }
    }
    builder.add(false, TCP, "options in both fragments", Whole, |seed| {
        let segment = seed.segment();
        let first = seed.v4(&[1; 8], 0x2000, &segment[..40]);
        vec![seed.frame(&first), seed.frame(&seed.v4(&[1; 8], 5, &segment[40..]))]
    });
}

fn headers(builder: &mut Builder) {
    use Fate::{Dropped, Refused, Whole};
    for words in 0..5_u8 {
        builder.add(false, TCP, format!("a header of {words} words"), Dropped, |seed| {
            seed.changed(|packet| packet[0] = 0x40 | words)
        });
    }
    let changes: Vec<(&str, Fate, usize, Vec<u8>)> = vec![
        ("an IP header longer than the packet", Dropped, 2, length_of(40).to_vec()),
        ("a length below that of the header", Dropped, 2, length_of(19).to_vec()),
        ("a length that ends at the header", Dropped, 2, length_of(20).to_vec()),
        ("a length that ends inside the ports", Dropped, 2, length_of(22).to_vec()),
        ("a length beyond the frame", Dropped, 2, length_of(1000).to_vec()),
        ("version 5", Dropped, 0, vec![0x55]),
        ("version 6", Dropped, 0, vec![0x65]),
        ("one hop left", Refused, 8, vec![1]),
        ("no hop left", Refused, 8, vec![0]),
        ("don't fragment", Whole, 6, vec![0x40, 0]),
        ("the reserved flag", Whole, 6, vec![0x80, 0]),
    ];
    for (number, (name, fate, at, bytes)) in changes.into_iter().enumerate() {
        builder.add(false, TCP, name, fate, |seed| {
            seed.changed(|packet| {
                packet[at..at + bytes.len()].copy_from_slice(&bytes);
                if number == 0 {
                    packet[0] = 0x4f;
                    packet.truncate(40);
                }
            })
        });
    }
    builder.add(false, TCP, "a wrong header checksum", Refused, |seed| {
        let mut packet = seed.plain(&seed.segment());
        packet[10] ^= 0x55;
        vec![seed.frame(&packet)]
    });
}
