//! What may depend on what (ARCHITECTURE.md), and rules about the sources that no lint knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::tree::{self, none};

/// Every crate and the crates of ours it may use to do its work (dev-dependencies aside).
const ARROWS: [(&str, &[&str]); 18] = [
    ("fw-bpf-common", &[]),
    ("fw-bpf", &["fw-bpf-common"]),
    ("fw-names", &["fw-policy", "fw-bpf-common"]),
    ("fw-dns", &["fw-names", "fw-policy"]),
    ("fw-crds", &[]),
    ("fw-policy", &[]),
    ("fw-intake", &["fw-crds", "fw-policy"]),
    ("fw-ruleset", &["fw-policy"]),
    ("fw-netlink", &[]),
    // fw-policy only for the types that stand in the ruleset: Origin, IfName, ConntrackState, Protocol.
    ("fw-nft", &["fw-ruleset", "fw-netlink", "fw-policy"]),
    ("fw-kube", &["fw-crds", "fw-intake", "fw-policy"]),
    ("fw-ids", &[]),
    ("fw-edge", &[]),
    ("fw-memory", &[]),
    ("fw-droptailer", &["fw-edge", "fw-netlink", "fw-policy"]),
    ("fw-exporter", &["fw-edge", "fw-memory", "fw-netlink"]),
    ("fw-testkit", &["fw-policy", "fw-netlink", "fw-droptailer"]),
    (
        "fw-controller",
        &[
            "fw-crds",
            "fw-policy",
            "fw-intake",
            "fw-ruleset",
            "fw-names",
            "fw-bpf-common",
            "fw-bpf",
            "fw-dns",
            "fw-edge",
            "fw-memory",
            "fw-netlink",
            "fw-nft",
            "fw-droptailer",
            "fw-kube",
            "fw-ids",
        ],
    ),
];

/// Crates without sockets, files, clocks and API clients, and where they are.
const PURE: [(&str, &str); 6] = [
    ("fw-bpf-common", "bpf/common"),
    ("fw-names", "controller/names"),
    ("fw-crds", "crds"),
    ("fw-policy", "controller/policy"),
    ("fw-intake", "controller/intake"),
    ("fw-ruleset", "controller/ruleset"),
];

/// What a pure crate never has in its dependency tree, at any depth.
const IMPURE: [&str; 16] = [
    "tokio",
    "mio",
    "async-io",
    "socket2",
    "nix",
    "rustix",
    "kube-client",
    "kube-runtime",
    "hyper",
    "aya",
    "inotify",
    "rtnetlink",
    "netlink-sys",
    "fw-netlink",
    "fw-nft",
    "fw-testkit",
];

/// What a pure crate never names outside its tests.
const IMPURE_CALLS: [&str; 11] = [
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "std::os",
    "std::io",
    "std::time",
    "Instant::now",
    "SystemTime",
    "TcpStream",
    "UdpSocket",
];

/// Where the kernel is spoken to below std, or the allocator; all other crates deny unsafe code.
const UNSAFE_ALLOWED: [&str; 5] =
    ["bpf/loader", "bpf/xdp", "controller/memory", "controller/netlink", "controller/testkit"];

/// Where a hash map may stand: the maps of the eBPF programs are the kernel's, and the cache index of the DNS proxy is
/// looked up for every question and never iterated over.
const HASHED: [&str; 2] = ["bpf/xdp/src/maps.rs", "controller/dns/src/index.rs"];

const MAX_LINES: usize = 600;

