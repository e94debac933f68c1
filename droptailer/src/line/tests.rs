use std::collections::BTreeMap;

use proptest::prelude::*;
use prost_types::Timestamp;

use super::*;

fn of(fields: &[(&str, &str)]) -> String {
    line(1_592_400_207, fields.iter().copied())
}

#[test]
fn a_line_is_the_one_of_the_field() {
    let fields = [("ACTION", "drop"), ("DPT", "4000"), ("SYN", ""), ("timestamp", "replaced"), ("z", "1")];
    assert_eq!(
        of(&fields),
        r#"2020-06-17 13:23:27 +0000 UTC {"ACTION":"drop","DPT":"4000","SYN":"","timestamp":"2020-06-17 13:23:27 +0000 UTC","z":"1"}"#
    );
    assert_eq!(of(&[]), r#"2020-06-17 13:23:27 +0000 UTC {"timestamp":"2020-06-17 13:23:27 +0000 UTC"}"#);
    assert!(
        of(&[("", ""), ("zz", "")])
            .ends_with(r#" {"":"","timestamp":"2020-06-17 13:23:27 +0000 UTC","zz":""}"#)
    );
}

#[test]
fn what_controls_terminals_is_escaped() {
    let text = of(&[("K\n", "\u{1b}[2J\u{9b}2J\r\u{85}\u{2028}\u{202e}\u{7f}\0\\\"ü")]);
    assert!(text.contains(r#""K\n":"\u001b[2J\u009b2J\r\u0085\u2028\u202e\u007f\u0000\\\"ü""#), "{text}");
}

#[test]
fn times_that_no_line_can_show_are_none() {
    let at = |seconds, nanos| super::seconds(&Timestamp { seconds, nanos });
    assert_eq!(at(0, 0), Some(0));
    assert_eq!(at(1_592_400_207, -7), Some(1_592_400_207));
    assert_eq!((at(-1, 0), at(i64::MAX, 0), at(i64::MIN, i32::MIN)), (None, None, None));
    assert_eq!((at(253_402_300_799, 0), at(253_402_300_800, 0)), (Some(LAST_SECOND), None));
}

proptest! {
    #[test]
    fn any_record_is_one_line_of_json_with_sorted_keys(
        time in any::<u64>(),
        fields in prop::collection::btree_map(".{0,20}|\\PC*|[\\x00-\\x1f\\u{80}-\\u{9f}]{0,5}", "(?s).{0,40}", 0..20),
    ) {
        let text = line(time, fields.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        prop_assert!(!text.chars().any(char::is_control), "{text:?}");
        let (time, json) = text.split_at("2020-06-17 13:23:27 +0000 UTC".len());
        let read: BTreeMap<String, String> = serde_json::from_str(json).unwrap();
        let mut expected = fields;
        expected.insert("timestamp".to_owned(), time.to_owned());
        prop_assert_eq!(&read, &expected);
        let places: Vec<usize> = expected
            .iter()
            .map(|(key, value)| {
                let (mut as_key, mut as_value) = (String::new(), String::new());
                string(&mut as_key, key);
                string(&mut as_value, value);
                json.find(&format!("{as_key}:{as_value}")).unwrap()
            })
            .collect();
        prop_assert!(expected.len() < 3 || places.first() < places.last());
    }
}
