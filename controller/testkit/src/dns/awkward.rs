//! Zones with the names that break resolvers, proxies and firewalls.
//!
//! Addresses are in `198.18.0.0/15` (RFC 2544, benchmarks) and `2001:db8:f00::/48`, on which a lab's internet answers
//! with [`crate::topology::LabSpec::with_any_internet`].

use std::net::IpAddr;

use anyhow::Result;

use crate::dns::wire::kind;
use crate::dns::zone::Zone;

/// IPv4 addresses of all names.
pub const V4: &str = "198.18.0.0/15";
/// IPv6 addresses of all names.
pub const V6: &str = "2001:db8:f00::/48";

/// One address of each family, TTL 300.
pub const PLAIN: &str = "www.example.test";
/// Another one, for what no policy names.
pub const OTHER: &str = "other.example.test";
/// First of eight CNAMEs in mixed case, with TTLs from 270 down to 60; the last leads to addresses of both families.
/// (Knot gives five hops at a time and in lower case, BIND all of them as written.)
pub const CHAIN: &str = "hop1.chain.example.test";
/// The end of the chain, as a question would spell it.
pub const CHAIN_END: &str = "end.chain.example.test";
/// A CNAME to a name whose CNAME leads back.
pub const LOOP: &str = "loop1.example.test";
/// A CNAME to a name in another zone, `target.example.com`.
pub const FOREIGN: &str = "foreign.example.test";
/// A with TTL 300 beside AAAA with TTL 5.
pub const TWO_TTLS: &str = "two-ttls.example.test";
/// TTL 0.
pub const TTL_0: &str = "ttl-0.example.test";
/// TTL 1.
pub const TTL_1: &str = "ttl-1.example.test";
/// TTL 2^31 - 1, the largest there is (RFC 2181 section 8); only [`crate::dns::Scripted`] says 2^31.
pub const TTL_MAX: &str = "ttl-max.example.test";
/// Exists without addresses (NODATA for A and AAAA).
pub const NODATA: &str = "nodata.example.test";
/// A without AAAA.
pub const ONLY_V4: &str = "only-v4.example.test";
/// AAAA without A.
pub const ONLY_V6: &str = "only-v6.example.test";
/// Does not exist.
pub const NXDOMAIN: &str = "nothing.example.test";
/// Underscores.
pub const UNDERSCORE: &str = "_sip._tcp.example.test";
/// Punycode of `bücher`.
pub const PUNYCODE: &str = "xn--bcher-kva.example.test";
/// 60 A and 60 AAAA records: past 512 bytes always; the A records fit into 1,232 bytes and the AAAA records do not.
pub const SIXTY: &str = "sixty.example.test";
/// A TXT record of 5,000 bytes.
pub const LONG_TEXT: &str = "long-text.example.test";
/// An HTTPS record with hints of both families, which no A or AAAA record has.
pub const HINTS: &str = "hints.example.test";
/// An SVCB record with hints.
pub const SVCB_HINTS: &str = "_dns.hints.example.test";
/// Every name below it has one address of each family.
pub const WILDCARD: &str = "wild.example.test";
/// In another zone: one address of each family.
pub const COM: &str = "www.example.com";

/// A name whose first label has 63 bytes.
pub fn label_of_63_bytes() -> String {
    format!("{}.example.test", "l".repeat(63))
}

/// A name of 253 bytes, the longest there is as text.
pub fn name_of_253_bytes() -> String {
    let labels = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(253 - 3 * 64 - 13)];
    format!("{}.example.test", labels.join("."))
}

/// The addresses of a numbered name: 198.18.0.N and 2001:db8:f00::N.
pub fn addresses_of(number: u8) -> [IpAddr; 2] {
    [IpAddr::from([198, 18, 0, number]), IpAddr::from([0x2001, 0xdb8, 0xf00, 0, 0, 0, 0, u16::from(number)])]
}

/// `example.test`, `example.com` and an empty root, so that nothing leaves the lab and every other name is NXDOMAIN.
pub fn zones() -> Result<Vec<Zone>> {
    let mut test = Zone::new("example.test")?
        .addresses("www", 300, &addresses_of(1))?
        .addresses("other", 300, &addresses_of(2))?
        .cname("loop1", 60, "loop2")?
        .cname("loop2", 60, "loop1")?
        .cname("foreign", 60, "target.example.com.")?
        .at("two-ttls", 300, "198.18.0.3")?
        .at("two-ttls", 5, "2001:db8:f00::3")?
        .addresses("ttl-0", 0, &addresses_of(4))?
        .addresses("ttl-1", 1, &addresses_of(5))?
        .addresses("ttl-max", 0x7fff_ffff, &addresses_of(6))?
        .text("nodata", 60, 10)?
        .at("only-v4", 60, "198.18.0.7")?
        .at("only-v6", 60, "2001:db8:f00::7")?
        .addresses("_sip._tcp", 60, &addresses_of(8))?
        .addresses("xn--bcher-kva", 60, &addresses_of(9))?
        .addresses("sixty", 60, &sixty())?
        .text("long-text", 60, 5000)?
        .service("hints", kind::HTTPS, 60, ".", &addresses_of(10))?
        .service("_dns.hints", kind::SVCB, 60, "hints", &addresses_of(11))?
        .addresses("*.wild", 60, &addresses_of(12))?
        .addresses(&relative(&label_of_63_bytes()), 60, &addresses_of(13))?
        .addresses(&relative(&name_of_253_bytes()), 60, &addresses_of(14))?;
    for hop in 1..=8_u32 {
        let (owner, target) = (format!("hop{hop}.chain"), format!("HoP{}.cHaIn", hop + 1));
        let target = if hop == 8 { "EnD.Chain".to_owned() } else { target };
        test = test.cname(&owner, 60 + 30 * (8 - hop), &target)?;
    }
    let test = test.addresses("end.chain", 60, &addresses_of(15))?;
    let com = Zone::new("example.com")?
        .addresses("@", 300, &addresses_of(16))?
        .addresses("www", 300, &addresses_of(17))?
        .addresses("target", 300, &addresses_of(18))?;
    Ok(vec![Zone::new(".")?, test, com])
}

fn relative(name: &str) -> String {
    name.trim_end_matches(".example.test").to_owned()
}

fn sixty() -> Vec<IpAddr> {
    (0..60).flat_map(|n| addresses_of(100 + n)).collect()
}
