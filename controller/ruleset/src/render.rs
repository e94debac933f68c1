//! The ruleset as text for `nft -f` and for people.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_policy::ConntrackState;

use crate::ir::{
    Chain, ChainKind, Family, Field, HookPoint, Key, Limit, LimitUnit, LogTarget, Rule, Ruleset, Selector,
    Set, SetKind, Side, Statement, TABLE, Test, Value, Verdict,
};

/// Prints a ruleset as text that `nft -f` takes. Names and comments are those the compiler made: nothing that a
/// user wrote is pasted unchecked.
pub fn render(ruleset: &Ruleset) -> String {
    let mut text = format!("table inet {TABLE} {{\n");
    for name in ruleset.counters.keys() {
        push(&mut text, &format!("\tcounter {name} {{\n\t}}\n"));
    }
    for (name, timeout) in &ruleset.timeouts {
        let seconds = timeout.seconds;
        let policy = format!("policy = {{ unreplied : {seconds}, replied : {seconds} }}");
        push(&mut text, &format!("\n\tct timeout {name} {{\n\t\tprotocol udp\n\t\t{policy}\n\t}}\n"));
    }
    for (name, set) in &ruleset.sets {
        render_set(&mut text, name, set);
    }
    for (name, chain) in &ruleset.chains {
        render_chain(&mut text, name, chain);
    }
    text.push_str("}\n");
    text
}

fn push(text: &mut String, part: &str) {
    text.push_str(part);
}

fn render_set(text: &mut String, name: &str, set: &Set) {
    let word = if set.map { "map" } else { "set" };
    let fields: Vec<&str> = set.key.iter().map(|field| field_type(*field)).collect();
    let learned = matches!(set.kind, SetKind::Learned { .. } | SetKind::LearnedBoxes { .. });
    let data = match (set.map, learned) {
        (false, _) => "",
        (true, false) => " : verdict",
        (true, true) => " : mark",
    };
    push(text, &format!("\n\t{word} {name} {{\n\t\ttype {}{data}\n", fields.join(" . ")));
    match set.kind {
        SetKind::Exact => {}
        SetKind::Interval => text.push_str("\t\tflags interval\n"),
        SetKind::Learned { size } => push(text, &format!("\t\tsize {size}\n\t\tflags timeout\n")),
        SetKind::LearnedBoxes { size } => push(text, &format!("\t\tsize {size}\n\t\tflags interval\n")),
        SetKind::Dynamic { size, timeout_ms } => {
            let flags = format!("\t\tsize {size}\n\t\tflags dynamic,timeout\n\t\ttimeout {timeout_ms}ms\n");
            push(text, &flags);
        }
    }
    if !set.elements.is_empty() {
        let elements: Vec<String> = set.elements.iter().map(|(key, verdict)| element(key, verdict)).collect();
        push(text, &format!("\t\telements = {{ {} }}\n", elements.join(",\n\t\t             ")));
    }
    text.push_str("\t}\n");
}

fn field_type(field: Field) -> &'static str {
    match field {
        Field::Ipv4 => "ipv4_addr",
        Field::Ipv6 => "ipv6_addr",
        Field::Protocol => "inet_proto",
        Field::Port => "inet_service",
        Field::IfName => "ifname",
        Field::Mark => "mark",
    }
}

fn element(key: &Key, verdict_of: &Option<Verdict>) -> String {
    let key = match key {
        Key::Exact(values) => values.iter().map(value).collect::<Vec<_>>().join(" . "),
        Key::Range(first, last) if first == last => value(first),
        Key::Range(first, last) => format!("{}-{}", value(first), value(last)),
        Key::Box(first, last) => {
            let field = |(first, last): (&Value, &Value)| match first == last {
                true => value(first),
                false => format!("{}-{}", value(first), value(last)),
            };
            first.iter().zip(last).map(field).collect::<Vec<_>>().join(" . ")
        }
    };
    match verdict_of {
        Some(given) => format!("{key} : {}", verdict(given)),
        None => key,
    }
}

