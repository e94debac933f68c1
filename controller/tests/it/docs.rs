//! Documents cannot rot: what they name exists, and what BEHAVIOUR.md promises has a test.

mod behaviour;
mod markdown;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use fw_intake::{HostFacts, Objects, Severity, intake, parse};

use crate::tree::{self, none};
use markdown::Document;

const BINARY: &str = env!("CARGO_BIN_EXE_firewall-controller");

/// All Markdown files, parsed.
fn documents() -> Result<Vec<Document>> {
    let paths = tree::files(&["md"])?;
    ensure!(paths.contains(&PathBuf::from("README.md")), "there is no README.md");
    paths.iter().map(|path| Ok(Document::new(path, &tree::read(path)?))).collect()
}

#[test]
fn every_path_named_in_the_documents_exists() -> Result<()> {
    let root = tree::root();
    let top: BTreeSet<String> = std::fs::read_dir(&root)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let mut complaints = Vec::new();
    let mut seen = 0;
    for document in documents()? {
        let directory = document.path.parent().unwrap_or(Path::new("")).to_owned();
        for (line, word) in document.words() {
            let Some(path) = repository_path(word, &top) else { continue };
            seen += 1;
            if !exists(&root, path) && !exists(&root.join(&directory), path) {
                complaints.push(format!("{}:{line}: {path}", document.path.display()));
            }
        }
        for (line, target) in &document.links {
            let target = target.split('#').next().unwrap_or_default();
            if target.contains("://") || target.is_empty() {
                continue;
            }
            seen += 1;
            if !root.join(&directory).join(target).exists() {
                complaints.push(format!("{}:{line}: link to {target}", document.path.display()));
            }
        }
    }
    ensure!(seen > 20, "only {seen} paths found in the documents");
    none("paths that do not exist", &complaints);
    Ok(())
}

#[test]
fn every_make_target_named_in_the_documents_exists() -> Result<()> {
    let makefile = tree::read("Makefile")?;
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(target, _)| target)
        .filter(|target| !target.is_empty() && target.chars().all(|c| c.is_ascii_lowercase()))
        .collect();
    let mut named = BTreeSet::new();
    let mut complaints = Vec::new();
    for document in documents()? {
        for (line, command) in document.commands() {
            let words = command.words();
            let Some(("make", targets_named)) = words.split_first().map(|(first, rest)| (*first, rest))
            else {
                continue;
            };
            for target in targets_named.iter().filter(|word| !word.starts_with('-') && !word.contains('=')) {
                named.insert((*target).to_owned());
                if !targets.contains(target) {
                    complaints.push(format!("{}:{line}: make {target}", document.path.display()));
                }
            }
        }
    }
    none("make targets that do not exist", &complaints);
    let unnamed: Vec<String> = targets
        .iter()
        .filter(|target| !named.contains(**target))
        .map(|target| format!("make {target}"))
        .collect();
    none("make targets that no document explains", &unnamed);
    Ok(())
}

#[test]
fn the_readme_starts_with_two_commands() -> Result<()> {
    let readme = Document::new(Path::new("README.md"), &tree::read("README.md")?);
    let (_, block) = readme
        .blocks
        .iter()
        .find(|(_, block)| block.section == "Quick start")
        .context("README.md has no code block in a section `Quick start`")?;
    assert_eq!(block.lines, ["make demo", "make test"]);
    Ok(())
}

#[test]
fn every_subcommand_and_flag_named_in_the_documents_exists() -> Result<()> {
    let flags = flags()?;
    let all: BTreeSet<&String> = flags.values().flatten().collect();
    let mut complaints = Vec::new();
    let mut seen = 0;
    for document in documents()? {
        let mut complain = |line: usize, what: String| {
            complaints.push(format!("{}:{line}: {what}", document.path.display()));
        };
        for (line, command) in document.commands() {
            let words = command.words();
            let Some((program, rest)) = words.split_first() else { continue };
            if program.rsplit('/').next() != Some("firewall-controller") {
                if let Some(flag) = flag_of(program).filter(|flag| !all.contains(flag)) {
                    complain(line, format!("no subcommand has the flag {flag}"));
                }
                continue;
            }
            seen += 1;
            let subcommand = rest.first().filter(|word| word.chars().all(|c| c.is_ascii_lowercase()));
            let name = subcommand.copied().unwrap_or_default();
            let Some(known) = flags.get(name) else {
                complain(line, format!("there is no `firewall-controller {name}`"));
                continue;
            };
            for flag in rest.iter().filter_map(|word| flag_of(word)).filter(|flag| !known.contains(flag)) {
                complain(line, format!("`firewall-controller {name}` has no {flag}"));
            }
        }
    }
    ensure!(seen > 8, "only {seen} commands of ours in the documents");
    none("flags and subcommands", &complaints);
    Ok(())
}

