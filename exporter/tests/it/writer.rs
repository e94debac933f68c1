//! Rulesets for the tests: random ones as text, and one with names that nft would not write.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use fw_netlink::batch::{Batch, Finish};
use fw_netlink::message::{flag, subsystem};
use fw_netlink::nft::{Counter, Expr, message, udata};
use fw_netlink::socket::{Outcome, Socket};
use fw_testkit::Netns;
use fw_testkit::r#gen::Rng;

/// A comment that would end a label, a line and a family if it were not escaped.
pub(crate) const HOSTILE_COMMENT: &str = "a\"b\\c\nd{e=\"f\"} 1\n# TYPE nftables_up counter\r";

/// A table whose name is no text, with a rule that has [`HOSTILE_COMMENT`].
pub(crate) fn hostile_table(ns: &Netns) -> Result<()> {
    let outcome = ns.run(|| -> Result<Outcome> {
        let mut socket = Socket::open()?;
        let mut batch = Batch::new(subsystem::NFTABLES, None, socket.reserve(8));
        let table = b"t\"\n\xff\xfe\0";
        let create = flag::CREATE | flag::ACK;
        batch.push(message::NEW_TABLE, create, 2, |w| {
            w.bytes(1, table);
            w.be32(2, 0);
        });
        batch.push(message::NEW_CHAIN, create, 2, |w| {
            w.bytes(1, table);
            w.text(3, "c");
        });
        batch.push(message::NEW_RULE, create | flag::APPEND, 2, |w| {
            w.bytes(1, table);
            w.text(2, "c");
            w.bytes(7, &udata::comment(HOSTILE_COMMENT));
            w.nested(4, |w| Expr::Counter(Counter { packets: 7, bytes: 70 }).encode(w, 1));
        });
        let batch = batch.finish(Finish::Commit)?;
        socket.send_batch(&batch)?;
        Ok(socket.finish_batch(&batch)?)
    })??;
    ensure!(outcome == Outcome::Done, "{outcome:?}");
    Ok(())
}

/// A ruleset that replaces what there is: some tables of random families with random rules.
pub(crate) fn ruleset(rng: &mut Rng) -> String {
    let mut text = String::from("flush ruleset\n");
    for (number, family) in ["inet", "ip", "ip6", "bridge"].into_iter().enumerate() {
        if rng.percent(20) {
            continue;
        }
        let _ = writeln!(text, "table {family} t{number} {{");
        text.push_str("set s4 { type ipv4_addr; }\nset s6 { type ipv6_addr; }\n");
        let _ = writeln!(text, "counter k {{ packets {} bytes {} }}", rng.below(1000), rng.bits() >> 12);
        text.push_str("chain x { }\nchain y { }\n");
        for chain in 0..rng.below(3) {
            let _ = writeln!(text, "chain c{chain} {{");
            for _ in 0..rng.below(12) {
                let _ = writeln!(text, "{}", rule(rng, family));
            }
            text.push_str("}\n");
        }
        text.push_str("}\n");
    }
    text
}

