//! Goldens: manifests in, ruleset text out, and the real `nft` takes that text.
//!
//! A case is a directory `controller/ruleset/tests/golden/CASE/` with `in.yaml`; every file of `deploy/samples/`
//! and every directory below `deploy/examples/` with manifests is a case too. Beside it stand `out.nft`, the
//! ruleset, and `findings`, all else that the objects gave. `make bless` rewrites both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use fw_intake::{HostFacts, Manifest, Objects, intake, parse};
use fw_policy::PolicySet;
use fw_ruleset::{DEFAULT_CELL_LIMIT, compile, render};
use fw_testkit::r#gen::{self, Rng, World};
use fw_testkit::topology::LabSpec;
use fw_testkit::{Netns, nft};

use crate::tree::{self, none};

const GOLDEN: &str = "controller/ruleset/tests/golden";
const SAMPLES: &str = "deploy/samples";
const EXAMPLES: &str = "deploy/examples";

/// What objects give, as text.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    ruleset: String,
    findings: String,
}

/// Files of manifests by case.
fn cases() -> Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut cases: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in tree::files_below(Path::new(GOLDEN), &["yaml"])? {
        let name = path.parent().and_then(Path::file_name).context("a case is a directory")?;
        cases.entry(name.to_string_lossy().into_owned()).or_default().push(path);
    }
    ensure!(cases.len() >= 15, "{GOLDEN} has only {} cases", cases.len());
    for (directory, whole) in [(SAMPLES, false), (EXAMPLES, true)] {
        if !tree::root().join(directory).is_dir() {
            continue;
        }
        for path in tree::files_below(Path::new(directory), &["yaml", "yml", "json"])? {
            let named =
                if whole { path.parent().unwrap_or(&path).to_owned() } else { path.with_extension("") };
            let name = named.display().to_string().replace('/', "-");
            cases.entry(name).or_default().push(path);
        }
    }
    Ok(cases)
}

fn manifests(files: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for file in files {
        // As a path from the root, so that the findings are the same in every checkout.
        manifests.extend(parse(&file.display().to_string(), tree::read(file)?.as_bytes())?);
    }
    Ok(manifests)
}

fn outcome(manifests: &[Manifest]) -> Outcome {
    let judged = intake(&Objects::new(manifests), &HostFacts::default());
    let compiled = compile(&judged.set, DEFAULT_CELL_LIMIT);
    let mut findings: Vec<String> = judged.findings.iter().map(ToString::to_string).collect();
    findings.extend(
        compiled.problems.iter().map(|problem| format!("bound: {}: {}", problem.origin, problem.message)),
    );
    findings.push(format!("inside: {}", judged.inside));
    findings.extend(
        judged
            .states
            .iter()
            .map(|(id, state)| format!("{id}: {}: {}", state.state(), state.message()).trim_end().to_owned()),
    );
    Outcome { ruleset: render(&compiled.ruleset), findings: findings.join("\n") + "\n" }
}

#[test]
fn every_sample_and_case_is_as_checked_in() -> Result<()> {
    let bless = env::var_os("BLESS").is_some();
    let cases = cases()?;
    let mut complaints = Vec::new();
    for (name, files) in &cases {
        let outcome = outcome(&manifests(files)?);
        let directory = Path::new(GOLDEN).join(name);
        for (file, text) in [("out.nft", &outcome.ruleset), ("findings", &outcome.findings)] {
            let path = directory.join(file);
            if bless {
                fs::create_dir_all(tree::root().join(&directory))?;
                fs::write(tree::root().join(&path), text)?;
            }
            match tree::read(&path) {
                Ok(recorded) if recorded == *text => {}
                Ok(recorded) => {
                    complaints.push(format!("{}: {}", path.display(), first_difference(&recorded, text)))
                }
                Err(error) => complaints.push(format!("{error:#}")),
            }
        }
    }
    complaints.extend(orphans(&cases)?);
    none("not as recorded; if it is as it should be: make bless, then read the diff", &complaints);
    Ok(())
}

#[test]
fn the_base_ruleset_is_as_checked_in() -> Result<()> {
    let base = render(&compile(&PolicySet::default(), DEFAULT_CELL_LIMIT).ruleset);
    assert_eq!(tree::read(Path::new(GOLDEN).join("base/out.nft"))?, base, "no object at all is case `base`");
    let forward = base.split("\tchain forward {").nth(1).and_then(|rest| rest.split("\t}").next());
    let forward = forward.context("the base ruleset has no chain forward")?;
    let mut rest = forward;
    for stage in [
        "hook forward priority 1; policy drop",
        "jump account_in",
        "jump account_out",
        "jump ratelimit",
        "ct state established",
        "jump related",
        "ct state invalid",
        "jump spoofing",
        "jump ping",
        "goto unsupported_protocol",
        "jump ingress",
        "jump egress",
        "counter name \"drop_total\"",
        "jump drop_log",
    ] {
        rest = rest.split_once(stage).with_context(|| format!("{stage} is not in its place:\n{forward}"))?.1;
    }
    Ok(())
}

