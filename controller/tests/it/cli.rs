//! The command line as people and scripts use it: exit codes, lines, and that what it says is what the kernel does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::nft;
use fw_testkit::traffic::craft::Crafted;
use serde_json::Value;

use crate::daemon::{BINARY, Daemon, PATIENCE, eventually};
use crate::field::{Field, published, reach};
use crate::rig::{FIREWALL, From, arrivals, at, documents, firewall_with, policy};
use crate::traffic::{INTERNET, into, out};
use crate::tree;

/// What a command said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(output: Output) -> Result<Said> {
    let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok(Said { code: output.status.code(), out, err })
}

fn command(arguments: &[&str]) -> Result<Said> {
    said(Command::new(BINARY).current_dir(tree::root()).args(arguments).output()?)
}

/// Feeds manifests to standard input, which `-` names.
fn piped(arguments: &[&str], yaml: &str) -> Result<Said> {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = Command::new(BINARY)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("standard input")?.write_all(yaml.as_bytes())?;
    said(child.wait_with_output()?)
}

fn sample(name: &str) -> Result<String> {
    tree::read(PathBuf::from("deploy/samples").join(name))
}

#[test]
fn check_prints_one_finding_a_line_and_exits_with_the_outcome() -> Result<()> {
    let good = piped(&["check", "-"], &documents(&[FIREWALL, &reach("web", 80)]))?;
    assert_eq!((good.code, good.out.as_str(), good.err.as_str()), (Some(0), "", ""));

    let remarks = command(&["check", "deploy/samples/firewall-v1.yaml"])?;
    assert_eq!(remarks.code, Some(0), "what is only ignored is no error: {}", remarks.out);
    ensure!(remarks.out.lines().all(|line| line.starts_with("info: ")), "{}", remarks.out);

    let two = "{egress: [{to: [{cidr: nowhere}, {cidr: 1.2.3.4/99}], ports: [{port: 70000}]}]}";
    let daemon = Daemon::new("check")?;
    daemon.write("policy.yaml", &documents(&[FIREWALL, &policy("two", two)]))?;
    daemon.write("broken.yaml", "kind: [\n")?;
    let directory = daemon.manifests().display().to_string();
    let bad = command(&["check", &directory])?;
    assert_eq!((bad.code, bad.err.as_str()), (Some(1), ""));
    let expected = [
        format!("error: {directory}/broken.yaml:"),
        "error: clusterwidenetworkpolicy firewall/two spec.egress[0].ports[0].port: InvalidPort: ".to_owned(),
        "error: clusterwidenetworkpolicy firewall/two spec.egress[0].to[0].cidr: InvalidCIDR: ".to_owned(),
        "error: clusterwidenetworkpolicy firewall/two spec.egress[0].to[1].cidr: InvalidCIDR: ".to_owned(),
    ];
    let lines: Vec<&str> = bad.out.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{}", bad.out);
    for (line, begin) in lines.iter().zip(expected) {
        ensure!(line.starts_with(&begin) && line.contains("; next: "), "{line:?} instead of {begin:?}");
    }

    let missing = command(&["check", "there/is/no.yaml"])?;
    assert_eq!(missing.code, Some(1));
    ensure!(missing.out.starts_with("error: there/is/no.yaml: Unreadable: "), "{}", missing.out);
    assert_eq!(command(&["check"])?.code, Some(2), "a wrong command line");
    Ok(())
}

#[test]
fn render_prints_what_nft_accepts_and_nothing_else() -> Result<()> {
    let samples = ["policy-web", "policy-egress-resolvers", "policy-names", "service"]
        .map(|name| format!("deploy/samples/{name}.yaml"));
    let mut cases = vec![vec!["deploy/examples/lab".to_owned()]];
    for firewall in ["firewall-v1", "firewall-2020", "firewall-more"] {
        let mut case = vec![format!("deploy/samples/{firewall}.yaml")];
        case.extend(samples.iter().cloned());
        cases.push(case);
    }
    for case in cases {
        let mut arguments = vec!["render"];
        arguments.extend(case.iter().map(String::as_str));
        let rendered = command(&arguments)?;
        assert_eq!(rendered.code, Some(0), "{case:?}: {}", rendered.err);
        ensure!(rendered.out.starts_with("table inet firewall {"), "{case:?}: {}", rendered.out);
        ensure!(rendered.err.lines().all(|line| line.contains("; next: ")), "{case:?}: {}", rendered.err);
        nft::check_alone(&rendered.out).with_context(|| format!("{case:?}"))?;
    }
    Ok(())
}

