//! One directory with 500 good policies, the awkward but valid ones, and one each of the bad ones; the real binary on it.

use anyhow::{Context as _, Result, ensure};
use fw_testkit::nft;

use crate::daemon::{eventually, findings};
use crate::field::{Field, controller};
use crate::rig::{FIREWALL, documents, policy};
use crate::traffic::{CLUSTER, INTERNET, into, out, udp_out};

const GOOD: u16 = 500;
/// Good policies in one file.
const IN_FILE: u16 = 50;
const INJECTION: &str = "192.0.2.1 } accept; ip daddr != { 192.0.2.1";

fn address(number: u16) -> String {
    format!("198.18.{}.{}", number / 250, number % 250)
}

/// Policy `good-N` opens one port of one address of its own.
fn good(number: u16, port: u16) -> String {
    let spec = format!("{{egress: [{{to: [{{cidr: {}/32}}], ports: [{{port: {port}}}]}}]}}", address(number));
    policy(&format!("good-{number}"), &spec)
}

/// A file of good policies, all but one with port 443.
fn good_file(file: u16, edited: Option<(u16, u16)>) -> String {
    let port = |number| edited.filter(|(it, _)| *it == number).map_or(443, |(_, port)| port);
    let policies: Vec<String> =
        (file * IN_FILE..(file + 1) * IN_FILE).map(|number| good(number, port(number))).collect();
    documents(&policies.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The longest name an object can have.
fn longest_name() -> String {
    format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61))
}

/// Valid, however odd.
fn awkward() -> String {
    let tcp_80 =
        |name: &str, to: &str| policy(name, &format!("{{egress: [{{to: [{to}], ports: [{{port: 80}}]}}]}}"));
    documents(&[
        &tcp_80(&longest_name(), "{cidr: 198.19.1.1/32}"),
        &tcp_80("odd-both", "{cidr: 198.19.2.0/24}, {cidr: '2001:db8:2::/48'}"),
        &tcp_80("odd-host-bits", "{cidr: 198.19.3.77/24, except: [198.19.3.99/28]}"),
        &policy(
            "odd-duplicates",
            "{egress: [{to: [{cidr: 198.19.4.0/24}, {cidr: 198.19.4.0/24}, {cidr: 198.19.4.0/25}], \
             ports: [{port: 80}, {port: 80}, {port: 70, endPort: 90}]}, \
             {to: [{cidr: 198.19.4.128/25}], ports: [{port: 85, endPort: 85}]}]}",
        ),
        // Names that the language of nft keeps for itself, or that begin as no name of it may.
        &tcp_80("all", "{cidr: 198.19.5.1/32}"),
        &tcp_80("1abc", "{cidr: 198.19.5.2/32}"),
        &tcp_80("fwd", "{cidr: 198.19.5.3/32}"),
    ])
}

/// A bad manifest, what its finding begins with, and the finding's reason. All of them would open much if what is
/// wrong were left out; there is no other policy to whose address they belong.
struct Bad {
    manifest: String,
    subject: &'static str,
    reason: &'static str,
}

fn bad() -> Vec<Bad> {
    let bad =
        |subject: &'static str, reason: &'static str, manifest: String| Bad { manifest, subject, reason };
    let named = |name: &str, spec: &str| policy(&format!("bad-{name}"), spec);
    let service = |name: &str, rest: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: bad-{name}, namespace: shop}}\n\
             spec: {{type: LoadBalancer, ports: [{{port: 443}}]{rest}}}\n\
             status: {{loadBalancer: {{ingress: [{{ip: '{ip}'}}]}}}}\n"
        )
    };
    vec![
        bad(
            "clusterwidenetworkpolicy firewall/bad-end spec.egress[0].ports[0].endPort",
            "InvalidPort",
            named("end", "{egress: [{ports: [{port: 443, endPort: 80}]}]}"),
        ),
        bad(
            "clusterwidenetworkpolicy firewall/bad-except spec.egress[0].to[0].except[0]",
            "InvalidExcept",
            named(
                "except",
                &format!("{{egress: [{{to: [{{cidr: 192.0.0.0/16, except: ['{INJECTION}']}}]}}]}}"),
            ),
        ),
        bad(
            "clusterwidenetworkpolicy firewall/bad-port spec.ingress[0].ports[0].port",
            "InvalidPort",
            named("port", "{ingress: [{ports: [{port: 0}]}]}"),
        ),
        bad(
            "clusterwidenetworkpolicy firewall/bad-protocol spec.egress[0].ports[0].protocol",
            "UnsupportedProtocol",
            named("protocol", "{egress: [{ports: [{protocol: GRE, port: 80}]}]}"),
        ),
        bad(
            "clusterwidenetworkpolicy default/bad-namespace",
            "Inapplicable",
            named("namespace", "{egress: [{}], ingress: [{}]}")
                .replace("namespace: firewall", "namespace: default"),
        ),
        bad(
            "clusterwidenetworkpolicy firewall/bad-peer spec.ingress[0].from[0].cidr",
            "InvalidCIDR",
            named("peer", "{ingress: [{from: [{cidr: 300.0.0.0/8}]}]}"),
        ),
        bad(
            "service shop/bad-address status.loadBalancer.ingress[0].ip",
            "InvalidAddress",
            service("address", "", "198.51.100.x"),
        ),
        bad(
            "service shop/bad-sources spec.loadBalancerSourceRanges[0]",
            "InvalidCIDR",
            service("sources", ", loadBalancerSourceRanges: [everywhere]", "198.51.100.10"),
        ),
        bad("MANIFESTS/bad-unparsable.yaml:", "InvalidManifest", "kind: [unclosed\nspec: {\n".to_owned()),
    ]
}

