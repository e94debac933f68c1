//! Golden cases: manifests in, findings and the meaning of the objects out.
//!
//! `tests/cases/NAME/*.yaml` are the files of a manifest directory, `facts.json` what the machine is like, and
//! `findings.txt` and `means.txt` what comes out. The samples in `deploy/samples` are cases too, one each.
//! `BLESS=1 cargo test -p fw-intake` rewrites the goldens; read the difference before you commit it.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod dump;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fw_intake::{Finding, HostFacts, Interface, Manifest, Objects, Severity, intake, parse};
use serde_json::Value;

#[test]
fn every_case_gives_its_golden_findings_and_meaning() {
    let mut wrong = Vec::new();
    let cases = folders(&folder("tests/cases"));
    assert!(cases.len() > 20, "the cases are gone");
    for case in cases.iter().filter(|case| !name(case).starts_with("sample-")) {
        let files = yaml_files(case);
        assert!(!files.is_empty(), "{} has no manifests", name(case));
        wrong.extend(check(case, &files));
    }
    assert!(wrong.is_empty(), "not as blessed:\n{}", wrong.join("\n"));
}

#[test]
fn every_sample_gives_its_golden_findings_and_meaning() {
    let mut wrong = Vec::new();
    let samples = yaml_files(&folder("../../deploy/samples"));
    assert!(samples.len() >= 7, "the samples are gone");
    for sample in samples {
        let name = format!("sample-{}", sample.file_stem().unwrap().to_string_lossy());
        wrong.extend(check(&folder("tests/cases").join(&name), std::slice::from_ref(&sample)));
    }
    assert!(wrong.is_empty(), "not as blessed:\n{}", wrong.join("\n"));
}

#[test]
fn awkward_but_valid_objects_have_no_finding_but_the_missing_firewall() {
    let findings = fs::read_to_string(folder("tests/cases/awkward-but-valid/findings.txt")).unwrap();
    let others: Vec<&str> =
        findings.lines().filter(|line| !line.contains("NoFirewall") && !line.starts_with('#')).collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn every_bad_object_has_an_error_and_opens_nothing() {
    let findings = fs::read_to_string(folder("tests/cases/bad-objects/findings.txt")).unwrap();
    let means = fs::read_to_string(folder("tests/cases/bad-objects/means.txt")).unwrap();
    let bad = [
        "end-port-below-port",
        "except-injection",
        "port-zero",
        "unknown-protocol",
        "wrong-namespace",
        "only-peer-invalid",
        "garbage-ip",
        "unparsable.yaml",
    ];
    for name in bad {
        let error = |line: &&str| line.starts_with("error:") && line.contains(name);
        assert!(findings.lines().any(|line| error(&line)), "no error about {name}:\n{findings}");
        let opens = means.lines().any(|line| line.starts_with("policy ") && line.contains(name));
        let serves = means.lines().any(|line| line.starts_with("service ") && line.contains(name));
        assert!(!opens && !serves, "{name} opens something:\n{means}");
    }
    assert!(means.contains("policy good"), "the good one does not work:\n{means}");
}

/// What is wrong with the case, if anything.
fn check(case: &Path, files: &[PathBuf]) -> Option<String> {
    let mut manifests = Vec::new();
    let mut findings: Vec<Finding> = Vec::new();
    for file in files {
        let path = file.file_name().unwrap().to_string_lossy();
        match parse(&path, &fs::read(file).unwrap()) {
            Ok(parsed) => manifests.extend(parsed),
            Err(error) => findings.push(error.finding()),
        }
    }
    let facts = facts(&case.join("facts.json"));
    let judged = intake(&Objects::new(&manifests), &facts);
    assert_order_does_not_matter(case, &manifests, &facts);
    findings.extend(judged.findings.iter().cloned());
    for finding in &findings {
        assert!(!finding.message.contains('\n'), "more than one line: {finding:?}");
        assert!(!finding.remedy.is_empty(), "no next step: {finding:?}");
    }
    let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    let errors = findings.iter().any(|finding| finding.severity == Severity::Error);
    let found = format!("{lines}# check would exit {}\n", u8::from(errors));
    let differences = [("findings.txt", found), ("means.txt", dump::dump(&judged))]
        .map(|(file, text)| golden(case, file, &text));
    let differences: Vec<String> = differences.into_iter().flatten().collect();
    (!differences.is_empty()).then(|| differences.join("\n"))
}

fn assert_order_does_not_matter(case: &Path, manifests: &[Manifest], facts: &HostFacts) {
    let forward = intake(&Objects::new(manifests), facts);
    let backward = intake(&Objects::new(manifests.iter().rev()), facts);
    assert!(forward == backward, "{}: the order of the objects matters", name(case));
}

fn golden(case: &Path, file: &str, text: &str) -> Option<String> {
    let path = case.join(file);
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(case).unwrap();
        fs::write(&path, text).unwrap();
    }
    let blessed = fs::read_to_string(&path).unwrap_or_default();
    if blessed == text {
        return None;
    }
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (blessed.lines().collect(), text.lines().collect());
    let gone: String = old.difference(&new).map(|line| format!("  - {line}\n")).collect();
    let come: String = new.difference(&old).map(|line| format!("  + {line}\n")).collect();
    Some(format!("{}/{file}:\n{gone}{come}", name(case)))
}

fn facts(path: &Path) -> HostFacts {
    let Ok(text) = fs::read_to_string(path) else { return HostFacts::default() };
    let facts: Value = serde_json::from_str(&text).unwrap();
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let interface = |value: &Value| Interface {
        name: value["name"].as_str().unwrap().parse().unwrap(),
        vrf: value["vrf"].as_str().map(|vrf| vrf.parse().unwrap()),
        prefixes: texts(&value["prefixes"]).iter().map(|prefix| prefix.parse().unwrap()).collect(),
    };
    let ports = facts["sshdPorts"].as_array().map(Vec::as_slice).unwrap_or_default();
    HostFacts {
        firewall_name: facts["firewallName"].as_str().map(str::to_owned),
        interfaces: facts["interfaces"].as_array().map(|list| list.iter().map(interface).collect()),
        sshd_ports: ports.iter().map(|port| u16::try_from(port.as_u64().unwrap()).unwrap()).collect(),
        tcp_sessions: texts(&facts["tcpSessions"])
            .iter()
            .map(|session| {
                let (remote, local) = session.split_once(' ').unwrap();
                let (remote, local): (std::net::SocketAddr, std::net::SocketAddr) =
                    (remote.parse().unwrap(), local.parse().unwrap());
                (remote.ip(), remote.port(), local.ip(), local.port())
            })
            .collect(),
    }
}

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn folders(of: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

fn yaml_files(of: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(of)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}