#[test]
fn the_readme_names_every_subcommand() -> Result<()> {
    let readme = tree::read("README.md")?;
    let is_unnamed = |name: &&String| !name.is_empty() && !readme.contains(&format!("`{name}"));
    let unnamed: Vec<String> = flags()?.keys().filter(is_unnamed).cloned().collect();
    none("subcommands that README.md does not name", &unnamed);
    Ok(())
}

#[test]
fn every_field_named_in_the_documents_is_in_a_schema() -> Result<()> {
    let schema = schema::Schema::of(&help(&["crds"])?)?;
    let mut complaints = Vec::new();
    let mut seen = 0;
    for document in documents()? {
        for (line, span) in &document.spans {
            let Some(field) = schema::as_field(span) else { continue };
            seen += 1;
            if !schema.has(&field) {
                complaints.push(format!("{}:{line}: {span}", document.path.display()));
            }
        }
    }
    ensure!(seen > 20, "only {seen} fields found in the documents");
    none("fields that neither CustomResourceDefinition nor the Service has", &complaints);
    Ok(())
}

#[test]
fn every_manifest_in_the_documents_is_without_findings() -> Result<()> {
    let mut complaints = Vec::new();
    let mut seen = 0;
    for document in documents()? {
        let manifests = document.blocks.iter().filter(|(_, block)| block.language == "yaml");
        for (line, block) in
            manifests.filter(|(_, block)| block.lines.iter().any(|l| l.starts_with("kind: ")))
        {
            let place = format!("{}:{line}", document.path.display());
            let manifests = parse(&place, block.lines.join("\n").as_bytes())?;
            seen += manifests.len();
            let findings = intake(&Objects::new(&manifests), &HostFacts::default()).findings;
            let bad = findings.iter().filter(|finding| finding.severity == Severity::Error);
            complaints.extend(bad.map(|finding| format!("{place}: {finding}")));
        }
    }
    ensure!(seen >= 2, "only {seen} manifests in the documents");
    none("manifests in documents", &complaints);
    Ok(())
}

#[test]
fn output_shown_in_the_documents_is_what_the_program_prints() -> Result<()> {
    let mut complaints = Vec::new();
    let mut seen = 0;
    for document in documents()? {
        for (line, block) in document.blocks.iter().filter(|(_, block)| block.language == "console") {
            for (command, shown) in markdown::session(block) {
                seen += 1;
                let printed = shell(&command)?;
                if printed.trim_end() != shown.trim_end() {
                    complaints
                        .push(format!("{}:{line}: {command} prints:\n{printed}", document.path.display()));
                }
            }
        }
    }
    ensure!(seen > 0, "no document shows what the program prints");
    none("output in documents", &complaints);
    Ok(())
}

#[test]
fn rules_shown_in_the_documents_are_those_of_the_lab() -> Result<()> {
    let lab = tree::read("controller/ruleset/tests/golden/deploy-examples-lab/out.nft")?;
    let known: BTreeSet<&str> = lab.lines().map(str::trim).collect();
    let mut complaints = Vec::new();
    let mut seen = 0;
    for document in documents()? {
        for (line, block) in document.blocks.iter().filter(|(_, block)| block.language == "nft") {
            for rule in
                block.lines.iter().map(|rule| without_figures(rule.trim())).filter(|rule| !rule.is_empty())
            {
                seen += 1;
                if !known.contains(rule.as_str()) {
                    complaints.push(format!("{}:{line}: {rule}", document.path.display()));
                }
            }
        }
    }
    ensure!(seen > 5, "only {seen} lines of rules in the documents");
    none("rules that the lab's ruleset does not have", &complaints);
    Ok(())
}

#[test]
fn every_promise_of_the_behaviour_ends_with_its_tests() -> Result<()> {
    let promises = behaviour::promises(&tree::read("BEHAVIOUR.md")?);
    ensure!(promises.len() > 20, "BEHAVIOUR.md has only {} bullets", promises.len());
    let unproven = promises.iter().filter(|promise| promise.tests.is_empty());
    let complaints: Vec<String> =
        unproven.map(|promise| format!("line {}: {}", promise.line, promise.text)).collect();
    none("bullets of BEHAVIOUR.md that do not end with (`module::test_name`, …)", &complaints);
    Ok(())
}

#[test]
fn every_test_named_in_the_documents_exists() -> Result<()> {
    let tests = behaviour::tests_of_the_workspace()?;
    let mut complaints = Vec::new();
    for document in documents()? {
        let named = document.spans.iter().filter(|(_, span)| behaviour::is_test_name(span));
        let missing = named.filter(|(_, span)| !tests.iter().any(|test| test.is(span)));
        complaints.extend(missing.map(|(line, span)| format!("{}:{line}: {span}", document.path.display())));
    }
    none("tests that do not exist", &complaints);
    Ok(())
}