/// The controller on the directory with all of them.
fn start(label: &str) -> Result<Field> {
    let mut field = Field::bare(label)?;
    field.daemon.write("firewall.yaml", FIREWALL)?;
    for file in 0..GOOD / IN_FILE {
        field.daemon.write(&format!("good-{file}.yaml"), &good_file(file, None))?;
    }
    field.daemon.write("awkward.yaml", &awkward())?;
    for bad in bad() {
        let name = if bad.reason == "InvalidManifest" { "unparsable" } else { bad.subject };
        field.daemon.write(&format!("bad-{}.yaml", name.replace(['/', ' '], "-")), &bad.manifest)?;
    }
    field.start()?;
    Ok(field)
}

#[test]
fn no_bad_object_opens_anything() -> Result<()> {
    let field = start("bad")?;
    let status = field.daemon.status()?;
    let findings = findings(&status);
    let manifests = field.daemon.manifests();
    for Bad { subject, reason, .. } in bad() {
        let subject = subject.replace("MANIFESTS", &manifests.display().to_string());
        let about: Vec<&String> =
            findings.iter().filter(|line| line.starts_with(&format!("error: {subject}"))).collect();
        ensure!(!about.is_empty(), "no finding about {subject}:\n{}", findings.join("\n"));
        for line in about {
            ensure!(line.contains(&format!(": {reason}: ")) && line.contains("; next: "), "{line}");
        }
    }
    let errors = findings.iter().filter(|line| line.starts_with("error:")).count();
    assert_eq!(errors, bad().len(), "one finding each:\n{}", findings.join("\n"));
    let state = controller(&status)["policies"]["default/bad-namespace"].as_str();
    ensure!(state.is_some_and(|state| state.starts_with("ignored: ")), "{state:?}");

    let mut shots = vec![
        into(INTERNET[0], "198.51.100.10", 443),
        into("198.18.0.9", "198.51.100.10", 443),
        out("192.0.2.1", 80),
        out("192.0.3.4", 80),
    ];
    for port in [1, 80, 100, 443, 65_535] {
        shots.extend([out("1.2.3.4", port), out("2001:db8:9::9", port), udp_out("1.2.3.4", port)]);
        shots.extend([into(INTERNET[0], CLUSTER[0], port), into(INTERNET[1], CLUSTER[1], port)]);
    }
    assert_eq!(field.fire(&shots)?, vec![false; shots.len()]);
    let text = nft::list_ruleset(&field.lab.firewall)?;
    ensure!(text.contains("accept traffic for np good-499 tcp"), "the good ones are there");
    let traces: Vec<&str> =
        text.lines().filter(|line| line.contains("bad-") || line.contains("192.0.")).collect();
    ensure!(traces.is_empty(), "of the bad ones the kernel holds {traces:?}");
    Ok(())
}

