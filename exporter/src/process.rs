//! Figures of this process, from `/proc/self`: those that every Prometheus client library exports.

use std::fs;

use crate::families::{CPU, Family, MAX_FDS, OPEN_FDS, RESIDENT, START, Text, VIRTUAL, VIRTUAL_MAX};

/// USER_HZ: ticks a second in `/proc/PID/stat`, 100 on every architecture we build for (proc(5), times(2)).
const TICKS: f64 = 100.0;

/// Appends the families; what cannot be read is left out.
pub fn write(text: &mut Text) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let stat = fields(&stat);
    let ticks = |at: usize| stat.get(at).and_then(|field| field.parse::<f64>().ok());
    // proc(5) counts from 1 with pid and name before these: utime is 14, stime 15, starttime 22, vsize 23.
    let cpu = ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / TICKS);
    put(text, &CPU, cpu);
    put(text, &OPEN_FDS, fs::read_dir("/proc/self/fd").ok().map(Iterator::count));
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    put(text, &MAX_FDS, limit(&limits, "Max open files"));
    put(text, &VIRTUAL, stat.get(20).and_then(|bytes| bytes.parse::<u64>().ok()));
    put(text, &VIRTUAL_MAX, limit(&limits, "Max address space"));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    put(text, &RESIDENT, resident(&status));
    let boot = fs::read_to_string("/proc/stat").ok().and_then(|stat| boot_time(&stat));
    put(text, &START, boot.zip(ticks(19)).map(|(boot, start)| boot + start / TICKS));
}

fn put(text: &mut Text, family: &Family, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        text.one(family, value);
    }
}

/// The fields behind the name, which may hold blanks and parentheses.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default()
}

/// A soft limit; -1 where there is none, as Prometheus' own libraries say.
fn limit(limits: &str, name: &str) -> Option<i64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(-1),
        number => number.parse().ok(),
    }
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_seven_families_are_there_and_make_sense() {
        let mut text = Text::default();
        write(&mut text);
        let text = text.into_string();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(f64::NAN)
        };
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds").abs() > 0.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_virtual_memory_max_bytes").abs() > 0.0);
        assert!(value("process_start_time_seconds") > 1.6e9);
    }

    #[test]
    fn a_process_name_with_parentheses_moves_no_field() {
        assert_eq!(fields("1 (a) b) c) S 2 3").first(), Some(&"S"));
        assert_eq!(
            limit("Max open files            unlimited            5 files", "Max open files"),
            Some(-1)
        );
    }
}
