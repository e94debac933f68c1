//! The checked-in definitions are the output of the types.

use std::path::Path;

#[test]
fn the_checked_in_definitions_are_the_golden_output_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, text) in fw_crds::crd_files().unwrap() {
        let path = folder.join(&name);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(checked_in == text, "crds/{name} is out of date: run BLESS=1 cargo test -p fw-crds");
    }
}
