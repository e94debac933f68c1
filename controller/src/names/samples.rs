//! A packet that was dropped early, as a line of the drop log.

use std::time::SystemTime;

use fw_bpf_common::Sample;
use fw_droptailer::record::{Action, DropRecord, Logged};

use super::clock::{as_wall, monotonic};

const ETHERNET: usize = 14;
const TAG: usize = 4;
/// 802.1Q, 802.1ad (QinQ).
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// The line, with the key `WHERE` that the kernel's lines do not have. `None`: not an IP packet.
pub(super) fn line(sample: &Sample) -> Option<String> {
    let filled = usize::try_from(sample.filled).ok()?;
    let frame = sample.head.get(..filled)?;
    let packet = frame.get(network_header(frame)?..)?;
    let input = nix::net::if_::if_indextoname(sample.ifindex)
        .map_or_else(|_| format!("#{}", sample.ifindex), |name| name.to_string_lossy().into_owned());
    let at = as_wall(sample.at_ns, monotonic(), SystemTime::now());
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut record = DropRecord::new(&Logged {
        action: Action::Drop,
        time: (since.as_secs(), since.subsec_micros()),
        input: &input,
        output: "",
        link_header: frame.get(..ETHERNET)?,
        mark: 0,
        packet,
    });
    record.add("WHERE", "early");
    Some(record.line())
}

fn network_header(frame: &[u8]) -> Option<usize> {
    let mut at = ETHERNET - 2;
    for _ in 0..3 {
        let kind = u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?);
        if !TAGS.contains(&kind) {
            return Some(at + 2);
        }
        at += TAG;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(frame: &[u8]) -> Sample {
        let mut head = [0; Sample::HEAD];
        head[..frame.len()].copy_from_slice(frame);
        let filled = u32::try_from(frame.len()).unwrap();
        Sample { at_ns: monotonic(), ifindex: 1, reason: 0, length: filled, filled, head }
    }

    fn frame(tags: usize) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for _ in 0..tags {
            frame.extend([0x81, 0, 0, 5]);
        }
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 5, 192, 0, 2, 1]);
        frame.extend([0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn a_sample_is_a_line_with_the_keys_of_the_kernel() {
        for tags in 0..=2 {
            let line = line(&sample(&frame(tags))).unwrap();
            for part in [
                "\"SRC\":\"10.0.0.5\"",
                "\"DPT\":\"443\"",
                "\"SYN\":\"\"",
                "\"IN\":\"lo\"",
                "\"WHERE\":\"early\"",
            ] {
                assert!(line.contains(part), "{part} in {line}");
            }
        }
    }

    #[test]
    fn a_runt_gives_no_line() {
        for length in 0..14 {
            assert_eq!(line(&sample(&frame(0)[..length])), None);
        }
    }
}
