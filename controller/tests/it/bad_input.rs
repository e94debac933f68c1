//! One directory with good, awkward and bad objects, and the real binary on it.

use anyhow::Result;

use crate::daemon::eventually;
use crate::field::Field;
use crate::rig::{self, FIREWALL, From, documents, policy};
use crate::traffic::{into, out};

const GOOD: u16 = 500;

/// Policy `good-N` opens one port of one address.
fn good(number: u16, port: u16) -> String {
    let spec = format!(
        "{{egress: [{{to: [{{cidr: 198.18.{}.{}/32}}], ports: [{{port: {port}}}]}}]}}",
        number / 250,
        number % 250
    );
    policy(&format!("good-{number}"), &spec)
}

fn address(number: u16) -> String {
    format!("198.18.{}.{}", number / 250, number % 250)
}

/// Bad manifests, what is wrong with each as its finding has it, and a packet that it must not open.
fn bad() -> Vec<(String, Vec<&'static str>, (From, fw_testkit::traffic::craft::Crafted))> {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: bad-service, namespace: shop}\n\
        spec: {type: LoadBalancer, ports: [{port: 443}]}\nstatus: {loadBalancer: {ingress: [{ip: 198.51.100.10.9}]}}";
    let elsewhere = policy("bad-namespace", "{egress: [{to: [{cidr: 192.0.2.8/32}]}]}")
        .replace("namespace: firewall", "namespace: default");
    vec![
        (
            policy("bad-end", "{egress: [{to: [{cidr: 192.0.2.1/32}], ports: [{port: 90, endPort: 80}]}]}"),
            vec!["firewall/bad-end", "spec.egress[0].ports[0].endPort"],
            out("192.0.2.1", 85),
        ),
        (
            policy(
                "bad-except",
                "{egress: [{to: [{cidr: 192.0.0.0/16, except: ['192.0.2.1 } accept; ip daddr != { 192.0.2.1']}]}]}",
            ),
            vec!["firewall/bad-except", "spec.egress[0].to[0].except[0]"],
            out("192.0.3.3", 80),
        ),
        (
            policy("bad-port", "{egress: [{to: [{cidr: 192.0.2.3/32}], ports: [{port: 0}]}]}"),
            vec!["firewall/bad-port", "spec.egress[0].ports[0].port"],
            out("192.0.2.3", 80),
        ),
        (
            policy(
                "bad-protocol",
                "{egress: [{to: [{cidr: 192.0.2.4/32}], ports: [{port: 80, protocol: QUIC}]}]}",
            ),
            vec!["firewall/bad-protocol", "spec.egress[0].ports[0].protocol"],
            out("192.0.2.4", 80),
        ),
        (
            policy("bad-peer", "{egress: [{to: [{cidr: 192.0.2.300/32}], ports: [{port: 80}]}]}"),
            vec!["firewall/bad-peer", "spec.egress[0].to[0].cidr"],
            out("192.0.2.5", 80),
        ),
        (elsewhere, vec!["default/bad-namespace", "Inapplicable"], out("192.0.2.8", 80)),
        (
            service.to_owned(),
            vec!["shop/bad-service", "status.loadBalancer.ingress[0].ip"],
            into("203.0.113.2", "198.51.100.10", 443),
        ),
        ("kind: [unclosed\n".to_owned(), vec!["bad-7.yaml"], out("192.0.2.9", 80)),
    ]
}

/// Files of the good policies (fifty a file) and the Firewall, then the bad ones.
fn directory(label: &str, bad_too: bool) -> Result<Field> {
    let mut field = Field::bare(label)?;
    field.daemon.write("firewall.yaml", FIREWALL)?;
    for file in 0..GOOD / 50 {
        let policies: Vec<String> = (file * 50..(file + 1) * 50).map(|number| good(number, 443)).collect();
        let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
        field.daemon.write(&format!("good-{file}.yaml"), &documents(&policies))?;
    }
    if bad_too {
        for (number, (manifest, _, _)) in bad().iter().enumerate() {
            field.daemon.write(&format!("bad-{number}.yaml"), manifest)?;
        }
    }
    field.start()?;
    Ok(field)
}