/// A packet as `explain` takes it, and the same to be sent.
fn packets() -> Vec<(&'static str, (From, Crafted))> {
    let spoofed = Crafted::syn(at("192.0.2.66", 40_000), at("1.2.3.4", 80));
    let dual = Crafted::syn(at("2001:db8:10:16::2", 40_001), at("2001:db8:ffff::4", 80));
    let denied = Crafted::udp(at("2001:db8:10:16::2", 40_002), at("2001:db8:ffff::4", 80));
    let allowed = Crafted::syn(at("10.0.16.2", 40_003), at("1.2.3.4", 80));
    let inward = Crafted::syn(at("203.0.113.2", 40_004), at("10.0.16.2", 80));
    let excepted = Crafted::syn(at("10.0.16.2", 40_005), at("1.2.3.129", 80));
    let service = Crafted::syn(at("203.0.113.2", 40_006), at("198.51.100.10", 443));
    let other = Crafted::new(
        at("10.0.16.2", 0).ip(),
        at("1.2.3.4", 0).ip(),
        fw_testkit::traffic::craft::Body::Other { protocol: 47 },
    );
    vec![
        ("tcp 10.0.16.2:40003 -> 1.2.3.4:80 in vrf104009 out vlan179", (From::Cluster, allowed)),
        ("tcp 10.0.16.2:40005 -> 1.2.3.129:80 in vrf104009 out vlan179", (From::Cluster, excepted)),
        (
            "tcp [2001:db8:10:16::2]:40001 -> [2001:db8:ffff::4]:80 in vrf104009 out vlan179",
            (From::Cluster, dual),
        ),
        (
            "udp [2001:db8:10:16::2]:40002 -> [2001:db8:ffff::4]:80 in vrf104009 out vlan179",
            (From::Cluster, denied),
        ),
        ("tcp 192.0.2.66:40000 -> 1.2.3.4:80 in vrf104009 out vlan179", (From::Cluster, spoofed)),
        ("tcp 203.0.113.2:40004 -> 10.0.16.2:80 in vlan179 out vrf104009", (From::Internet, inward)),
        ("tcp 203.0.113.2:40006 -> 198.51.100.10:443 in vlan179 out vrf104009", (From::Internet, service)),
        ("proto 47 10.0.16.2 -> 1.2.3.4 in vrf104009 out vlan179", (From::Cluster, other)),
    ]
}