#[test]
fn crates_depend_on_each_other_only_along_the_arrows() -> Result<()> {
    let metadata = metadata()?;
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into();
    let mut complaints = Vec::new();
    for package in members(&metadata)? {
        let name = text(package, "name")?;
        let Some(allowed) = allowed.get(name) else {
            complaints
                .push(format!("{name} is not in the list of arrows of this test and of ARCHITECTURE.md"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = text(dependency, "name")?;
            let is_ours = !dependency["path"].is_null();
            if is_ours && dependency["kind"] != "dev" && !allowed.contains(&target) {
                complaints.push(format!("{name} -> {target}"));
            }
        }
    }
    none("dependencies that are not allowed", &complaints);
    Ok(())
}

#[test]
fn pure_crates_have_no_runtime_socket_or_api_client_in_their_dependency_tree() -> Result<()> {
    let mut complaints = Vec::new();
    for (name, _) in PURE {
        // One crate at a time: the workspace as a whole unifies features, and would blame a pure crate for
        // what another one asks of a dependency both have.
        let listing = cargo(&[
            "tree",
            "--package",
            name,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--locked",
            "--offline",
        ])?;
        let dependencies: BTreeSet<&str> =
            listing.lines().filter_map(|line| line.split(' ').next()).collect();
        ensure!(dependencies.contains(name), "cargo tree does not list {name} itself:\n{listing}");
        complaints
            .extend(IMPURE.iter().filter(|it| dependencies.contains(*it)).map(|it| format!("{name}: {it}")));
    }
    none("pure crates that depend on what is not pure", &complaints);
    Ok(())
}

#[test]
fn pure_crates_name_no_file_socket_clock_or_thread() -> Result<()> {
    let mut complaints = Vec::new();
    for (_, directory) in PURE {
        for path in tree::files_below(&Path::new(directory).join("src"), &["rs"])? {
            if path.file_stem().is_some_and(|stem| stem == "tests") {
                continue;
            }
            let source = tree::read(&path)?;
            let outside_tests = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            for (number, line) in code_lines(outside_tests) {
                let calls = IMPURE_CALLS.iter().filter(|call| line.contains(*call));
                complaints.extend(calls.map(|call| format!("{}:{number}: {call}", path.display())));
            }
        }
    }
    none("not pure", &complaints);
    Ok(())
}

#[test]
fn nothing_under_the_gpl_is_linked_into_what_ships() -> Result<()> {
    let metadata = metadata()?;
    let packages: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()
        .context("no packages")?
        .iter()
        .map(|package| Ok((text(package, "id")?, package)))
        .collect::<Result<_>>()?;
    let mut complaints = Vec::new();
    let linked = linked_into(&metadata, "fw-controller")?;
    ensure!(linked.len() > 20, "only {} packages are linked into the controller", linked.len());
    for id in linked {
        let package = packages.get(id).with_context(|| format!("no package {id}"))?;
        let licence = package["license"].as_str().unwrap_or("none");
        let is_free = |choice: &str| !choice.contains("GPL") && choice != "none";
        if !licence.split(" OR ").flat_map(|choice| choice.split('/')).any(is_free) {
            complaints.push(format!("{}: {licence}", text(package, "name")?));
        }
    }
    none("licences that a binary under Apache-2.0 OR MIT cannot have in it", &complaints);
    Ok(())
}

#[test]
fn only_the_crates_that_speak_to_the_kernel_or_the_allocator_may_be_unsafe() -> Result<()> {
    let lint = concat!("unsafe", "_code");
    let mut complaints = Vec::new();
    for path in tree::files(&["rs"])? {
        let allowed = UNSAFE_ALLOWED.iter().any(|directory| path.starts_with(directory));
        if !allowed && tree::read(&path)?.contains(lint) {
            complaints.push(format!("{} names the lint {lint}", path.display()));
        }
    }
    let workspace = tree::read("Cargo.toml")?;
    ensure!(workspace.contains(&format!("{lint} = \"deny\"")), "the workspace does not deny {lint}");
    for package in members(&metadata()?)? {
        let manifest = std::fs::read_to_string(text(package, "manifest_path")?)?;
        if !manifest.contains("[lints]\nworkspace = true") {
            complaints.push(format!("{} does not take the lints of the workspace", text(package, "name")?));
        }
    }
    none("unsafe code", &complaints);
    Ok(())
}

#[test]
fn every_source_file_is_short_enough_to_be_about_one_thing() -> Result<()> {
    let mut complaints = Vec::new();
    for path in tree::files(&["rs"])? {
        let lines = tree::read(&path)?.lines().count();
        if lines > MAX_LINES {
            complaints.push(format!("{}: {lines} lines, at most {MAX_LINES}", path.display()));
        }
    }
    none("too long", &complaints);
    Ok(())
}

#[test]
fn every_source_file_is_compiled() -> Result<()> {
    let mut reachable = BTreeSet::new();
    for root in target_roots()? {
        reach(&root, true, &mut reachable)?;
    }
    let complaints: Vec<String> = tree::files(&["rs"])?
        .into_iter()
        .filter(|path| !reachable.contains(path))
        .map(|path| path.display().to_string())
        .collect();
    none("no target of cargo reaches these files", &complaints);
    Ok(())
}

#[test]
fn iteration_order_is_never_random_and_nothing_is_left_open() -> Result<()> {
    let needles = [
        (concat!("Hash", "Map"), "use BTreeMap"),
        (concat!("Hash", "Set"), "use BTreeSet"),
        (concat!("TO", "DO"), "do it or say in the docs what is missing"),
        (concat!("FIX", "ME"), "fix it"),
        (concat!("XX", "X"), "say what is meant"),
        (concat!("#[ign", "ore"), "a test that does not run proves nothing"),
    ];
    let mut complaints = Vec::new();
    for path in tree::files(&["rs"])? {
        let source = tree::read(&path)?;
        let may_hash = HASHED.iter().any(|hashed| path == Path::new(hashed));
        for (number, line) in source.lines().enumerate() {
            let found = needles.iter().filter(|(needle, _)| line.contains(needle));
            let found = found.filter(|(needle, _)| !(may_hash && needle.starts_with("Hash")));
            complaints
                .extend(found.map(|(needle, remedy)| {
                    format!("{}:{}: {needle}: {remedy}", path.display(), number + 1)
                }));
        }
    }
    none("in the sources", &complaints);
    Ok(())
}

/// Lines that are not comments, numbered from 1.
fn code_lines(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = source.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
    lines.filter(|(_, line)| !line.starts_with("//"))
}

/// Root files of all targets, of the workspace and of the crates that are not members of it: those of the fuzz targets,
/// and the eBPF programs, which another compiler builds for another machine.
fn target_roots() -> Result<BTreeSet<PathBuf>> {
    let root = tree::root();
    let mut roots = BTreeSet::new();
    for package in members(&metadata()?)? {
        for target in package["targets"].as_array().into_iter().flatten() {
            roots.insert(Path::new(text(target, "src_path")?).strip_prefix(&root)?.to_owned());
        }
    }
    roots.insert("bpf/xdp/src/main.rs".into());
    for manifest in tree::files(&["toml"])? {
        let Some(directory) = manifest.parent().filter(|directory| directory.ends_with("fuzz")) else {
            continue;
        };
        for line in tree::read(&manifest)?.lines() {
            let path = line.strip_prefix("path = \"").and_then(|rest| rest.strip_suffix(".rs\""));
            roots.extend(path.map(|path| directory.join(format!("{path}.rs"))));
        }
    }
    Ok(roots)
}

/// Adds a file and all that its `mod NAME;` lead to.
fn reach(file: &Path, is_root: bool, reached: &mut BTreeSet<PathBuf>) -> Result<()> {
    reached.insert(file.to_owned());
    let directory = file.parent().context("a file has a directory")?;
    let stem = file.file_stem().context("a file has a name")?;
    let of_modules = if is_root || stem == "mod" { directory.to_owned() } else { directory.join(stem) };
    let source = tree::read(file)?;
    let mut path_attribute = None;
    for (_, line) in code_lines(&source) {
        if let Some(path) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
            path_attribute = Some(directory.join(path));
            continue;
        }
        if let Some(name) = declared_module(line) {
            let beside = of_modules.join(format!("{name}.rs"));
            let below = of_modules.join(name).join("mod.rs");
            let found = path_attribute.take().unwrap_or(if tree::root().join(&beside).is_file() {
                beside
            } else {
                below
            });
            reach(&found, false, reached)?;
        }
    }
    Ok(())
}

/// `x` of `mod x;`, `pub mod x;`, `pub mod r#x;`, `#[cfg(test)] mod x;`.
fn declared_module(line: &str) -> Option<&str> {
    let name = line.trim_end().strip_suffix(';')?;
    let (before, name) = name.rsplit_once("mod ")?;
    let name = name.strip_prefix("r#").unwrap_or(name);
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_start =
        before.is_empty() || before.ends_with(' ') && (before.starts_with("pub") || before.starts_with('#'));
    (is_name && is_start).then_some(name)
}

fn cargo(arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(tree::root()).output().context("cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {}: {said}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

/// `cargo metadata` for this machine: only what is built here is in the local registry.
fn metadata() -> Result<Value> {
    let version = cargo(&["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("cargo names no host")?;
    let json =
        cargo(&["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host])?;
    Ok(serde_json::from_str(&json)?)
}

/// The packages of the workspace.
fn members(metadata: &Value) -> Result<Vec<&Value>> {
    let members = metadata["workspace_members"].as_array().context("no members")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    Ok(packages.iter().filter(|package| members.contains(&package["id"])).collect())
}

/// Ids of the packages that normal dependencies lead to.
fn linked_into<'a>(metadata: &'a Value, name: &str) -> Result<BTreeSet<&'a str>> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .context("nothing resolved")?
        .iter()
        .map(|node| Ok((text(node, "id")?, node)))
        .collect::<Result<_>>()?;
    let packages = members(metadata)?;
    let start = packages.iter().find(|package| package["name"] == name).context("not a member")?;
    let mut linked = BTreeSet::new();
    let mut open = vec![text(start, "id")?];
    while let Some(id) = open.pop() {
        if !linked.insert(id) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            if kinds.clone().any(|kind| kind["kind"].is_null()) {
                open.push(text(dependency, "pkg")?);
            }
        }
    }
    Ok(linked)
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("no {key}"))
}

#[test]
fn a_module_declaration_is_told_from_other_lines() {
    assert_eq!(declared_module("mod a;"), Some("a"));
    assert_eq!(declared_module("pub(crate) mod a_b;"), Some("a_b"));
    assert_eq!(declared_module("#[cfg(test)] mod tests;"), Some("tests"));
    assert_eq!(declared_module("pub mod r#gen;"), Some("gen"));
    assert_eq!(declared_module("let remainder = a mod b;"), None);
    assert_eq!(declared_module("mod inline {"), None);
}
