//! What the controller written in Go has learned of names: the text under key `state` of its ConfigMap `fqdnstate`.
//!
//! ```yaml
//! www.example.:
//!   ipv4: {ips: {192.0.2.1: "2026-08-17T13:23:27.5+02:00"}, setName: …}
//!   ipv6: {ips: {…}}
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::manifest::yaml_options;
use crate::text::one_line;

/// Largest text that is read, in bytes: as much as a ConfigMap holds.
pub const MAX_STATE_BYTES: usize = 1024 * 1024;
/// Most names that are taken.
pub const MAX_STATE_NAMES: usize = 10_000;
/// Most addresses of a name that are taken, of both families together.
pub const MAX_STATE_ADDRESSES: usize = 256;

/// An address of a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnownAddress {
    /// As it was written; not yet known to be a name.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// When its answer is over: whole seconds since 1970, later than the moment of reading.
    pub until: u64,
}

/// What a state says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FqdnState {
    /// By name, then address.
    pub known: Vec<KnownAddress>,
    /// Addresses whose time is over.
    pub over: u64,
    /// Names and addresses that cannot be read, or exceed a bound.
    pub left_out: u64,
}

/// Why a state cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FqdnStateError {
    /// More than [`MAX_STATE_BYTES`].
    #[error("it has {0} bytes, at most {MAX_STATE_BYTES} are read")]
    Large(usize),
    /// Not YAML, or beyond the bounds of depth, nodes and aliases; one line.
    #[error("not valid YAML: {0}")]
    Yaml(String),
    /// Something else than names with what is known of them.
    #[error("not a map of names")]
    NoMap,
}

/// Reads a state; `now` is in seconds since 1970. An entry that cannot be read costs itself.
pub fn read_fqdn_state(text: &str, now: u64) -> Result<FqdnState, FqdnStateError> {
    if text.len() > MAX_STATE_BYTES {
        return Err(FqdnStateError::Large(text.len()));
    }
    let mut state = FqdnState::default();
    let names = match serde_saphyr::from_str_with_options(text, yaml_options()) {
        Ok(Value::Object(names)) => names,
        Ok(Value::Null) => return Ok(state),
        Ok(_) => return Err(FqdnStateError::NoMap),
        Err(error) => return Err(FqdnStateError::Yaml(one_line(&error.without_snippet().to_string()))),
    };
    for (number, (name, families)) in names.iter().enumerate() {
        if number < MAX_STATE_NAMES {
            state.take_name(name, families, now);
        } else {
            state.left_out += 1;
        }
    }
    Ok(state)
}

impl FqdnState {
    fn take_name(&mut self, name: &str, families: &Value, now: u64) {
        let mut known = BTreeMap::new();
        for (family, is_v4) in [("ipv4", true), ("ipv6", false)] {
            // Go writes null, or nothing, where a family has no address.
            let ips = match families.get(family).map(|family| family.get("ips")) {
                None | Some(None | Some(Value::Null)) => continue,
                Some(Some(Value::Object(ips))) => ips,
                Some(Some(_)) => {
                    self.left_out += 1;
                    continue;
                }
            };
            for (address, until) in ips {
                let address = address.parse().ok().filter(|address: &IpAddr| address.is_ipv4() == is_v4);
                match (address, until.as_str().and_then(seconds_since_1970)) {
                    (Some(_), Some(until)) if until <= now => self.over += 1,
                    (Some(address), Some(until)) if known.len() < MAX_STATE_ADDRESSES => {
                        known.insert(address, until);
                    }
                    _ => self.left_out += 1,
                }
            }
        }
        let known = known.into_iter();
        self.known.extend(known.map(|(address, until)| KnownAddress {
            name: name.to_owned(),
            address,
            until,
        }));
    }
}

/// A time of RFC 3339 in whole seconds, rounded down; times before 1970 are 0. Go prints `time.Time` with up to nine
/// digits of a second and a zone, `metav1.Time` without a fraction in UTC.
fn seconds_since_1970(text: &str) -> Option<u64> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let bytes = date_time.as_bytes();
    let marks = [(4, "-"), (7, "-"), (10, "Tt"), (13, ":"), (16, ":")];
    if !marks.iter().all(|(at, allowed)| allowed.as_bytes().contains(&bytes[*at])) {
        return None;
    }
    let year = digits(date_time.get(0..4)?, 9999)?;
    let month = digits(date_time.get(5..7)?, 12)?;
    let day = digits(date_time.get(8..10)?, days_of_month(year, month)?)?;
    let hour = digits(date_time.get(11..13)?, 23)?;
    let minute = digits(date_time.get(14..16)?, 59)?;
    // 60 is a leap second, which clocks of machines do not have.
    let second = digits(date_time.get(17..19)?, 60)?;
    if day == 0 {
        return None;
    }
    let zone = match rest.strip_prefix('.') {
        None => rest,
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|digit: char| digit.is_ascii_digit());
            if zone.len() == fraction.len() {
                return None;
            }
            zone
        }
    };
    let local = ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(u64::try_from(local - offset(zone)?).unwrap_or(0))
}

/// Seconds that a zone is east of UTC.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    Some(sign * (two_digits(hours, 23)? * 60 + two_digits(minutes, 59)?) * 60)
}

fn two_digits(text: &str, largest: i64) -> Option<i64> {
    if text.len() == 2 { digits(text, largest) } else { None }
}

fn digits(text: &str, largest: i64) -> Option<i64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let value = if is_number { text.parse().ok()? } else { return None };
    (value <= largest).then_some(value)
}

fn days_of_month(year: i64, month: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 => Some(if is_leap { 29 } else { 28 }),
        _ => None,
    }
}

/// By counting from 0000-03-01, in years whose last day is the leap day.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - 719_468
}