fn rule(rng: &mut Rng, family: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    // One network protocol and one transport a rule, or nft refuses.
    let v6 = family == "ip6" || (family != "ip" && rng.percent(40));
    let transport = if rng.percent(50) { "tcp" } else { "udp" };
    if rng.percent(30) {
        let names = ["eth0", "vlan179", "vrf*", "exactly-15-char"];
        let side = if rng.percent(50) { "iifname" } else { "oifname" };
        let name = rng.pick(&names).copied().unwrap_or_default();
        parts.push(format!("{side} {}\"{name}\"", sign(rng)));
    }
    // One of two fields that lie side by side is negated at most: of `tcp sport != 1 tcp dport != 2` nft 1.0.6 makes one
    // comparison of both, which means "not both equal", and lists it as two. Ours tells what the kernel does.
    for (side, sign) in [("saddr", sign(rng)), ("daddr", "")] {
        if rng.percent(50) {
            let protocol = if v6 { "ip6" } else { "ip" };
            parts.push(format!("{protocol} {side} {}", addresses(rng, v6, sign)));
        }
    }
    for (side, sign) in [("sport", ""), ("dport", sign(rng))] {
        if rng.percent(40) {
            parts.push(format!("{transport} {side} {}", ports(rng, sign)));
        }
    }
    if rng.percent(15) && !v6 {
        let tuples = "{ 1.2.3.4 . 80, 5.6.7.8 . 443, 1.2.3.4 . 9 }";
        parts.push(format!("ip saddr . {transport} dport {}{tuples}", sign(rng)));
    }
    if rng.percent(20) {
        parts.push("meta mark 7".to_owned());
    }
    if rng.percent(85) {
        parts.push(format!("counter packets {} bytes {}", rng.below(100_000), rng.bits() >> 14));
    }
    let actions = ["accept", "drop", "return", "jump x", "goto y", "continue", "", "log"];
    parts.push(rng.pick(&actions).copied().unwrap_or_default().to_owned());
    if rng.percent(40) {
        let comments = ["one", "two words", "with, comma", "brace { } = #", "ünï"];
        parts.push(format!("comment \"{}\"", rng.pick(&comments).copied().unwrap_or_default()));
    }
    if parts.iter().all(|part| part.is_empty() || part.starts_with("comment")) {
        parts.insert(0, "counter".to_owned());
    }
    parts.join(" ")
}

fn sign(rng: &mut Rng) -> &'static str {
    if rng.percent(30) { "!= " } else { "" }
}

fn address(rng: &mut Rng, v6: bool) -> String {
    if v6 {
        format!("2001:db8:{:x}::{:x}", rng.below(0xffff), rng.below(0xffff))
    } else {
        format!("10.{}.{}.{}", rng.below(255), rng.below(255), rng.below(255))
    }
}

fn prefix(rng: &mut Rng, v6: bool) -> String {
    if v6 {
        let lengths = [("2001:db8:8000::", 33), ("2001:db8::", 48), ("fc00::", 7), ("2001:db8:0:8::", 61)];
        let (address, length) = rng.pick(&lengths).copied().unwrap_or(("::", 1));
        format!("{address}/{length}")
    } else {
        let lengths =
            [("10.0.0.0", 8), ("172.16.0.0", 12), ("192.168.0.0", 16), ("1.2.3.0", 24), ("9.9.9.128", 25)];
        let (address, length) = rng.pick(&lengths).copied().unwrap_or(("0.0.0.0", 1));
        format!("{address}/{length}")
    }
}

fn addresses(rng: &mut Rng, v6: bool, sign: &str) -> String {
    match rng.below(5) {
        0 => format!("{sign}{}", prefix(rng, v6)),
        1 => format!("{sign}@s{}", if v6 { 6 } else { 4 }),
        2 => {
            let list: Vec<String> = (0..=rng.below(6)).map(|_| address(rng, v6)).collect();
            format!("{sign}{{ {} }}", list.join(", "))
        }
        3 => {
            // Ranges that do not overlap: nft refuses others.
            let list = if v6 {
                ["2001:db8:1::/48", "2001:db8:2::1-2001:db8:2::9", "fd00::5"]
            } else {
                ["10.0.0.0/8", "192.168.1.1-192.168.1.9", "172.16.0.1"]
            };
            let count = 1 + rng.below(3);
            format!("{sign}{{ {} }}", list[..count].join(", "))
        }
        _ => format!("{sign}{}", address(rng, v6)),
    }
}

fn ports(rng: &mut Rng, sign: &str) -> String {
    let low = rng.between(1, 30_000);
    match rng.below(4) {
        0 => format!("{sign}{low}-{}", low + rng.between(1, 1000)),
        1 => format!("{sign}{{ {low}, {}, {}-{} }}", low + 5, low + 20, low + 30),
        2 => format!("> {low}"),
        _ => format!("{sign}{low}"),
    }
}
