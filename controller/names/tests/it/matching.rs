//! Selectors against names.

use fw_names::matcher::Unusable;
use fw_names::{Matcher, Name};
use fw_policy::FqdnSelector::{self, Pattern, Regex};
use proptest::prelude::*;

use crate::oracle::glob;

fn name(text: &str) -> Name {
    Name::from_text(text).expect("a name")
}

fn exact(text: &str) -> FqdnSelector {
    FqdnSelector::Name(text.to_owned())
}

fn pattern(text: &str) -> FqdnSelector {
    Pattern(text.to_owned())
}

fn regex(text: &str) -> FqdnSelector {
    Regex(text.to_owned())
}

fn matches(selector: FqdnSelector, text: &str) -> bool {
    !Matcher::new([selector]).matches(&name(text)).is_empty()
}

#[test]
fn a_star_crosses_labels_and_the_whole_name_counts() {
    assert!(matches(pattern("*.example"), "a.example"));
    assert!(matches(pattern("*.example"), "a.b.example"));
    assert!(!matches(pattern("*.example"), "example"));
    assert!(matches(pattern("*example.com"), "badexample.com"));
    assert!(matches(pattern("*example.com"), "example.com"));
    assert!(matches(pattern("*"), "a.b"));
    assert!(matches(pattern("*"), "."));
    assert!(matches(pattern("a*z.*.example"), "az.1.2.example"));
    assert!(!matches(pattern("a*.example"), "ba.example"));
    assert!(!matches(pattern("a*a"), "a"));
    assert!(!matches(pattern("a*.example"), "a.example.com"));
    assert!(matches(pattern("*_tcp*"), "_x._tcp.example"));
}

#[test]
fn case_and_the_trailing_dot_of_a_selector_do_not_matter() {
    assert!(matches(exact("Example.COM"), "example.com"));
    assert!(matches(exact("example.com."), "EXAMPLE.com"));
    assert!(matches(pattern("*.Example.COM."), "www.example.com"));
    assert!(matches(pattern("Example.com"), "example.com"));
    assert!(matches(exact("bücher.example"), "xn--bcher-kva.example"));
}

#[test]
fn a_star_does_not_stand_for_octets_that_are_not_of_host_names() {
    let odd = Name::from_wire(b"\x03a/b\x07example\0").expect("a name");
    assert!(Matcher::new([pattern("*"), pattern("*.example")]).matches(&odd).is_empty());
    assert_eq!(Matcher::new([regex(r"a\\047b\.example")]).matches(&odd).len(), 1);
}

#[test]
fn expressions_are_anchored_at_both_ends_whatever_they_are_made_of() {
    assert!(matches(regex(r"api-[0-9]+\.example"), "api-12.example"));
    assert!(!matches(regex(r"api-[0-9]+\.example"), "xapi-12.example"));
    assert!(!matches(regex(r"api-[0-9]+\.example"), "api-12.example.com"));
    assert!(!matches(regex(r"a|b"), "ab"));
    assert!(!matches(regex(r"(?m)a$"), "a.b"));
    // An expression that closes the group around it is none by itself.
    let matcher = Matcher::new([regex("a)|(?:.*"), regex("(?x)a # comment"), regex("(")]);
    assert_eq!(matcher.unusable().len(), 3);
    assert!(matcher.matches(&name("zzz")).is_empty());
}

#[test]
fn an_expression_that_is_too_large_is_refused_and_harms_no_other() {
    let matcher = Matcher::new([regex("(?:[a-z]{1,100}){1,1000}"), regex("ok[0-9]")]);
    let refused: Vec<_> = matcher.unusable().iter().collect();
    assert_eq!(refused.len(), 1);
    assert!(matches!(refused[0], (Regex(text), Unusable::Regex(_)) if text.contains("1000")));
    assert_eq!(matcher.matches(&name("ok1")), [&regex("ok[0-9]")]);
}

#[test]
fn many_expressions_are_still_told_apart() {
    let selectors: Vec<FqdnSelector> =
        (0..1_500).map(|number| regex(&format!("host-{number}-[a-z0-9]{{1,40}}\\.example"))).collect();
    let matcher = Matcher::new(selectors);
    assert!(matcher.unusable().is_empty());
    assert_eq!(matcher.matches(&name("host-777-x.example")), [&regex("host-777-[a-z0-9]{1,40}\\.example")]);
}

#[test]
fn a_pattern_made_to_backtrack_costs_no_more_than_its_length() {
    // With backtracking this takes 2^60 steps; that it ends is the proof.
    let selector = pattern(&format!("*{}b", "a*".repeat(60)));
    let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(61));
    assert!(!matches(selector.clone(), &long));
    assert!(matches(selector, &format!("{}b", &long[..200])));
}

#[test]
fn the_order_is_that_of_the_selectors_however_they_were_given() {
    let selectors = [regex(".*"), pattern("*"), pattern("*.b"), exact("a.b"), pattern("a*")];
    let mut reversed = selectors.clone();
    reversed.reverse();
    let (one, other) = (Matcher::new(selectors), Matcher::new(reversed));
    let found = one.matches(&name("a.b"));
    assert_eq!(found, other.matches(&name("a.b")));
    assert_eq!(found, [&exact("a.b"), &pattern("*"), &pattern("*.b"), &pattern("a*"), &regex(".*")]);
}

fn any_pattern() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ab.*]{1,12}").expect("a regex")
}

fn any_name() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ab]{1,3}(\\.[ab]{1,3}){0,4}").expect("a regex")
}

proptest! {
    #[test]
    fn patterns_match_as_a_naive_glob_does(
        patterns in proptest::collection::btree_set(any_pattern(), 1..40),
        names in proptest::collection::vec(any_name(), 1..20),
    ) {
        // A trailing dot is no part of a pattern, and without a star it has to be a name.
        let with_star = |pattern: &&String| pattern.contains('*') && !pattern.ends_with('.');
        let patterns: Vec<&String> = patterns.iter().filter(with_star).collect();
        let matcher = Matcher::new(patterns.iter().map(|text| pattern(text)));
        for text in &names {
            let expected: Vec<FqdnSelector> = patterns
                .iter()
                .filter(|it| glob(it, text))
                .map(|text| pattern(text))
                .collect();
            let found: Vec<FqdnSelector> = matcher.matches(&name(text)).into_iter().cloned().collect();
            prop_assert_eq!(found, expected, "{}", text);
        }
    }
}