/// Output of the binary itself.
fn help(arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(BINARY).args(arguments).output().with_context(|| format!("cannot run {BINARY}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "firewall-controller {}: {said}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command line of a document in the root of the checkout; standard output. The exit code is the command's own.
fn shell(command: &str) -> Result<String> {
    let directory = Path::new(BINARY).parent().context("the binary has a directory")?;
    let path = format!("{}:{}", directory.display(), std::env::var("PATH")?);
    let shell = Command::new("sh").args(["-c", command]).env("PATH", path).current_dir(tree::root()).output();
    Ok(String::from_utf8(shell.with_context(|| format!("cannot run {command}"))?.stdout)?)
}

/// `counter packets 3 bytes 180 accept` as it is in a ruleset that has seen nothing.
fn without_figures(rule: &str) -> String {
    let mut words: Vec<&str> = rule.split(' ').collect();
    if let Some(at) = words.windows(3).position(|it| it[0] == "packets" && it[2] == "bytes") {
        words.drain(at..at + 4);
    }
    words.join(" ")
}

/// Flags by subcommand, as `--help` has them; under "" those of the program itself.
fn flags() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let overview = help(&["--help"])?;
    let after = overview.split("Commands:\n").nth(1).context("--help lists no commands")?;
    let names = after.lines().take_while(|line| !line.is_empty()).filter_map(|line| {
        let name = line.strip_prefix("  ")?.split(' ').next()?;
        (!name.is_empty() && name != "help").then_some(name)
    });
    let mut flags = BTreeMap::from([(String::new(), flags_in(&overview))]);
    for name in names {
        flags.insert(name.to_owned(), flags_in(&help(&[name, "--help"])?));
    }
    ensure!(flags.len() > 6, "--help lists only {} commands:\n{overview}", flags.len());
    Ok(flags)
}

fn flags_in(help: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    help.split(|c| !is_part(c)).filter_map(flag_of).collect()
}

/// `--name` of `--name=value`, `-n`; `None` for what is no flag, `->` and `--` included.
fn flag_of(word: &str) -> Option<String> {
    let flag = word.split('=').next()?;
    let name = flag.strip_prefix("--").or_else(|| flag.strip_prefix('-').filter(|name| name.len() == 1))?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    is_name.then(|| flag.to_owned())
}

/// The word as a path of the repository, where it looks like one: its first part is there, or its end is that of
/// a file we write.
fn repository_path<'a>(word: &'a str, top: &BTreeSet<String>) -> Option<&'a str> {
    let word = word.trim_end_matches(['.', ',', ':', ';', '/']);
    let is_path = |c: char| c.is_ascii_alphanumeric() || "/._-*".contains(c);
    if word.is_empty() || !word.chars().all(is_path) || word.starts_with('/') || word.starts_with('-') {
        return None;
    }
    let first = word.split('/').next()?;
    let ours = [".md", ".rs", ".sh", ".toml"].iter().any(|end| word.ends_with(end));
    let below = word.contains('/') && top.contains(first);
    (below || ours && word.len() > 4).then_some(word)
}

/// True when the path is there; `*` and words in capitals (`CASE`) stand for anything, which must be there once.
fn exists(from: &Path, path: &str) -> bool {
    let mut found = vec![from.to_owned()];
    for component in Path::new(path).components() {
        let Component::Normal(name) = component else { return false };
        let name = name.to_string_lossy();
        let is_placeholder = name.chars().all(|c| c.is_ascii_uppercase());
        found = match name.split_once('*') {
            _ if is_placeholder && !found.iter().any(|it| it.join(&*name).exists()) => {
                children(&found, "", "")
            }
            Some((before, after)) => children(&found, before, after),
            None => found.iter().map(|it| it.join(&*name)).filter(|it| it.exists()).collect(),
        };
    }
    !found.is_empty()
}

fn children(directories: &[PathBuf], before: &str, after: &str) -> Vec<PathBuf> {
    let entries = directories.iter().filter_map(|it| std::fs::read_dir(it).ok()).flatten().flatten();
    let fits = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(before) && name.ends_with(after)
    };
    entries.map(|entry| entry.path()).filter(fits).collect()
}

#[test]
fn words_that_look_like_paths_are_told_from_others() {
    let top = BTreeSet::from(["controller".to_owned(), "deploy".to_owned()]);
    assert_eq!(repository_path("controller/src/app.rs,", &top), Some("controller/src/app.rs"));
    assert_eq!(repository_path("deploy/examples/lab/", &top), Some("deploy/examples/lab"));
    assert_eq!(repository_path("CHANGELOG.md", &top), Some("CHANGELOG.md"));
    assert_eq!(repository_path("/etc/firewall-controller/manifests", &top), None);
    assert_eq!(repository_path("tcp/udp", &top), None);
}

#[test]
fn a_path_with_placeholders_must_lead_somewhere() {
    let root = tree::root();
    assert!(exists(&root, "controller/ruleset/tests/golden/CASE/out.nft"));
    assert!(exists(&root, "controller/*/Cargo.toml"));
    assert!(!exists(&root, "controller/ruleset/tests/golden/CASE/out.txt"));
    assert!(!exists(&root, "controller/nowhere"));
}
