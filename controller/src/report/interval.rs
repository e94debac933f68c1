//! `spec.interval`: a duration as Go writes it, such as `10s`, `1m30s` or `500ms`.

use std::time::Duration;

/// Where nothing is written, or nothing that can be read.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// The API server is not to be written to more often than this, nor dashboards left without figures for longer.
const MIN: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(3600);

/// Units of Go's `time.ParseDuration` in nanoseconds; those that begin like another one come first.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// The interval, from one second to an hour.
#[must_use]
pub fn parse_interval(text: &str) -> Duration {
    parse(text).map_or(DEFAULT_INTERVAL, |interval| interval.clamp(MIN, MAX))
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() || text.len() > 64 {
        return None;
    }
    let mut nanoseconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let (unit, factor) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        nanoseconds += number.parse::<f64>().ok()? * factor;
        rest = after.get(unit.len()..)?;
    }
    Duration::try_from_secs_f64(nanoseconds / 1e9).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_as_go_reads_them_and_kept_in_bounds() {
        for (text, milliseconds) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1.5m", 90_000),
            ("2500ms", 2_500),
            ("+3s", 3_000),
            ("1s500ms", 1_500),
            ("10ms", 1_000),
            ("0s", 1_000),
            ("1000h", 3_600_000),
            ("99999999999999999999h", 10_000),
            ("24h", 3_600_000),
            ("", 10_000),
            ("10", 10_000),
            ("-10s", 10_000),
            ("ten seconds", 10_000),
            (".s", 10_000),
            ("1.2.3s", 10_000),
            ("1d", 10_000),
        ] {
            assert_eq!(parse_interval(text).as_millis(), milliseconds, "{text}");
        }
    }
}
