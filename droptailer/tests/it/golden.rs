//! Generated code is what the file that it is generated from says.

use std::path::Path;
use std::{env, fs};

#[test]
fn golden_generated_code_is_what_the_proto_file_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = env::temp_dir().join(format!("droptailer-wire-{}", std::process::id()));
    fs::create_dir_all(&made).unwrap();
    let descriptors = protox::compile([root.join("proto/droptailer.proto")], [root.join("proto")]).unwrap();
    tonic_prost_build::configure()
        // Keys in their order, and no hash iteration.
        .btree_map(".")
        .out_dir(&made)
        .compile_fds(descriptors)
        .unwrap();
    let generated = fs::read_to_string(made.join("proto.rs")).unwrap();
    fs::remove_dir_all(&made).unwrap();
    let file = root.join("src/wire/generated.rs");
    if env::var_os("BLESS").is_some() {
        fs::write(&file, &generated).unwrap();
    }
    assert!(fs::read_to_string(&file).unwrap() == generated, "{} is out of date: make bless", file.display());
}
