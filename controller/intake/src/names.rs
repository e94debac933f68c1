//! Names of Kubernetes objects, of interfaces, and the selectors of DNS names.

use std::collections::BTreeSet;

use fw_policy::IfName;

/// The only namespace whose ClusterwideNetworkPolicies and Firewalls count.
pub(crate) const NAMESPACE: &str = "firewall";

/// A DNS-1123 label: 1 to 63 of `a-z`, `0-9`, `-`, beginning and ending with a letter or digit.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_subdomain(text) && !text.contains('.')
}

/// A DNS-1123 subdomain, as Kubernetes wants object names: at most 253 characters, parts between dots of `a-z`,
/// `0-9`, `-`, each beginning and ending with a letter or digit.
pub(crate) fn is_subdomain(text: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let part = |part: &str| {
        let bytes = part.as_bytes();
        alphanumeric(bytes.first())
            && alphanumeric(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// All names by which the kernel may show one interface of metal-stack: `vlan<id>` is the port of `vrf<id>`, and
/// on a real VRF the forward hook sees the master while ingress hooks see the port (semantics.md section 3).
pub(crate) fn both_names(name: &IfName) -> BTreeSet<IfName> {
    let text = name.as_str();
    let twin = match (text.strip_prefix("vrf"), text.strip_prefix("vlan")) {
        (Some(id), _) if is_number(id) => format!("vlan{id}").parse().ok(),
        (_, Some(id)) if is_number(id) => format!("vrf{id}").parse().ok(),
        _ => None,
    };
    twin.into_iter().chain([name.clone()]).collect()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