#[test]
fn explain_says_of_each_packet_what_the_kernel_does() -> Result<()> {
    let web = policy(
        "web",
        "{egress: [{to: [{cidr: 1.2.3.0/24, except: [1.2.3.128/25]}, {cidr: '2001:db8:ffff::/48'}], \
         ports: [{port: 80}]}]}",
    );
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: lb, namespace: shop}\n\
                   spec: {type: LoadBalancer, ports: [{port: 443}]}\n\
                   status: {loadBalancer: {ingress: [{ip: 198.51.100.10}]}}\n";
    let manifests = documents(&[FIREWALL, &web, service]);
    let field = Field::new("explain", &manifests)?;
    let (texts, shots): (Vec<_>, Vec<_>) = packets().into_iter().unzip();
    let fates = field.fire(&shots)?;
    assert_eq!(fates, [true, false, true, false, false, false, true, false]);
    let file = field.daemon.manifests().join("all.yaml").display().to_string();
    let mut answers = Vec::new();
    for (text, passed) in texts.iter().zip(&fates) {
        let running = said(field.daemon.ask(&["explain", "--packet", text])?)?;
        let offline = command(&["explain", &file, "--packet", text])?;
        assert_eq!(running.code, Some(if *passed { 0 } else { 3 }), "{text}: {}{}", running.out, running.err);
        assert_eq!((offline.code, &offline.out), (running.code, &running.out), "{text}");
        let verdict = if *passed { "verdict:    accept\n" } else { "verdict:    drop\n" };
        ensure!(running.out.contains(verdict), "{text}: {}", running.out);
        answers.push(running.out);
    }
    let parts: [&[&str]; 8] = [
        &["clusterwidenetworkpolicy firewall/web spec.egress[0].to[0]", "accept traffic for np web tcp"],
        &["no egress policy allows it", "near miss:", "excepts 1.2.3.129", "1.2.3.129/32"],
        &["clusterwidenetworkpolicy firewall/web spec.egress[0].to[1]", "accept traffic for np web tcp"],
        &["no egress policy allows it", "to allow:", "protocol: UDP, port: 80", "2001:db8:ffff::4/128"],
        &["192.0.2.66 is neither the cluster's nor a LoadBalancer address", "spec.clusterPrefixes"],
        &["no ingress policy and no LoadBalancer Service", "ingress: [{from: [{cidr: \"203.0.113.2/32\"}]"],
        &["service shop/lb", "accept traffic for k8s service shop/lb"],
        &["policies can allow TCP and UDP only"],
    ];
    for (answer, parts) in answers.iter().zip(parts) {
        for part in parts {
            ensure!(answer.contains(part), "{part:?} is missing:\n{answer}");
        }
    }
    let wrong = field.daemon.ask(&["explain", "--packet", "tcp nonsense"])?;
    assert_eq!(wrong.status.code(), Some(1));
    Ok(())
}

#[test]
fn status_has_the_fields_shape_and_exactly_the_packets_sent() -> Result<()> {
    let web = policy(
        "web",
        "{egress: [{to: [{cidr: 1.2.3.0/24}], ports: [{port: 80}]}], ingress: [{ports: [{port: 81}]}]}",
    );
    let field = Field::new("status", &documents(&[FIREWALL, &web]))?;
    let mut shots = Vec::new();
    shots.extend((0..7).map(|_| out("1.2.3.4", 80)));
    shots.extend((0..5).map(|_| into(INTERNET[0], "10.0.16.2", 81)));
    shots.extend((0..3).map(|_| out("1.2.3.4", 82)));
    shots.extend((0..2).map(|_| (From::Cluster, Crafted::syn(at("192.0.2.66", 4711), at("1.2.3.4", 80)))));
    assert_eq!(field.fire(&shots)?.iter().filter(|passed| **passed).count(), 12);

    let yaml = |field: &Field| -> Result<Value> {
        let answer = said(field.daemon.ask(&["status", "-o", "yaml"])?)?;
        ensure!(answer.code == Some(0), "{}", answer.err);
        Ok(serde_saphyr::from_str(&answer.out)?)
    };
    let egress = "accept traffic for np web tcp";
    eventually("the status has read the counters", || {
        Ok(published(&yaml(&field)?, "accept", egress) == Some(7))
    })?;
    let all = yaml(&field)?;
    assert_eq!((&all["apiVersion"], &all["kind"]), (&"metal-stack.io/v1".into(), &"Firewall".into()));
    assert_eq!(all["metadata"]["namespace"], "firewall");
    let status = &all["status"];
    for text in ["lastRun", "message", "controllerVersion"] {
        ensure!(status[text].as_str().is_some_and(|text| !text.is_empty()), "{text}: {}", status[text]);
    }
    let packets = |action, comment| published(&all, action, comment);
    assert_eq!(packets("accept", "accept traffic for k8s network policy web tcp"), Some(5));
    assert_eq!(packets("other", "count and log dropped packets"), Some(3));
    assert_eq!(status["stats"]["dropTotal"]["packets"], 3);
    assert_eq!(status["stats"]["drops"]["spoofed"]["nftables"]["packets"], 2);
    assert_eq!(status["stats"]["drops"]["policy"]["nftables"]["packets"], 3);

    // Figure by figure what `nft` says, bytes too; equal comments are one entry.
    let kernel = field.counters()?;
    let mut shown: BTreeMap<String, nft::Count> = BTreeMap::new();
    for action in ["accept", "drop", "other"] {
        for (comment, rule) in status["stats"]["rules"][action].as_object().context("an action")? {
            let figure = |name: &str| rule["counter"][name].as_u64().context("a figure");
            let count = shown.entry(comment.clone()).or_default();
            count.packets += figure("packets")?;
            count.bytes += figure("bytes")?;
        }
    }
    for (comment, count) in &kernel.by_comment {
        assert_eq!(shown.get(comment), Some(count), "{comment}");
    }
    for side in ["external", "internal"] {
        let device = &status["stats"]["devices"][side];
        let bytes = |way: &str| kernel.named.get(&format!("{side}_{way}")).map(|count| count.bytes);
        assert_eq!((device["in"].as_u64(), device["out"].as_u64()), (bytes("in"), bytes("out")), "{side}");
        let total = bytes("in").unwrap_or_default() + bytes("out").unwrap_or_default();
        assert_eq!(device["total"], total, "{side}");
    }
    ensure!(kernel.named("external_in") == 5 && kernel.named("external_out") == 12, "{kernel:?}");

    let text = said(field.daemon.ask(&["status"])?)?;
    ensure!(text.out.starts_with("ENFORCING 1 policy, 0 services"), "{}", text.out);
    ensure!(text.out.contains("Controller Version:"), "as `kubectl describe` prints it:\n{}", text.out);
    Ok(())
}

