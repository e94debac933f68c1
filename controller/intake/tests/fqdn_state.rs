//! What the controller written in Go has left behind.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

use fw_intake::{
    FqdnState, FqdnStateError, KnownAddress, MAX_STATE_ADDRESSES, MAX_STATE_BYTES, MAX_STATE_NAMES,
    read_fqdn_state,
};
use proptest::prelude::*;

/// 2026-08-17T13:23:27Z, by `date -u +%s`.
const SAMPLE: u64 = 1_786_973_007;

fn known(name: &str, address: &str, until: u64) -> KnownAddress {
    KnownAddress { name: name.to_owned(), address: address.parse().unwrap(), until }
}

/// The end of one address whose time is written so; `None`: it cannot be read.
fn end(time: &str) -> Option<u64> {
    let state = read_fqdn_state(&format!("a.: {{ipv4: {{ips: {{192.0.2.1: '{time}'}}}}}}"), 0).unwrap();
    assert_eq!(u64::try_from(state.known.len()).unwrap() + state.over + state.left_out, 1);
    (state.left_out == 0).then(|| state.known.first().map_or(0, |known| known.until))
}

#[test]
fn names_with_their_living_addresses_are_read() {
    let text = "
www.example.:
  ipv4:
    ips:
      192.0.2.2: \"2026-08-17T15:23:28.123456789+02:00\"
      192.0.2.1: 2026-08-17T13:23:29Z
      192.0.2.3: \"2026-08-17T13:23:27Z\"
      192.0.2.4: \"0001-01-01T00:00:00Z\"
    setName: www.example4
  ipv6:
    ips: {'2001:db8::1': \"2026-08-17T13:23:30Z\"}
    setName: www.example6
v4only.example.: {ipv4: {ips: {192.0.2.9: '2026-08-17T13:23:31Z'}}}
nothing.example.: {ipv4: {ips: null}, ipv6: null}
";
    let expected = [
        known("v4only.example.", "192.0.2.9", SAMPLE + 4),
        known("www.example.", "192.0.2.1", SAMPLE + 2),
        known("www.example.", "192.0.2.2", SAMPLE + 1),
        known("www.example.", "2001:db8::1", SAMPLE + 3),
    ];
    let mut state = read_fqdn_state(text, SAMPLE).unwrap();
    state.known.sort();
    assert_eq!(state, FqdnState { known: expected.to_vec(), over: 2, left_out: 0 });
}

#[test]
fn an_entry_that_cannot_be_read_costs_itself() {
    let text = "
a.: {ipv4: {ips: {192.0.2.1: soon, 192.0.2: '2030-01-01T00:00:00Z', '2001:db8::1': '2030-01-01T00:00:00Z'}}}
b.: {ipv4: {ips: [192.0.2.1]}, ipv6: {ips: {'2001:db8::2': '2030-01-01T00:00:00Z'}}}
c.: {ipv4: {ips: {192.0.2.5: 7}}}
";
    let state = read_fqdn_state(text, SAMPLE).unwrap();
    assert_eq!(state.known, [known("b.", "2001:db8::2", 1_893_456_000)]);
    assert_eq!((state.over, state.left_out), (0, 5));
}

#[test]
fn times_are_read_as_go_writes_them_and_nothing_else_is() {
    for (text, seconds) in [
        ("1970-01-01T00:00:01Z", 1),
        ("2000-02-29T00:00:00Z", 951_782_400),
        ("2026-08-17T13:23:27.999999999Z", SAMPLE),
        ("2026-08-17T11:53:27-01:30", SAMPLE),
        ("2100-02-28T23:59:59Z", 4_107_542_399),
        ("2100-03-01T00:00:00Z", 4_107_542_400),
        ("0001-01-01T00:00:00Z", 0),
    ] {
        assert_eq!(end(text), Some(seconds), "{text}");
    }
    for text in [
        "",
        "Z",
        "2026-08-17",
        "2026-08-17T13:23:27",
        "2026-08-17T13:23:27.Z",
        "2026-08-17 13:23:27Z",
        "2026-13-17T13:23:27Z",
        "2026-00-17T13:23:27Z",
        "2026-02-29T13:23:27Z",
        "2026-08-00T13:23:27Z",
        "2026-08-17T24:23:27Z",
        "2026-08-17T13:60:27Z",
        "2026-08-17T13:23:61Z",
        "+026-08-17T13:23:27Z",
        "2026-08-17T13:23:27+0200",
        "2026-08-17T13:23:27+24:00",
        "2026-08-17T13:23:27++1:00",
        "2026-08-17T13:23:27Zzz",
        "2026-08-17T13:23:2é",
        "éééééééééééééééééééé",
    ] {
        assert_eq!(end(text), None, "{text}");
    }
}

#[test]
fn a_text_that_is_no_map_of_names_gives_nothing() {
    assert_eq!(read_fqdn_state("", SAMPLE), Ok(FqdnState::default()));
    assert_eq!(read_fqdn_state("{}", SAMPLE), Ok(FqdnState::default()));
    assert_eq!(read_fqdn_state("[a, b]", SAMPLE), Err(FqdnStateError::NoMap));
    for text in ["a: [", "a.: {}\na.: {}", "a: &a [*a]", &"[".repeat(1000)] {
        assert!(matches!(read_fqdn_state(text, SAMPLE), Err(FqdnStateError::Yaml(_))), "{text}");
    }
    let large = "#".repeat(MAX_STATE_BYTES + 1);
    assert_eq!(read_fqdn_state(&large, SAMPLE), Err(FqdnStateError::Large(MAX_STATE_BYTES + 1)));
    assert_eq!(read_fqdn_state(&large[1..], SAMPLE), Ok(FqdnState::default()));
}

#[test]
fn names_and_addresses_have_bounds() {
    let ips: String = (0..=MAX_STATE_ADDRESSES)
        .map(|number| format!("10.0.{}.{}: '2030-01-01T00:00:00Z',", number / 256, number % 256))
        .collect();
    let state = read_fqdn_state(&format!("a.: {{ipv4: {{ips: {{{ips}}}}}}}"), SAMPLE).unwrap();
    assert_eq!((state.known.len(), state.left_out), (MAX_STATE_ADDRESSES, 1));
    let line = |number| format!("n{number}.: {{ipv4: {{ips: {{192.0.2.1: '2030-01-01T00:00:00Z'}}}}}}\n");
    let text: String = (0..MAX_STATE_NAMES + 3).map(line).collect();
    let state = read_fqdn_state(&text, SAMPLE).unwrap();
    assert_eq!((state.known.len(), state.left_out), (MAX_STATE_NAMES, 3));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), now in any::<u64>()) {
        if let Ok(state) = read_fqdn_state(&text, now) {
            prop_assert!(state.known.iter().all(|known| known.until > now));
        }
        let inside = format!("a.: {{ipv4: {{ips: {{192.0.2.1: {}}}}}}}", serde_json::Value::from(text));
        if let Ok(state) = read_fqdn_state(&inside, now) {
            prop_assert!(state.known.iter().all(|known| known.until > now));
        }
    }

    #[test]
    fn what_go_would_write_is_read(
        names in proptest::collection::btree_map("[a-z]{1,8}\\.test\\.", proptest::collection::btree_map(
            any::<u32>(), (1_u64..86_400, 0_u32..1_000_000_000), 1..5), 0..5),
    ) {
        // Within one day, in a zone east of UTC, so that the text is made without a calendar.
        let midnight = 1_786_924_800 - 3600;
        let mut expected = Vec::new();
        let mut text = String::new();
        for (name, addresses) in &names {
            text.push_str(&format!("{name}:\n  ipv4:\n    ips:\n"));
            for (address, (second, nanos)) in addresses {
                let address = std::net::Ipv4Addr::from(*address);
                let (hour, minute, rest) = (second / 3600, second / 60 % 60, second % 60);
                text.push_str(&format!(
                    "      {address}: \"2026-08-17T{hour:02}:{minute:02}:{rest:02}.{nanos:09}+01:00\"\n"
                ));
                expected.push(known(name, &address.to_string(), midnight + second));
            }
            text.push_str(&format!("    setName: {name}4\n"));
        }
        let mut state = read_fqdn_state(&text, midnight).unwrap();
        state.known.sort();
        expected.sort();
        prop_assert_eq!(state, FqdnState { known: expected, over: 0, left_out: 0 });
    }
}