/// Recorded cases whose manifests are gone.
fn orphans(cases: &BTreeMap<String, Vec<PathBuf>>) -> Result<Vec<String>> {
    let directories: BTreeSet<String> = fs::read_dir(tree::root().join(GOLDEN))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let orphans = directories.into_iter().filter(|name| !cases.contains_key(name));
    Ok(orphans.map(|name| format!("{GOLDEN}/{name} has no manifests any more: remove it")).collect())
}

fn first_difference(recorded: &str, now: &str) -> String {
    let (mut old, mut new) = (recorded.lines(), now.lines());
    for number in 1.. {
        match (old.next(), new.next()) {
            (old, new) if old == new && old.is_some() => {}
            (old, new) => {
                let shown = |line: Option<&str>| line.unwrap_or("(nothing)").trim().to_owned();
                return format!("line {number}: recorded: {}\n    now: {}", shown(old), shown(new));
            }
        }
    }
    unreachable!("two texts end")
}

#[test]
fn nft_takes_every_golden_and_what_it_lists_can_be_loaded_again() -> Result<()> {
    let mut complaints = Vec::new();
    for (name, files) in cases()? {
        let ruleset = outcome(&manifests(&files)?).ruleset;
        if let Err(error) = check_and_load(&ruleset) {
            complaints.push(format!("{name}: {error:#}"));
        }
    }
    none("nft does not take these", &complaints);
    Ok(())
}

/// `nft -c`, then for real, and then what `nft list ruleset` says in another empty namespace.
fn check_and_load(ruleset: &str) -> Result<()> {
    let first = Netns::new("golden")?;
    nft::check(&first, ruleset).context("nft -c")?;
    nft::load(&first, ruleset).context("nft -f")?;
    let listed = nft::list_ruleset(&first)?;
    // A comment or an element that got lost on the way would be lost without an error.
    let comments = |text: &str| text.matches(" comment \"").count();
    ensure!(comments(ruleset) == comments(&listed), "comments were lost:\n{listed}");
    let again = Netns::new("golden")?;
    nft::load(&again, &listed).context("what nft lists")?;
    let listed_again = nft::list_ruleset(&again)?;
    ensure!(listed == listed_again, "{}", first_difference(&listed, &listed_again));
    Ok(())
}

#[test]
fn the_cases_cover_both_families_and_every_kind_of_rule() -> Result<()> {
    let mut all = String::new();
    for files in cases()?.values() {
        all.push_str(&outcome(&manifests(files)?).ruleset);
    }
    let needed = [
        "accept traffic for np ",
        "accept traffic for k8s network policy ",
        "accept traffic for k8s service ",
        "vmap @egress4-",
        "vmap @egress6-",
        "vmap @ingress4-",
        "vmap @ingress6-",
        "vmap @services4",
        "vmap @services6",
        "dport vmap @egress",
        "snat ip to ",
        "snat ip6 to ",
        "jhash ",
        "masquerade",
        "hook input ",
        "SSH incoming connections",
        "bytes/second",
        "nftables-firewall-accepted: ",
        "nftables-firewall-dropped: ",
        "goto accept_icmp",
        "goto spoofed",
    ];
    let missing: Vec<String> =
        needed.iter().filter(|it| !all.contains(**it)).map(|it| (*it).to_owned()).collect();
    none("no golden has", &missing);
    Ok(())
}

#[test]
fn objects_in_any_order_give_the_same_bytes() -> Result<()> {
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut groups: Vec<Vec<Manifest>> =
        cases()?.values().map(|files| manifests(files)).collect::<Result<_>>()?;
    // All at once as well: several Firewalls, and objects that are there twice.
    groups.push(groups.concat());
    for mut group in groups {
        let expected = outcome(&group);
        for _ in 0..8 {
            rng.shuffle(&mut group);
            ensure!(outcome(&group) == expected, "FW_SEED={seed}: the order of {group:#?} matters");
        }
    }
    Ok(())
}

#[test]
fn generated_objects_mean_the_same_in_any_order_and_in_any_files() -> Result<()> {
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed}");
    let mut rng = Rng::new(seed);
    let world = World::of(&LabSpec::standard("golden")?)?;
    for _ in 0..10 {
        let set = r#gen::policy_set(&mut rng, &world, 60, 20)?;
        let expected = render(&compile(&set, DEFAULT_CELL_LIMIT).ruleset);
        let texts = r#gen::manifests(&set)?.into_iter();
        let parsed = texts.map(|(name, text)| Ok(parse(&name, text.as_bytes())?));
        let mut objects = parsed.collect::<Result<Vec<_>>>()?.concat();
        for _ in 0..4 {
            rng.shuffle(&mut objects);
            for object in &mut objects {
                object.source = format!("file{}.yaml", rng.below(5));
                object.line = u64::from(rng.between(1, 9));
            }
            let given = outcome(&objects).ruleset;
            ensure!(given == expected, "FW_SEED={seed}: {}", first_difference(&expected, &given));
        }
    }
    Ok(())
}
