//! The one form of names.

use fw_names::Name;
use fw_names::name::NameError;
use proptest::prelude::*;

fn text(input: &str) -> Result<String, NameError> {
    Name::from_text(input).map(|name| name.as_str().to_owned())
}

#[test]
fn case_and_the_trailing_dot_do_not_matter() {
    assert_eq!(text("Example.COM."), Ok("example.com".to_owned()));
    assert_eq!(text("example.com"), Ok("example.com".to_owned()));
    assert_eq!(text("_dmarc.Ex_ample.com"), Ok("_dmarc.ex_ample.com".to_owned()));
    assert_eq!(text("."), Ok(".".to_owned()));
}

#[test]
fn letters_beyond_ascii_become_a_labels() {
    assert_eq!(text("Bücher.example"), Ok("xn--bcher-kva.example".to_owned()));
    assert_eq!(text("XN--Bcher-Kva.example"), Ok("xn--bcher-kva.example".to_owned()));
    assert_eq!(text("_x.straße.example"), Ok("_x.xn--strae-oqa.example".to_owned()));
    // U+3002 is a dot to UTS 46.
    assert_eq!(text("a。example"), Ok("a.example".to_owned()));
}

#[test]
fn what_is_no_name_says_why() {
    assert_eq!(text(""), Err(NameError::Empty));
    assert_eq!(text(".."), Err(NameError::EmptyLabel));
    assert_eq!(text("a..b"), Err(NameError::EmptyLabel));
    assert_eq!(text(".a"), Err(NameError::EmptyLabel));
    assert_eq!(text("a b"), Err(NameError::Character));
    assert_eq!(text("a\\25"), Err(NameError::Character));
    assert_eq!(text("a\\256"), Err(NameError::Character));
    assert_eq!(text("a\u{7f}"), Err(NameError::Character));
}

#[test]
fn labels_end_at_63_octets_and_names_at_253_characters() {
    let label = "a".repeat(63);
    assert!(text(&label).is_ok());
    assert_eq!(text(&"a".repeat(64)), Err(NameError::LongLabel));
    let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    assert_eq!(longest.len(), 253);
    assert_eq!(text(&longest), Ok(longest.clone()));
    assert_eq!(Name::from_text(&longest).map(|name| name.to_wire().len()), Ok(255));
    assert_eq!(text(&format!("{longest}c")), Err(NameError::Long));
}

#[test]
fn odd_octets_are_escaped_so_that_no_two_names_look_the_same() {
    let dotted = Name::from_wire(b"\x03a.b\x07example\0").expect("a name");
    assert_eq!(dotted.as_str(), "a\\046b.example");
    assert_ne!(dotted, Name::from_text("a.b.example").expect("a name"));
    let star = Name::from_text("*.example").expect("a name");
    assert_eq!(star.as_str(), "\\042.example");
    assert_eq!(Name::from_text(star.as_str()), Ok(star));
}

#[test]
fn wire_form_ends_with_the_root_and_has_no_pointers() {
    assert_eq!(Name::from_wire(b"\0").map(|name| name.to_string()), Ok(".".to_owned()));
    for bad in [&b""[..], b"\x01a", b"\x02a\0", b"\xc0\x0c", b"\x01a\0\0", b"\x40a\0"] {
        assert_eq!(Name::from_wire(bad), Err(NameError::Wire), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn every_wire_form_survives_text_and_back(
        labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..6)
    ) {
        let name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("short enough");
        prop_assert_eq!(&Name::from_text(name.as_str()).expect("normalised text is a name"), &name);
        let wire = name.to_wire();
        prop_assert_eq!(&Name::from_wire(&wire).expect("wire form"), &name);
        let lower: Vec<u8> = labels
            .iter()
            .flat_map(|label| u8::try_from(label.len()).into_iter().chain(label.to_ascii_lowercase()))
            .chain([0])
            .collect();
        prop_assert_eq!(wire, lower);
    }

    #[test]
    fn no_text_and_no_octets_break_the_readers(text in ".{0,80}", octets in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(name) = Name::from_text(&text) {
            prop_assert_eq!(Name::from_text(name.as_str()), Ok(name));
        }
        if let Ok(name) = Name::from_wire(&octets) {
            prop_assert_eq!(name.to_wire(), octets.to_ascii_lowercase());
        }
    }
}
