use std::sync::Arc;
use std::time::Instant;

use fw_policy::{Block, FqdnSelector, NameEntry, Peers, Policy, PortRange, Ports, Rule};
use fw_ruleset::{DEFAULT_CELL_LIMIT, Names, Stamp, compile_with};

use super::*;

fn rule(peers: Peers, port: u16) -> Rule {
    let range = PortRange { index: 0, protocol: Protocol::Tcp, first: port, last: port };
    Rule { index: 0, peers, ports: Ports::Ranges(vec![range]) }
}

fn block(net: &str) -> Peers {
    Peers::Blocks(vec![Block { index: 0, net: net.parse().unwrap(), except: Vec::new() }])
}

fn judged(stamp: Stamp) -> Arc<Judged> {
    let mut set = PolicySet::default();
    set.firewall.inside.interfaces.insert("vrf104009".parse().unwrap());
    set.firewall.inside.prefixes.insert("10.0.0.0/8".parse().unwrap());
    set.firewall.log_accepted = true;
    set.firewall.host = Some(fw_policy::HostProtection { ssh_ports: [22].into(), ..Default::default() });
    let names = Peers::Names(vec![FqdnSelector::Pattern("*.example.com".to_owned())]);
    let egress = vec![rule(block("1.2.3.0/24"), 443), rule(names, 443)];
    set.policies.insert("web".to_owned(), Policy { ingress: vec![rule(block("9.9.9.0/24"), 80)], egress });
    judge(set, stamp)
}

fn judge(set: PolicySet, stamp: Stamp) -> Arc<Judged> {
    let names = Names { stamp, ..Names::fresh(&set) };
    let ruleset = Arc::new(compile_with(&set, &names, DEFAULT_CELL_LIMIT).ruleset);
    let own_addresses = ["10.0.0.1".parse().unwrap()].into();
    Arc::new(Judged { set, ruleset, names, own_addresses, ..Judged::default() })
}

fn question(action: Action, path: (&str, &str), (from, to): (&str, &str), port: u16) -> Question {
    Question {
        action,
        input: path.0.to_owned(),
        output: path.1.to_owned(),
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: 6,
        ports: Some((40_000, port)),
        icmp: None,
    }
}

const OUT: (&str, &str) = ("vrf104009", "vlan179");
const IN: (&str, &str) = ("vlan179", "vrf104009");

fn one(judged: &Arc<Judged>, question: Question, told: Told) -> Enrichment {
    Enricher::default().answer(judged, &[question], &[told]).remove(0)
}

fn named(name: &str) -> Told {
    Told { destination: Some(name.to_owned()), ..Told::default() }
}

#[test]
fn an_accepted_packet_has_the_rule_and_the_policy_that_let_it_pass() {
    for stamp in [Stamp::Program, Stamp::Sets] {
        let judged = judged(stamp);
        let by_block = question(Action::Accept, OUT, ("10.0.0.5", "1.2.3.4"), 443);
        let answer = one(&judged, by_block, Told::default());
        assert_eq!(answer.rule.as_deref(), Some("accept traffic for np web tcp"));
        assert_eq!(answer.policy.as_deref(), Some("firewall/web"));
        assert_eq!(answer.hint, None);
        let ingress = question(Action::Accept, IN, ("9.9.9.9", "10.0.0.5"), 80);
        let answer =
            one(&judged, ingress, Told { source: Some("nine.example".to_owned()), ..Told::default() });
        assert_eq!(answer.rule.as_deref(), Some("accept traffic for k8s network policy web tcp"));
        assert_eq!(answer.fqdn.as_deref(), Some("nine.example"), "of an ingress packet the source's");
        let selector = FqdnSelector::Pattern("*.example.com".to_owned());
        let entry = NameEntry { policy: "web".to_owned(), selector, protocol: Protocol::Tcp };
        let told = Told { index: Some(judged.names.indexes[&entry]), ..named("www.example.com") };
        let by_name = question(Action::Accept, OUT, ("10.0.0.5", "5.5.5.5"), 443);
        let answer = one(&judged, by_name, told);
        assert_eq!(answer.rule.as_deref(), Some("accept traffic for np web tcp, fqdn: *.example.com"));
        assert_eq!(answer.policy.as_deref(), Some("firewall/web"));
        assert_eq!(answer.fqdn.as_deref(), Some("www.example.com"));
    }
}

