//! Names of objects within the kernel's limits.

use std::net::IpAddr;

use fw_policy::{FqdnSelector, NameEntry, Protocol, ServiceName};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::ir::Family;

/// NFT_NAME_MAXLEN is 256 with the NUL (linux/netfilter/nf_tables.h). Names of objects keep this much of it, so
/// that every prefix and suffix of ours still fits.
const OBJECT_NAME_MAX: usize = 190;

/// Direction of a policy rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// `text` itself where it is short enough and consists of characters nft takes in names; otherwise what can be
/// kept, `_` and 96 bits of its SHA-256. Kubernetes names never hold `_`, so a shortened name cannot be made to
/// equal another object's.
fn shortened(text: &str, max: usize) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '/';
    if text.len() <= max && text.chars().all(fits) {
        return text.to_owned();
    }
    let digest: String =
        Sha256::digest(text.as_bytes()).iter().take(12).map(|b| format!("{b:02x}")).collect();
    let keep = max.saturating_sub(digest.len() + 1);
    let kept: String = text.chars().map(|c| if fits(c) { c } else { '-' }).take(keep).collect();
    format!("{kept}_{digest}")
}

/// Counter chain of a policy: `egress-NAME-tcp`.
pub(super) fn policy_chain(direction: Direction, policy: &str, protocol: Protocol) -> String {
    format!("{}-{}-{protocol}", direction.as_str(), shortened(policy, OBJECT_NAME_MAX))
}

/// Counter chain of a name: `egress-NAME_fqdn-SELECTOR-tcp`. Policies never hold `_`, so the part before it is one
/// policy's; and the kind of the selector stands in it, because a name and a pattern may have the same text.
pub fn name_chain(entry: &NameEntry) -> String {
    let kind = match entry.selector {
        FqdnSelector::Name(_) => "fqdn",
        FqdnSelector::Pattern(_) => "fqdnpattern",
        FqdnSelector::Regex(_) => "fqdnregex",
    };
    let policy = shortened(&entry.policy, OBJECT_NAME_MAX / 2);
    let selector = shortened(entry.selector.text(), OBJECT_NAME_MAX / 2);
    format!("egress-{policy}_{kind}-{selector}-{}", entry.protocol)
}

/// Port chain of one rule of a policy: `egress-NAME-rule0`.
pub(super) fn rule_chain(direction: Direction, policy: &str, index: usize) -> String {
    format!("{}-{}-rule{index}", direction.as_str(), shortened(policy, OBJECT_NAME_MAX))
}

/// Chain that looks one family up, and stem of its maps: `egress4`.
pub(super) fn family_chain(direction: Direction, family: Family) -> String {
    format!("{}{}", direction.as_str(), digit(family))
}

/// Map of all prefixes of one length: `egress4-24`.
pub(super) fn prefix_map(direction: Direction, family: Family, length: u8) -> String {
    format!("{}-{length}", family_chain(direction, family))
}

/// Port chain of a prefix that several rules name: `egress4-10.1.2.0/24`. nft takes no `:` in names, so IPv6 has
/// `.` instead: `egress6-2001.db8../32`.
pub(super) fn prefix_chain(direction: Direction, prefix: IpNet) -> String {
    let family = Family::of(prefix.addr());
    format!("{}-{}/{}", family_chain(direction, family), address(prefix.addr()), prefix.prefix_len())
}

/// Counter chain of a Service: `service-NAMESPACE/NAME`.
pub(super) fn service_chain(name: &ServiceName) -> String {
    format!("service-{}", shortened(&name.to_string(), OBJECT_NAME_MAX))
}

/// A text of a user (network id, interface) as a part of a chain name.
pub(super) fn part(text: &str) -> String {
    shortened(text, OBJECT_NAME_MAX / 2)
}

/// An address as a part of a chain name.
pub(super) fn address(address: IpAddr) -> String {
    address.to_string().replace(':', ".")
}

/// `4` or `6`.
pub(super) fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_kubernetes_name_fits_the_limits_of_the_kernel_and_stays_unique() {
        let long = "a".repeat(252);
        let names: Vec<String> = ["b", "c"].iter().map(|end| format!("{long}{end}")).collect();
        let chains: Vec<String> =
            names.iter().map(|name| policy_chain(Direction::Ingress, name, Protocol::Tcp)).collect();
        assert!(chains.iter().all(|chain| chain.len() < 240), "{chains:?}");
        assert_ne!(chains[0], chains[1]);
    }

    #[test]
    fn chains_of_names_differ_where_entries_do() {
        let long = "a".repeat(252);
        let policies = [format!("{long}b"), format!("{long}c"), "web".to_owned(), "web-fqdn-x".to_owned()];
        let texts =
            ["x".to_owned(), "*.x".to_owned(), "-.x".to_owned(), format!("{long}x"), format!("{long}y")];
        let mut chains = std::collections::BTreeSet::new();
        for policy in &policies {
            for text in &texts {
                for kind in [FqdnSelector::Name, FqdnSelector::Pattern, FqdnSelector::Regex] {
                    for protocol in Protocol::ALL {
                        let entry =
                            NameEntry { policy: policy.clone(), selector: kind(text.clone()), protocol };
                        let chain = name_chain(&entry);
                        assert!(chain.len() < 240, "{chain}");
                        assert!(chains.insert(chain.clone()), "{chain}");
                    }
                }
            }
        }
        for (policy, protocol) in policies.iter().zip([Protocol::Tcp, Protocol::Udp].into_iter().cycle()) {
            assert!(chains.insert(policy_chain(Direction::Egress, policy, protocol)), "{policy}");
        }
    }

    #[test]
    fn a_shortened_name_cannot_be_taken_by_another_object() {
        let short = shortened(&"a".repeat(253), OBJECT_NAME_MAX);
        assert_eq!(short.len(), OBJECT_NAME_MAX);
        assert!(short.contains('_'), "a Kubernetes name never holds '_': {short}");
    }
}