#[test]
fn without_a_controller_the_client_commands_say_so() -> Result<()> {
    let daemon = Daemon::new("nobody")?;
    for arguments in [
        &["status"][..],
        &["legend"],
        &["flush", "--undo"],
        &["explain", "--packet", "tcp 1.1.1.1 -> 2.2.2.2:80 in a out b"],
    ] {
        let answer = said(daemon.ask(arguments)?)?;
        assert_eq!((answer.code, answer.out.as_str()), (Some(1), ""), "{arguments:?}");
        let lines: Vec<&str> = answer.err.lines().collect();
        ensure!(lines.len() == 1 && lines[0].contains("control.sock"), "{arguments:?}: {lines:?}");
    }
    Ok(())
}

#[test]
fn the_samples_apply_unchanged_in_the_last_spelling_of_v1() -> Result<()> {
    let mut field = Field::bare("samplesv1")?;
    for name in ["firewall-v1.yaml", "policy-web.yaml", "policy-egress-resolvers.yaml", "service.yaml"] {
        field.daemon.write(name, &sample(name)?)?;
    }
    field.start()?;
    let findings = field.daemon.findings()?;
    ensure!(findings.iter().all(|line| !line.starts_with("error")), "{findings:?}");
    let cluster6 = |to: &str| (From::Cluster, Crafted::syn(at("2001:db8:16::2", 40_000), at(to, 443)));
    let shots = [
        out("1.2.3.4", 443),
        cluster6("2001:db8:ffff::1"),
        out("1.2.3.4", 444),
        crate::traffic::udp_out("8.8.8.8", 53),
        crate::traffic::udp_out("1.1.0.1", 53),
        into("198.51.100.1", "10.0.16.2", 8089),
        into("198.51.100.65", "10.0.16.2", 8089),
        into("198.51.100.1", "10.0.16.2", 8090),
    ];
    let arrived = arrivals(&field.lab, &shots)?;
    let passed: Vec<bool> = arrived.iter().map(|arrivals| !arrivals.is_empty()).collect();
    assert_eq!(passed, [true, true, false, true, false, true, false, false]);
    let seen = [arrived[0][0].seen.source.to_string(), arrived[1][0].seen.source.to_string()];
    ensure!(
        ["185.1.2.3", "185.1.2.4"].contains(&seen[0].as_str()) && seen[1] == "2001:db8:185::3",
        "{seen:?}"
    );
    let text = nft::list_ruleset(&field.lab.firewall)?;
    // 12 MiB/s.
    ensure!(
        text.contains("limit rate over 12 mbytes/second") && text.contains("203.0.113.10 . tcp . 443"),
        "{text}"
    );
    Ok(())
}

