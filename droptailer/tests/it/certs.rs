//! `droptailer certs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fw_testkit::WorkDir;

use crate::rig::{certificates, droptailer};

#[test]
fn keys_are_for_their_owner_only_and_nothing_is_overwritten_unasked() {
    let directory = WorkDir::new("certs").unwrap();
    let path = directory.path().join("new/pki");
    let at = |name: &str| path.join(name);
    certificates(&path);
    let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["ca.key", "server/tls.key", "client/tls.key"].map(mode), [0o600; 3]);
    assert_eq!(["ca.crt", "server/tls.crt", "client/ca.crt"].map(mode), [0o644; 3]);
    assert_eq!(mode("client"), 0o700);
    let files = ["ca.crt", "ca.key", "server/tls.crt", "server/tls.key", "client/tls.crt", "client/tls.key"];
    let contents = || files.map(|name| fs::read_to_string(at(name)).unwrap());
    let before = contents();

    let arguments = ["certs", "--directory", path.to_str().unwrap()];
    let output = droptailer(&arguments);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("server/ca.crt is there already: take --renew"), "{said}");
    assert!(contents() == before);

    let output = droptailer(&[&arguments[..], &["--renew"]].concat());
    assert!(output.status.success(), "{output:?}");
    let after = contents();
    assert!(after[..2] == before[..2], "the authority stays");
    assert!(before.iter().skip(2).all(|text| !after.contains(text)), "pairs are new");
    assert_eq!(mode("server/tls.key"), 0o600);
    assert!(!String::from_utf8(output.stdout).unwrap().contains("PRIVATE KEY"));

    // A certificate without its key is no authority to go on with.
    fs::remove_file(at("ca.key")).unwrap();
    let output = droptailer(&[&arguments[..], &["--renew"]].concat());
    assert!(!output.status.success());
    assert!(contents_of(&path).contains(&before[0]));
}

fn contents_of(path: &std::path::Path) -> Vec<String> {
    vec![fs::read_to_string(path.join("ca.crt")).unwrap()]
}
