//! Any bytes as a manifest file: no panic, no hang, and the order of the objects never matters.

#![no_main]

use fw_intake::{HostFacts, Manifest, Objects, intake, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifests) = parse("fuzz.yaml", bytes) else { return };
    let facts = HostFacts { interfaces: Some(Vec::new()), ..HostFacts::default() };
    let judged = intake(&Objects::new(&manifests), &facts);
    let backward: Vec<&Manifest> = manifests.iter().rev().collect();
    assert!(judged == intake(&Objects::new(backward), &facts), "the order of the objects matters");
    for finding in &judged.findings {
        assert!(!finding.to_string().contains('\n'), "a finding on two lines: {finding:?}");
    }
});