#[test]
fn the_samples_apply_unchanged_in_the_spelling_of_2020() -> Result<()> {
    let mut field = Field::bare("samples2020")?;
    for name in ["firewall-2020.yaml", "policy-web.yaml", "service.yaml"] {
        field.daemon.write(name, &sample(name)?)?;
    }
    field.start()?;
    let text = nft::list_ruleset(&field.lab.firewall)?;
    // 100 Mbit/s.
    ensure!(
        text.contains("limit rate over 12500 kbytes/second") || text.contains("12500000 bytes/second"),
        "{text}"
    );
    ensure!(text.contains("172.17.0.0/16"), "internalprefixes: {text}");
    let shots = || [out("1.2.3.4", 443), into("198.51.100.1", "10.0.16.2", 8089), out("1.2.3.4", 444)];
    assert_eq!(field.fire(&shots())?, [false; 3], "nobody has said which side is inside");
    let findings = field.daemon.findings()?;
    let errors: Vec<&String> = findings.iter().filter(|line| line.starts_with("error")).collect();
    ensure!(errors.len() == 1 && errors[0].contains("spec.insideInterfaces: NoInside"), "{findings:?}");

    let mut text = sample("firewall-2020.yaml")?;
    text.push_str("  insideInterfaces: [vrf104009]\n  clusterPrefixes: [10.0.16.0/22]\n");
    field.daemon.write("firewall-2020.yaml", &text)?;
    eventually("inside is known", || Ok(field.fire(&shots())? == [true, true, false]))
}

#[test]
fn crds_prints_the_checked_in_files() -> Result<()> {
    let printed = command(&["crds"])?;
    assert_eq!((printed.code, printed.err.as_str()), (Some(0), ""));
    let files = ["clusterwidenetworkpolicies", "firewalls"]
        .map(|plural| tree::read(format!("crds/metal-stack.io_{plural}.yaml")));
    let [policies, firewalls] = files;
    let (policies, firewalls) = (policies?, firewalls?);
    ensure!(printed.out == format!("{policies}{firewalls}"), "crds/*.yaml is not what `crds` prints");
    let documents = printed.out.lines().filter(|line| *line == "---").count();
    assert_eq!(documents, 2, "together they are one stream of two documents");
    Ok(())
}

#[test]
fn a_state_directory_among_the_manifests_is_refused() -> Result<()> {
    let field = Field::bare("statedir")?;
    let manifests = field.daemon.manifests();
    field.daemon.write("all.yaml", &documents(&[&firewall_with(""), &reach("web", 80)]))?;
    let link = field.daemon.beside("link");
    std::os::unix::fs::symlink(&manifests, &link)?;
    for state in [manifests.clone(), manifests.join("deep/state"), link.join("state")] {
        let mut command = field.lab.firewall.command(BINARY);
        command.arg("run").arg("--manifests").arg(&manifests).arg("--state-dir").arg(&state);
        command.arg("--control-socket").arg(field.daemon.beside("control.sock"));
        let mut process = fw_testkit::Process::spawn(command)?;
        let status = process.wait(PATIENCE)?;
        assert_eq!(status.code(), Some(1), "{}", state.display());
        let lines = process.lines();
        ensure!(lines.iter().any(|line| line.contains("give another --state-dir")), "{lines:?}");
    }
    assert_eq!(field.listing()?, "", "nothing was applied");
    let left: Vec<_> = std::fs::read_dir(&manifests)?.collect::<std::io::Result<_>>()?;
    assert_eq!(left.len(), 1, "nothing was made among the manifests: {left:?}");
    Ok(())
}

#[test]
fn completions_name_the_subcommands() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let script = command(&["completions", shell])?;
        assert_eq!(script.code, Some(0));
        for subcommand in ["run", "check", "render", "explain", "status", "flush", "crds"] {
            ensure!(script.out.contains(subcommand), "{shell}: {subcommand}");
        }
    }
    Ok(())
}