#[test]
fn a_dropped_packet_has_the_rule_that_dropped_it_and_a_hint() {
    let judged = judged(Stamp::Program);
    let drop = |path, addresses, port| question(Action::Drop, path, addresses, port);
    let answer = one(&judged, drop(OUT, ("10.0.0.5", "1.2.3.4"), 80), named("x.example"));
    let expected = Enrichment {
        rule: Some("count and log dropped packets".to_owned()),
        policy: None,
        fqdn: Some("x.example".to_owned()),
        hint: Some(
            "egress: [{toFQDNs: [{matchName: x.example}], ports: [{protocol: TCP, port: 80}]}]; \
             policy web allows this address on TCP 443 only"
                .to_owned(),
        ),
    };
    assert_eq!(answer, expected);
    let early = drop(("vrf104009", ""), ("10.0.0.5", "1.2.3.4"), 80);
    assert_eq!(one(&judged, early, named("x.example")), expected, "dropped early");
    let answer = one(&judged, drop(OUT, ("172.16.0.1", "1.2.3.4"), 443), Told::default());
    assert_eq!(answer.rule.as_deref(), Some("drop spoofed packets"));
    assert_eq!(answer.hint.as_deref(), Some("none: no policy allows a source that is not the cluster's"));
    let mut other = drop(OUT, ("10.0.0.5", "1.2.3.4"), 0);
    (other.protocol, other.ports) = (47, None);
    let answer = one(&judged, other, Told::default());
    assert_eq!(answer.rule.as_deref(), Some("drop unsupported protocols"));
    assert_eq!(answer.hint.as_deref(), Some("none: policies allow TCP and UDP only"));
    for to in [("vlan179", ""), ("vrf104009", "")] {
        let answer = one(&judged, drop(to, ("10.0.0.5", "10.0.0.1"), 23), Told::default());
        assert_eq!(answer.rule.as_deref(), Some("drop packets to the firewall"), "{to:?}");
    }
}

#[test]
fn what_would_pass_by_now_is_said_and_no_rule_is_made_up() {
    let judged = judged(Stamp::Program);
    let dropped = question(Action::Drop, OUT, ("10.0.0.5", "1.2.3.4"), 443);
    let answer = one(&judged, dropped, Told::default());
    assert_eq!((answer.rule, answer.policy), (None, None));
    assert_eq!(answer.hint.as_deref(), Some("none: it passes now by policy firewall/web"));
    let accepted = question(Action::Accept, OUT, ("10.0.0.5", "1.2.3.4"), 80);
    assert_eq!(one(&judged, accepted, Told::default()), Enrichment::default());
}

#[test]
fn hostile_questions_have_empty_answers() {
    let judged = judged(Stamp::Program);
    let mut questions = vec![question(Action::Drop, OUT, ("10.0.0.5", "2001:db8::1"), 80)];
    questions.push(question(Action::Drop, ("a b\"", "x/y"), ("10.0.0.5", "1.2.3.4"), 80));
    questions.push(question(Action::Drop, (&"x".repeat(400), ""), ("10.0.0.5", "1.2.3.4"), 80));
    let mut fragment = question(Action::Drop, OUT, ("10.0.0.5", "1.2.3.4"), 80);
    fragment.ports = None;
    questions.push(fragment);
    let answers = Enricher::default().answer(&judged, &questions, &[]);
    assert_eq!(answers, vec![Enrichment::default(); 4]);
}

#[test]
fn answers_are_remembered_within_a_bound_until_the_rules_change() {
    let first = judged(Stamp::Program);
    let enricher = Enricher::default();
    let ask = |judged: &Arc<Judged>, to: u32| {
        let to = std::net::Ipv4Addr::from(0x0102_0300 + to).to_string();
        let question = question(Action::Drop, OUT, ("10.0.0.5", &to), 80);
        enricher.answer(judged, &[question], &[])
    };
    let answers = (ask(&first, 4), ask(&first, 4));
    assert_eq!(answers.0, answers.1);
    assert_eq!(enricher.figures()["cacheHits"], 1);
    for to in 0..=u32::try_from(MAX_CACHED).unwrap() {
        ask(&first, to);
    }
    let figures = enricher.figures();
    assert!(figures["cacheEmptied"] == 1 && figures["cached"].as_u64().unwrap() < 10, "{figures}");
    let mut set = first.set.clone();
    set.policies.get_mut("web").unwrap().egress[0].ports = Ports::All;
    let second = judge(set, Stamp::Program);
    assert_ne!(ask(&second, 4), answers.0, "the rules of now");
}

#[test]
fn packets_against_ten_thousand_policies_take_no_time_to_speak_of() {
    let mut set = judged(Stamp::Program).set.clone();
    for number in 0..10_000_u32 {
        let net = format!("{}/32", std::net::Ipv4Addr::from(0x2000_0000 + number * 7));
        let policy = Policy { ingress: Vec::new(), egress: vec![rule(block(&net), 443)] };
        set.policies.insert(format!("p{number:05}"), policy);
    }
    let judged = judge(set, Stamp::Program);
    let questions: Vec<Question> = (0..64_u32)
        .map(|n| {
            let to = std::net::Ipv4Addr::from(0x2000_0001 + n * 7000).to_string();
            question(Action::Drop, OUT, ("10.0.0.5", &to), 443)
        })
        .collect();
    let began = Instant::now();
    let answers = Enricher::default().answer(&judged, &questions, &[]);
    let took = began.elapsed();
    assert!(
        answers.iter().all(|answer| answer.hint.as_ref().is_some_and(|hint| hint.starts_with("egress: ")))
    );

    assert!(took.as_secs() < 2, "{took:?}");
}
