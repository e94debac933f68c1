//! Comments of rules: the keys under which counters appear in status, metrics and dashboards.

use sha2::{Digest, Sha256};

use crate::{DropReason, FqdnSelector, Protocol, ServiceName, Why};

/// NFTNL_UDATA_COMMENT_MAXLEN (libnftnl, include/libnftnl/udata.h): what `nft` accepts and shows.
pub const COMMENT_MAX: usize = 128;

impl Why {
    /// The comment of the rule that counts the packet, exactly as it stands in the kernel.
    pub fn counter(&self) -> String {
        match self {
            Self::Established => "accept established connections".to_owned(),
            Self::Icmp => "accept icmp".to_owned(),
            Self::Ingress { policy, protocol, .. } => ingress(policy, *protocol),
            Self::Egress { policy, protocol, .. } => egress(policy, *protocol),
            Self::Name { policy, selector, protocol } => name(policy, selector, *protocol),
            Self::EncryptedDns { protocol } => encrypted_dns(*protocol),
            Self::DnsFallback { protocol } => dns_fallback(*protocol),
            Self::Service(name) => service(name),
            Self::Drop(reason) => reason.counter().to_owned(),
        }
    }
}

impl DropReason {
    /// The comment of the rule that counts the packet.
    pub fn counter(self) -> &'static str {
        match self {
            Self::Invalid => "drop packets with invalid ct state",
            Self::Spoofed => "drop spoofed packets",
            Self::UnsupportedProtocol => "drop unsupported protocols",
            Self::Bgp => "block bgp forward to machines",
            Self::EncryptedDns => "drop encrypted dns",
            Self::Policy => "count and log dropped packets",
        }
    }
}

/// `accept traffic for k8s network policy NAME tcp`
pub fn ingress(policy: &str, protocol: Protocol) -> String {
    around("accept traffic for k8s network policy ", policy, &format!(" {protocol}"))
}

/// `accept traffic for np NAME tcp`
pub fn egress(policy: &str, protocol: Protocol) -> String {
    around("accept traffic for np ", policy, &format!(" {protocol}"))
}

/// `accept traffic for np NAME tcp, fqdn: SELECTOR`. Where both do not fit, each keeps at least half of the room.
pub fn name(policy: &str, selector: &FqdnSelector, protocol: Protocol) -> String {
    let before = "accept traffic for np ";
    let between = format!(" {protocol}, fqdn: ");
    let room = COMMENT_MAX - before.len() - between.len();
    let half = room / 2;
    // What one of them does not need the other one gets. A text that has to be changed takes 17 bytes more.
    let wanted = |text: &str| if is_plain(text) { text.len() } else { text.len() + HASH };
    let (a, b) = (wanted(policy), wanted(selector.text()));
    let policy_room = if b < half { room - b } else { a.min(half) };
    let policy = shortened(policy, policy_room);
    let selector = shortened(selector.text(), room - policy.len());
    format!("{before}{policy}{between}{selector}")
}

/// `accept traffic for k8s service NAMESPACE/NAME`
pub fn service(name: &ServiceName) -> String {
    around("accept traffic for k8s service ", &name.to_string(), "")
}

/// `accept encrypted dns tcp`
pub fn encrypted_dns(protocol: Protocol) -> String {
    format!("accept encrypted dns {protocol}")
}

/// `accept dns while the proxy is away udp`
pub fn dns_fallback(protocol: Protocol) -> String {
    format!("accept dns while the proxy is away {protocol}")
}

/// `BEFORE NAME AFTER` within the limit of a comment; only the name is shortened.
pub fn around(before: &str, name: &str, after: &str) -> String {
    let room = COMMENT_MAX.saturating_sub(before.len() + after.len());
    format!("{before}{}{after}", shortened(name, room))
}

/// `_` and 64 bits of SHA-256.
const HASH: usize = 17;

/// The text itself where it is short enough and nft needs no quoting for it; otherwise what can be kept, `_` and a
/// part of its SHA-256.
fn shortened(text: &str, max: usize) -> String {
    if text.len() <= max && is_plain(text) {
        return text.to_owned();
    }
    let plain = text.chars().map(|c| if is_printable(c) { c } else { '?' });
    let digest: String = Sha256::digest(text.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("{}_{digest}", plain.take(max.saturating_sub(HASH)).collect::<String>())
}

fn is_plain(text: &str) -> bool {
    text.chars().all(is_printable)
}

fn is_printable(c: char) -> bool {
    // In nft's quoted strings nothing but the quote is special (quotedstring in src/scanner.l).
    (' '..='~').contains(&c) && c != '"'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_policies_and_selectors_share_the_room_and_stay_unique() {
        let long = |end: &str| format!("{}{end}", "a".repeat(240));
        let selector = |end: &str| FqdnSelector::Name(format!("{}{end}", "b.".repeat(120)));
        let all =
            [("x", "x"), ("x", "y"), ("y", "x")].map(|(p, s)| name(&long(p), &selector(s), Protocol::Tcp));
        assert!(all.iter().all(|text| text.len() == COMMENT_MAX), "{all:?}");
        assert!(all[0] != all[1] && all[0] != all[2], "{all:?}");
        let short = name("web", &selector("x"), Protocol::Udp);
        assert!(short.starts_with("accept traffic for np web udp, fqdn: b.b.") && short.len() == COMMENT_MAX);
        let short = name(&long("x"), &FqdnSelector::Name("a.example".to_owned()), Protocol::Udp);
        assert!(short.ends_with(" udp, fqdn: a.example") && short.len() == COMMENT_MAX, "{short}");
        let exact = name(&"a".repeat(47), &FqdnSelector::Name("b".repeat(47)), Protocol::Tcp);
        assert!(exact.len() == COMMENT_MAX && !exact.contains('_'), "{exact}");
    }

    #[test]
    fn the_longest_kubernetes_name_fits_and_stays_unique() {
        let long = "a".repeat(252);
        let comments = ["b", "c"].map(|end| egress(&format!("{long}{end}"), Protocol::Tcp));
        assert!(
            comments.iter().all(|text| text.len() == COMMENT_MAX && text.ends_with(" tcp")),
            "{comments:?}"
        );
        assert_ne!(comments[0], comments[1]);
    }

    #[test]
    fn what_nft_would_have_to_quote_never_reaches_a_comment() {
        let regex = FqdnSelector::Regex(r#"a\.b"; drop"#.to_owned());
        let text = name("web", &regex, Protocol::Tcp);
        assert!(text.starts_with(r"accept traffic for np web tcp, fqdn: a\.b?; drop_"), "{text}");
        let regex = FqdnSelector::Regex(r"[a-z]+\.example".to_owned());
        assert!(name("web", &regex, Protocol::Tcp).ends_with(r", fqdn: [a-z]+\.example"), "nothing to quote");
        let text = around("snat for ", "in\"; drop\n", "");
        assert!(text.starts_with("snat for in?; drop?_"), "{text}");
    }
}
