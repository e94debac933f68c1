//! What the kernel refuses, and how it is said.

use fw_nft::{Error, Kernel, NetlinkKernel, Refusal, recognise};
use fw_policy::Origin;
use fw_ruleset::ir::{Chain, Key, Rule, Statement, Verdict};
use fw_ruleset::{Count, Op, Plan, Ruleset};
use fw_testkit::Netns;

use crate::apply::{install, observed};
use crate::sample::{chain, jump, rule, sample, v4};

/// Commits and checks a plan that must be refused, and that nothing of it stays.
fn refusal(wanted: &Ruleset, ops: Vec<Op>) -> Refusal {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let base = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &base);
        let plan = Plan { ops };
        let checked = kernel.check(&plan, wanted).unwrap_err().to_string();
        let error = kernel.commit(&plan, wanted).unwrap_err();
        assert_eq!(checked, error.to_string(), "a check says what a commit says");
        assert_eq!(recognise(&observed(&mut kernel), &base), base);
        println!("{error}");
        match error {
            Error::Refused(refusal) => *refusal,
            other => panic!("{other:?}"),
        }
    })
    .unwrap()
}

fn with_origin(name: &str, origin: &Origin) -> Ruleset {
    let mut wanted = sample();
    wanted.chains.insert(name.to_owned(), Chain { origin: Some(origin.clone()), ..chain(vec![]) });
    wanted
}

#[test]
fn a_refused_rule_is_named_with_its_chain_its_comment_and_its_object() {
    let origin = Origin::policy("web", "spec.egress[1]");
    let name = "egress-web2-tcp";
    let bad = Rule {
        body: vec![Statement::Counter, Statement::NamedCounter("nowhere".to_owned())],
        comment: Some("accept traffic for np web2 tcp".to_owned()),
    };
    let ops = vec![
        Op::CreateChain(name.to_owned(), chain(vec![])),
        Op::AppendRule(name.to_owned(), bad, Count::default()),
        Op::DeleteCounter("neither".to_owned()),
    ];
    let refusal = refusal(&with_origin(name, &origin), ops);
    assert_eq!(refusal.op, 1);
    assert_eq!(refusal.errno, 2);
    assert_eq!(refusal.others, 1);
    assert_eq!(refusal.origin, Some(origin));
    let text = refusal.to_string();
    for part in [
        "rule \"accept traffic for np web2 tcp\" in chain egress-web2-tcp",
        "of clusterwidenetworkpolicy firewall/web spec.egress[1]",
        "No such file or directory",
        "expression objref (number 2)",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_refused_element_is_named_also_in_the_second_message_of_many() {
    let origin = Origin::policy("late", "");
    let mut list: Vec<_> = (0..5000_u32)
        .map(|index| {
            (
                Key::Exact(vec![fw_ruleset::ir::Value::Ipv4((0x1e00_0000 + index).into())]),
                jump("egress-web-tcp"),
            )
        })
        .collect();
    list[4321] = (Key::Exact(vec![v4("9.9.9.9")]), jump("egress-late-tcp"));
    let ops = vec![Op::AddElements("egress4-24".to_owned(), list)];
    let refusal = refusal(&with_origin("egress-late-tcp", &origin), ops);
    assert_eq!(refusal.detail.as_deref(), Some("element 9.9.9.9 : jump egress-late-tcp"));
    assert_eq!(refusal.origin, Some(origin));
}

#[test]
fn an_interval_element_is_named_by_its_key_not_by_its_place_in_the_message() {
    let port = fw_ruleset::ir::Value::Port;
    let list = vec![
        (Key::Range(port(1), port(2)), jump("egress-web-tcp")),
        (Key::Range(port(5), port(6)), jump("egress-web-tcp")),
        (Key::Range(port(85), port(200)), jump("egress-web-tcp")),
    ];
    let refusal = refusal(&sample(), vec![Op::AddElements("ports".to_owned(), list)]);
    assert_eq!(refusal.detail.as_deref(), Some("element 85-200 : jump egress-web-tcp"));
    assert_eq!(refusal.errno, 17);
}

#[test]
fn jumps_nested_too_deep_and_loops_are_refused_with_the_reason() {
    for loops in [false, true] {
        let mut ops = Vec::new();
        for level in 0..=16 {
            ops.push(Op::CreateChain(format!("level{level}"), chain(vec![])));
        }
        for level in 0..16 {
            let to = if loops && level == 3 { 0 } else { level + 1 };
            let jump = Statement::Verdict(Verdict::Jump(format!("level{to}")));
            ops.push(Op::AppendRule(
                format!("level{level}"),
                rule(vec![jump], &format!("to {to}")),
                Count::default(),
            ));
        }
        let enter = Statement::Verdict(Verdict::Jump("level0".to_owned()));
        ops.push(Op::AppendRule("forward".to_owned(), rule(vec![enter], "enter"), Count::default()));
        let refusal = refusal(&sample(), ops);
        assert_eq!(refusal.errno, 31, "EMLINK");
        assert!(
            refusal.to_string().contains("jumps are nested more than 15 deep or form a loop"),
            "{refusal}"
        );
    }
}

#[test]
fn fifteen_jumps_are_not_too_deep() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut wanted = sample();
        for level in 1..=15 {
            let jump = Statement::Verdict(Verdict::Jump(format!("level{}", level + 1)));
            let rules = if level < 15 { vec![rule(vec![jump], "")] } else { vec![] };
            wanted.chains.insert(format!("level{level}"), chain(rules));
        }
        let enter = Statement::Verdict(Verdict::Jump("level1".to_owned()));
        wanted.chains.get_mut("forward").unwrap().rules.push(rule(vec![enter], "enter"));
        install(&mut NetlinkKernel::open().unwrap(), &wanted);
    })
    .unwrap();
}

#[test]
fn a_rule_that_has_no_form_is_an_error_before_anything_is_sent() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let wanted = sample();
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &wanted);
        let before = kernel.generation().unwrap();
        let long = rule(vec![Statement::Counter], &"x".repeat(129));
        let plan = Plan { ops: vec![Op::AppendRule("empty".to_owned(), long, Count::default())] };
        let error = kernel.commit(&plan, &wanted).unwrap_err();
        assert!(matches!(error, Error::Lower { .. }), "{error}");
        assert_eq!(kernel.generation().unwrap(), before);
    })
    .unwrap();
}
