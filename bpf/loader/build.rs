//! Builds the eBPF programs (`bpf/xdp`) from source and hands their object to the crate.
//!
//! core is compiled for `bpfel-unknown-none`, so that takes a rustc with the source of core: Debian's (`rustc-web`,
//! `cargo-web`, `rust-web-src`) or rustup's nightly with `rust-src`; and bpf-linker with the same major LLVM.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const NAME: &str = "fw-xdp";
/// What cargo and clippy tell build scripts is for the host; the inner build starts from what a person's shell has.
const FOR_THE_HOST: [&str; 9] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_LINKER",
    "RUSTUP_TOOLCHAIN",
    "RUSTDOC",
    "CLIPPY_ARGS",
];

fn main() {
    if let Err(error) = run() {
        // cargo shows it as the reason and fails.
        println!("cargo::error=the eBPF programs were not built: {error}");
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let bpf = here.parent().ok_or("this crate has no parent folder")?;
    for path in ["xdp/src", "xdp/Cargo.toml", "xdp/Cargo.lock", "common/src", "common/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", bpf.join(path).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    // One folder for all profiles of the workspace: the object is the same, and core is compiled once.
    let target = target_root(&out).join("bpf");
    build(&bpf.join("xdp"), &target)?;
    let object = target.join(TARGET).join("release").join(NAME);
    fs::copy(&object, out.join(NAME)).map_err(|error| format!("{}: {error}", object.display()))?;
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("cargo did not set {name}"))
}

/// Cargo marks the root of its target folder with this file.
fn target_root(out: &Path) -> &Path {
    out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists()).unwrap_or(out)
}

fn build(source: &Path, target: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = compiler().ok_or(
        "no rustc with the source of core: install Debian's rustc-web, cargo-web and rust-web-src (`make tools`), or \
         `rustup toolchain install nightly --component rust-src`",
    )?;
    let path = search_path()?;
    if !env::split_paths(&path).any(|folder| folder.join("bpf-linker").is_file()) {
        return Err("bpf-linker is missing: run `make tools`".into());
    }
    let architecture = variable("CARGO_CFG_TARGET_ARCH")?;
    for name in FOR_THE_HOST {
        command.env_remove(name);
    }
    let status = command
        .current_dir(source)
        .env("PATH", path)
        .env(
            "RUSTFLAGS",
            format!("-C debuginfo=2 -C link-arg=--btf --cfg bpf_target_arch=\"{architecture}\""),
        )
        .args(["build", "--quiet", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(target)
        .status()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if status.success() { Ok(()) } else { Err("see the messages above".into()) }
}

/// PATH, and where `cargo install` puts programs.
fn search_path() -> Result<std::ffi::OsString, env::JoinPathsError> {
    let mut folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    folders.extend(home.map(|home| home.join("bin")));
    env::join_paths(folders)
}

/// A cargo whose rustc has the source of core and takes `-Z`.
fn compiler() -> Option<Command> {
    if has_core(Command::new("/usr/bin/rustc")) && Path::new("/usr/bin/cargo").exists() {
        let mut cargo = Command::new("/usr/bin/cargo");
        cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        return Some(cargo);
    }
    let nightly = |program: &str| {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", program]).env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
        command
    };
    has_core(nightly("rustc")).then(|| nightly("cargo"))
}

fn has_core(mut rustc: Command) -> bool {
    let Ok(output) = rustc.args(["--print", "sysroot"]).output() else { return false };
    let Ok(sysroot) = String::from_utf8(output.stdout) else { return false };
    output.status.success()
        && Path::new(OsStr::new(sysroot.trim())).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}