fn value(value: &Value) -> String {
    match value {
        Value::Ipv4(address) => address.to_string(),
        Value::Ipv6(address) => address.to_string(),
        Value::Protocol(number) | Value::IcmpType(number) => number.to_string(),
        Value::Port(port) => port.to_string(),
        Value::IfName(name) => format!("\"{name}\""),
        Value::Mark(mark) => format!("0x{mark:08x}"),
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

fn render_chain(text: &mut String, name: &str, chain: &Chain) {
    push(text, &format!("\n\tchain {name} {{\n"));
    if let Some(hook) = chain.hook {
        let kind = match hook.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        let point = match hook.point {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Forward => "forward",
            HookPoint::Postrouting => "postrouting",
        };
        let policy = if hook.policy_drop { "drop" } else { "accept" };
        let line = format!("\t\ttype {kind} hook {point} priority {}; policy {policy};\n", hook.priority);
        push(text, &line);
    }
    for rule in &chain.rules {
        push(text, &format!("\t\t{}\n", rule_text(rule)));
    }
    text.push_str("\t}\n");
}

/// One rule as nft text, without the chain; also used to name a rule the kernel refused.
pub fn rule_text(rule: &Rule) -> String {
    let mut text = rule.body.iter().map(statement).collect::<Vec<_>>().join(" ");
    if let Some(comment) = &rule.comment {
        let _ = write!(text, " comment \"{comment}\"");
    }
    text
}

fn statement(statement: &Statement) -> String {
    match statement {
        Statement::State(states) => {
            format!("ct state {}", states.iter().map(|s| state(*s)).collect::<Vec<_>>().join(","))
        }
        Statement::Family(family) => {
            format!("meta nfproto {}", if *family == Family::V4 { "ipv4" } else { "ipv6" })
        }
        Statement::Match(selector, test) => match_text(*selector, test),
        Statement::ConcatInSet { key, set } => format!("{} @{set}", concatenation(key)),
        Statement::VerdictMap { key, map } => format!("{} vmap @{map}", concatenation(key)),
        Statement::Limit(limit) => limit_text(*limit),
        Statement::LimitPerKey { set, key, limit } => {
            format!("update @{set} {{ {} {} }}", concatenation(key), limit_text(*limit))
        }
        Statement::HashEquals { key, modulus, equals } => {
            format!("jhash {} mod {modulus} seed 0x0 {equals}", concatenation(key))
        }
        Statement::Counter => "counter".to_owned(),
        Statement::NamedCounter(name) => format!("counter name \"{name}\""),
        Statement::Log { prefix, target: LogTarget::Nflog { group, snaplen } } => {
            format!("log prefix \"{prefix}\" group {group} snaplen {snaplen}")
        }
        Statement::Log { prefix, target: LogTarget::Kernel } => format!("log prefix \"{prefix}\""),
        Statement::Snat(IpAddr::V4(address)) => format!("snat ip to {address}"),
        Statement::Snat(IpAddr::V6(address)) => format!("snat ip6 to {address}"),
        Statement::Masquerade => "masquerade".to_owned(),
        Statement::Redirect(port) => format!("redirect to :{port}"),
        Statement::SetMarkByMap { key, map } => format!("meta mark set {} map @{map}", concatenation(key)),
        Statement::CtTimeout(name) => format!("ct timeout set \"{name}\""),
        Statement::Verdict(given) => verdict(given),
    }
}

fn state(state: ConntrackState) -> &'static str {
    match state {
        ConntrackState::New => "new",
        ConntrackState::Established => "established",
        ConntrackState::Related => "related",
        ConntrackState::Invalid => "invalid",
    }
}

fn match_text(selector: Selector, test: &Test) -> String {
    let right = match test {
        Test::Equal(Value::Ipv4(_) | Value::Ipv6(_)) | Test::NotEqual(Value::Ipv4(_) | Value::Ipv6(_)) => {
            return prefix_match(selector, test);
        }
        Test::Equal(wanted) => value(wanted),
        Test::NotEqual(unwanted) => format!("!= {}", value(unwanted)),
        Test::Range(first, last) => format!("{}-{}", value(first), value(last)),
        Test::InSet(set) => format!("@{set}"),
        Test::NotInSet(set) => format!("!= @{set}"),
    };
    format!("{} {right}", selector_text(selector))
}

/// `ip saddr 10.0.0.0/8` is how nft writes a masked comparison.
fn prefix_match(selector: Selector, test: &Test) -> String {
    let (sign, wanted) = match test {
        Test::NotEqual(unwanted) => ("!= ", unwanted),
        Test::Equal(wanted) => ("", wanted),
        _ => return String::new(),
    };
    let Selector::Address { side, family, prefix } = selector else {
        return format!("{} {sign}{}", selector_text(selector), value(wanted));
    };
    let whole = selector_text(Selector::Address { side, family, prefix: family.bits() });
    let length = if prefix == family.bits() { String::new() } else { format!("/{prefix}") };
    format!("{whole} {sign}{}{length}", value(wanted))
}

fn concatenation(key: &[Selector]) -> String {
    key.iter().map(|selector| selector_text(*selector)).collect::<Vec<_>>().join(" . ")
}

fn selector_text(selector: Selector) -> String {
    match selector {
        Selector::InputInterface => "iifname".to_owned(),
        Selector::OutputInterface => "oifname".to_owned(),
        Selector::L4Protocol => "meta l4proto".to_owned(),
        Selector::Address { side, family, prefix } => {
            let header = if family == Family::V4 { "ip" } else { "ip6" };
            let field = if side == Side::Source { "saddr" } else { "daddr" };
            match prefix == family.bits() {
                true => format!("{header} {field}"),
                false => format!("{header} {field} & {}", mask(family, prefix)),
            }
        }
        Selector::Port { side, protocol } => {
            let header = protocol.map_or("th".to_owned(), |protocol| protocol.to_string());
            format!("{header} {}", if side == Side::Source { "sport" } else { "dport" })
        }
        Selector::IcmpType(Family::V4) => "icmp type".to_owned(),
        Selector::IcmpType(Family::V6) => "icmpv6 type".to_owned(),
        Selector::Mark(u32::MAX) => "meta mark".to_owned(),
        Selector::Mark(mask) => format!("meta mark & 0x{mask:08x}"),
    }
}

/// The netmask of a prefix length.
fn mask(family: Family, prefix: u8) -> IpAddr {
    match family {
        Family::V4 => {
            let bits = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(bits))
        }
        Family::V6 => {
            let bits = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(bits))
        }
    }
}

fn limit_text(limit: Limit) -> String {
    let over = if limit.over { "over " } else { "" };
    let (rate, burst) = match limit.unit {
        LimitUnit::Packets => ("", "packets"),
        LimitUnit::Bytes => (" bytes", "bytes"),
    };
    format!("limit rate {over}{}{rate}/second burst {} {burst}", limit.rate, limit.burst)
}
