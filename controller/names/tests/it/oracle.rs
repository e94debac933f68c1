//! Selectors and entries, judged the slow and obvious way.

use std::net::IpAddr;

use fw_policy::{FqdnSelector, Protocol};

use fw_names::Table;

/// `*` is any number of `[-a-z0-9_.]`: one row of a table per character of the pattern.
pub(crate) fn glob(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let in_class = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for wanted in pattern.chars() {
        let mut next = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            if wanted == '*' {
                next[at] = reached[at] || (at > 0 && next[at - 1] && in_class(name[at - 1]));
            } else {
                next[at] = at > 0 && reached[at - 1] && name[at - 1] == wanted;
            }
        }
        reached = next;
    }
    reached[name.len()]
}

pub(crate) fn is_exact(selector: &FqdnSelector) -> bool {
    matches!(selector, FqdnSelector::Name(_))
}

/// The expressions of these tests are literal names with one class of letters.
pub(crate) fn selects(selector: &FqdnSelector, name: &str) -> bool {
    match selector {
        FqdnSelector::Name(text) => text == name,
        FqdnSelector::Pattern(pattern) => glob(pattern, name),
        FqdnSelector::Regex(regex) => {
            assert_eq!(regex, "[xy]\\.test");
            name == "x.test" || name == "y.test"
        }
    }
}

/// The index a new packet carries, when these selectors are learned for its destination.
pub(crate) fn index(
    table: &Table,
    learned: impl Fn(&FqdnSelector) -> bool,
    protocol: Protocol,
    port: u16,
) -> Option<u32> {
    let mut entries = table.entries.iter();
    let found = entries.find(|(entry, (_, ports))| {
        entry.protocol == protocol
            && learned(&entry.selector)
            && ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    });
    found.map(|(_, (index, _))| *index)
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
