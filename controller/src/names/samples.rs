//! Packets that were dropped early: given to whoever follows, or else lines of the drop log.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fw_bpf::Samples;
use fw_bpf_common::Sample;
use fw_droptailer::control::EarlyDrop;
use fw_droptailer::record::DropRecord;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use tracing::{debug, info, warn};

use super::Followers;
use super::clock::{as_wall, monotonic};
use crate::telemetry::chain;

/// How often the reader looks whether it is still wanted, in milliseconds.
const LOOK_UP: u16 = 1000;
/// How often it looks what did not fit into the ring.
const COUNT: Duration = Duration::from_secs(1);

/// Reads the samples of dropped packets on a thread of its own: answers do not wait for it. Ends soon after `open` is
/// gone.
pub(super) fn read(mut samples: Samples, followers: Followers, open: &Arc<()>) {
    let open = Arc::downgrade(open);
    std::thread::spawn(move || {
        let mut counted: Option<Instant> = None;
        while open.strong_count() > 0 {
            let mut wait = [PollFd::new(samples.as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, LOOK_UP).is_err_and(|error| error != Errno::EINTR) {
                return warn!("early drops are not logged any more");
            }
            while let Some(sample) = samples.next_sample() {
                followers.count_sample();
                pass_on(&sample, &followers);
                if counted.is_none_or(|at| at.elapsed() >= COUNT) {
                    break;
                }
            }
            if counted.is_none_or(|at| at.elapsed() >= COUNT) {
                counted = Some(Instant::now());
                match samples.drops() {
                    Ok(drops) => followers.ring_full(drops.ring_full),
                    Err(error) => debug!("what did not fit into the ring is unknown: {}", chain(&error)),
                }
            }
        }
    });
}

fn pass_on(sample: &Sample, followers: &Followers) {
    if followers.give(&early(sample)) {
        return;
    }
    if let Some(line) = line(sample) {
        info!(target: "drop", "{line}");
    }
}

/// What a follower is told.
fn early(sample: &Sample) -> EarlyDrop {
    let mut frame = String::with_capacity(2 * Sample::HEAD);
    for byte in filled(sample).unwrap_or_default() {
        // Writing to a String cannot fail.
        write!(frame, "{byte:02x}").ok();
    }
    let since = time_of(sample);
    EarlyDrop {
        ts_us: u64::try_from(since.as_micros()).unwrap_or(u64::MAX),
        input: input(sample),
        frame,
        length: sample.length,
    }
}

/// The line. `None`: not an Ethernet frame.
fn line(sample: &Sample) -> Option<String> {
    let since = time_of(sample);
    let record =
        DropRecord::early(filled(sample)?, (since.as_secs(), since.subsec_micros()), &input(sample))?;
    Some(record.line())
}

fn filled(sample: &Sample) -> Option<&[u8]> {
    sample.head.get(..usize::try_from(sample.filled).ok()?)
}

/// Since 1970.
fn time_of(sample: &Sample) -> Duration {
    let at = as_wall(sample.at_ns, monotonic(), SystemTime::now());
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn input(sample: &Sample) -> String {
    nix::net::if_::if_indextoname(sample.ifindex)
        .map_or_else(|_| format!("#{}", sample.ifindex), |name| name.to_string_lossy().into_owned())
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
    fn a_follower_is_told_the_first_bytes_and_the_time() {
        let told = early(&sample(&frame(1)));
        assert_eq!((told.input.as_str(), told.length), ("lo", 58));
        assert!(told.frame.starts_with("02020202020202020202020281000005080045"), "{}", told.frame);
        assert_eq!(told.frame.len(), 2 * 58);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(now.abs_diff(Duration::from_micros(told.ts_us)) < Duration::from_secs(60));
    }

    #[test]
    fn a_runt_gives_no_line() {
        for length in 0..14 {
            assert_eq!(line(&sample(&frame(0)[..length])), None);
        }
    }
}