#[test]
fn good_policies_work_and_go_on_updating_beside_bad_ones() -> Result<()> {
    let field = start("beside")?;
    let all = |port| (0..GOOD).map(|number| out(&address(number), port)).collect::<Vec<_>>();
    assert_eq!(field.fire(&all(443))?, vec![true; usize::from(GOOD)]);
    assert_eq!(field.fire(&all(444))?, vec![false; usize::from(GOOD)]);
    for edited in [3, 499] {
        let file = edited / IN_FILE;
        field.daemon.write(&format!("good-{file}.yaml"), &good_file(file, Some((edited, 444))))?;
        eventually("the edit is in force", || Ok(field.fire(&[out(&address(edited), 444)])? == [true]))?;
        assert_eq!(field.fire(&[out(&address(edited), 443)])?, [false]);
    }
    // A file of its own, and a removal, while the bad ones stay as they are.
    field.daemon.write("good-more.yaml", &good(GOOD, 443))?;
    eventually("the new one is in force", || Ok(field.fire(&[out(&address(GOOD), 443)])? == [true]))?;
    field.daemon.remove("good-1.yaml")?;
    eventually("the removal is in force", || Ok(field.fire(&[out(&address(IN_FILE), 443)])? == [false]))?;
    let fates = field.fire(&all(443))?;
    let gone = |number: u16| [3, 499].contains(&number) || number / IN_FILE == 1;
    assert_eq!(fates, (0..GOOD).map(|number| !gone(number)).collect::<Vec<_>>());

    // An object that loses entries keeps the others.
    let partly = policy(
        "partly",
        "{egress: [{to: [{cidr: 198.19.9.0/24}, {cidr: nowhere}], ports: [{port: 80}, {port: 0}]}]}",
    );
    field.daemon.write("partly.yaml", &partly)?;
    eventually("the valid entries are in force", || Ok(field.fire(&[out("198.19.9.1", 80)])? == [true]))?;
    assert_eq!(field.fire(&[out("198.19.9.1", 81), out("198.19.8.1", 80)])?, [false, false]);
    Ok(())
}

#[test]
fn awkward_but_valid_policies_are_enforced_without_a_finding() -> Result<()> {
    assert_eq!(longest_name().len(), 253);
    let field = start("awkward")?;
    let findings = field.daemon.findings()?;
    let about: Vec<&String> = findings.iter().filter(|line| !line.contains("bad-")).collect();
    ensure!(about.is_empty(), "{about:?}");
    let shots = [
        (out("198.19.1.1", 80), true),
        (out("198.19.2.9", 80), true),
        (out("2001:db8:2::9", 80), true),
        (out("198.19.3.1", 80), true),
        (out("198.19.3.111", 80), false),
        (out("198.19.4.200", 85), true),
        (out("198.19.4.100", 85), true),
        (out("198.19.4.1", 91), false),
        (out("198.19.5.1", 80), true),
        (out("198.19.5.2", 80), true),
        (out("198.19.5.3", 80), true),
        (out("198.19.5.4", 80), false),
    ];
    let (shots, expected): (Vec<_>, Vec<_>) = shots.into_iter().unzip();
    assert_eq!(field.fire(&shots)?, expected);
    // What the kernel lists must load again: the names above are the ones that would not.
    let manifests = ["firewall.yaml", "awkward.yaml"].map(|name| field.daemon.manifests().join(name));
    let output = std::process::Command::new(crate::daemon::BINARY).arg("render").args(manifests).output()?;
    nft::check_alone(&String::from_utf8(output.stdout)?).context("render's text")?;
    Ok(())
}

#[test]
fn a_rule_with_names_that_nobody_asked_for_opens_nothing() -> Result<()> {
    let names = |name: &str, rest: &str| {
        policy(name, &format!("{{egress: [{{toFQDNs: {rest}, ports: [{{port: 443}}]}}]}}"))
    };
    // However little is left of the selectors, with a `to` that is not one, and where nobody has asked for the name.
    let policies = [
        names("names", "[{matchName: example.com}]"),
        names("none", "[]"),
        names("no-list", "null"),
        names("invalid", "[{matchPattern: 'a b'}]"),
        names("beside", "[{matchName: example.com}], to: []"),
        names("void", "[{matchName: example.com}], to: [{cidr: nowhere}]"),
    ];
    let mut parts = vec![FIREWALL];
    parts.extend(policies.iter().map(String::as_str));
    let field = Field::new("names", &documents(&parts))?;
    let shots = [out("1.2.3.4", 443), out("2001:db8:2::9", 443), out(INTERNET[0], 443), out("1.2.3.4", 80)];
    assert_eq!(field.fire(&shots)?, [false; 4]);
    let findings = field.daemon.findings()?;
    for name in ["none", "no-list", "invalid", "beside", "void"] {
        let subject = format!("clusterwidenetworkpolicy firewall/{name} spec.egress[0]");
        ensure!(findings.iter().any(|line| line.contains(&subject)), "{name}:\n{}", findings.join("\n"));
    }
    Ok(())
}