#[test]
fn no_bad_object_opens_anything() -> Result<()> {
    let field = directory("bad", true)?;
    let findings = field.daemon.findings()?;
    for (_, wanted, _) in bad() {
        let found = findings.iter().filter(|line| wanted.iter().all(|part| line.contains(part))).count();
        assert!(found >= 1, "no finding names {wanted:?}:\n{}", findings.join("\n"));
    }
    let shots: Vec<_> = bad().into_iter().map(|(_, _, shot)| shot).collect();
    assert_eq!(rig::fire(&field.lab, &shots)?, vec![false; shots.len()]);
    let text = fw_testkit::nft::list_ruleset(&field.lab.firewall)?;
    for name in ["bad-", "192.0.2.1 }"] {
        assert!(!text.contains(name), "something of {name} is in the kernel");
    }
    Ok(())
}

#[test]
fn good_policies_work_and_go_on_updating_beside_bad_ones() -> Result<()> {
    let field = directory("beside", true)?;
    let all = |port| (0..GOOD).map(|number| out(&address(number), port)).collect::<Vec<_>>();
    assert_eq!(rig::fire(&field.lab, &all(443))?, vec![true; usize::from(GOOD)]);
    assert_eq!(rig::fire(&field.lab, &[out(&address(3), 444)])?, [false]);
    let edited: Vec<String> =
        (0..50).map(|number| good(number, if number == 3 { 444 } else { 443 })).collect();
    let edited: Vec<&str> = edited.iter().map(String::as_str).collect();
    field.daemon.write("good-0.yaml", &documents(&edited))?;
    eventually("the edit is in force", || Ok(rig::fire(&field.lab, &[out(&address(3), 444)])? == [true]))?;
    assert_eq!(rig::fire(&field.lab, &[out(&address(3), 443), out(&address(4), 443)])?, [false, true]);
    Ok(())
}

#[test]
fn awkward_but_valid_policies_are_enforced_without_a_finding() -> Result<()> {
    let longest = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    let policies = [
        FIREWALL.to_owned(),
        policy(&longest, "{egress: [{to: [{cidr: 198.18.1.1/32}], ports: [{port: 80}]}]}"),
        policy(
            "both",
            "{egress: [{to: [{cidr: 198.18.2.0/24}, {cidr: '2001:db8:2::/48'}], ports: [{port: 80}]}]}",
        ),
        policy("host-bits", "{egress: [{to: [{cidr: 198.18.3.77/24}], ports: [{port: 80}]}]}"),
        policy(
            "again",
            "{egress: [{to: [{cidr: 198.18.4.0/24}, {cidr: 198.18.4.0/24}, {cidr: 198.18.4.0/25}], \
             ports: [{port: 80}, {port: 80}, {port: 70, endPort: 90}]}]}",
        ),
    ];
    assert_eq!(longest.len(), 253);
    let field = Field::new("awkward", &documents(&policies.each_ref().map(String::as_str)))?;
    assert_eq!(field.daemon.findings()?, Vec::<String>::new());
    let shots = [
        out("198.18.1.1", 80),
        out("198.18.2.9", 80),
        out("2001:db8:2::9", 80),
        out("198.18.3.1", 80),
        out("198.18.4.200", 85),
        out("198.18.4.1", 91),
    ];
    assert_eq!(rig::fire(&field.lab, &shots)?, [true, true, true, true, true, false]);
    Ok(())
}

#[test]
fn a_rule_with_names_opens_nothing() -> Result<()> {
    let names = policy("names", "{egress: [{toFQDNs: [{matchName: example.com}], ports: [{port: 443}]}]}");
    let spoiled = policy("spoiled", "{egress: [{toFQDNs: [], ports: [{port: 443}]}]}");
    let field = Field::new("names", &documents(&[FIREWALL, &names, &spoiled]))?;
    assert_eq!(rig::fire(&field.lab, &[out("1.2.3.4", 443), out("2001:db8:2::9", 443)])?, [false; 2]);
    let findings = field.daemon.findings()?;
    assert!(
        findings.iter().any(|line| line.contains("firewall/names spec.egress[0].toFQDNs")),
        "{findings:?}"
    );
    Ok(())
}
