//! BEHAVIOUR.md and the tests of the workspace.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::tree;

/// One bullet: `- What is promised. (`module::test_name`, …)`
pub(super) struct Promise {
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) tests: Vec<String>,
}

/// The bullets of the document, those of lower levels too; a bullet goes on while lines are indented.
pub(super) fn promises(document: &str) -> Vec<Promise> {
    let mut promises: Vec<Promise> = Vec::new();
    let mut open = false;
    for (index, line) in document.lines().enumerate() {
        if let Some(text) = line.trim_start().strip_prefix("- ") {
            promises.push(Promise { line: index + 1, text: text.to_owned(), tests: Vec::new() });
            open = true;
        } else if open && line.starts_with(' ') {
            let promise = promises.last_mut().expect("open means there is one");
            promise.text.push(' ');
            promise.text.push_str(line.trim());
        } else {
            open = false;
        }
    }
    for promise in &mut promises {
        promise.tests = named_tests(&promise.text);
    }
    promises
}

/// The names in the parentheses at the very end; none where one is not in the fixed form.
fn named_tests(text: &str) -> Vec<String> {
    let Some(inner) = text.trim_end().trim_end_matches('.').strip_suffix(')') else { return Vec::new() };
    let Some((_, list)) = inner.rsplit_once('(') else { return Vec::new() };
    let name = |part: &str| {
        let name = part.trim().strip_prefix('`')?.strip_suffix('`')?;
        let is_path =
            name.contains("::") && name.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
        is_path.then(|| name.to_owned())
    };
    list.split(',').map(name).collect::<Option<_>>().unwrap_or_default()
}

/// True for `module::a_sentence`, which no other item of ours looks like.
pub(super) fn is_test_name(text: &str) -> bool {
    let is_path =
        |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c));
    text.rsplit_once("::").is_some_and(|(_, name)| is_path(text) && name.matches('_').count() >= 2)
}

/// A function with a `#[test]` attribute.
pub(super) struct Test {
    path: PathBuf,
    name: String,
}

impl Test {
    /// True for `a::b::name` when the function has the name, and `a` and `b` are, in this order, its file and
    /// directories (`-` as `_`, `fw_` for crates); `tests`, the inner module, may be left out or named.
    pub(super) fn is(&self, named: &str) -> bool {
        let mut wanted: Vec<&str> = named.split("::").collect();
        if wanted.pop() != Some(self.name.as_str()) {
            return false;
        }
        let path = self.path.with_extension("");
        let mut parts: Vec<String> =
            path.iter().map(|part| part.to_string_lossy().replace('-', "_")).collect();
        parts.push("tests".to_owned());
        let mut parts = parts.iter();
        wanted
            .iter()
            .all(|module| parts.any(|part| part == module || module.strip_prefix("fw_") == Some(part)))
    }
}

/// All tests in the sources.
pub(super) fn tests_of_the_workspace() -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for path in tree::files(&["rs"])? {
        let source = tree::read(&path)?;
        let names = tests_in(&source);
        tests.extend(names.into_iter().map(|name| Test { path: path.clone(), name }));
    }
    ensure!(tests.len() > 50, "only {} tests found in the sources", tests.len());
    Ok(tests)
}

fn tests_in(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if let Some(attribute) = line.strip_prefix("#[") {
            is_test |= attribute.starts_with("test]") || attribute.contains("::test");
            continue;
        }
        let signature = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let (true, Some(signature)) = (is_test, signature) {
            names.extend(signature.split('(').next().map(str::to_owned));
        }
        // Attributes and comments may stand between; anything else ends what `#[test]` belongs to.
        is_test &= line.is_empty() || line.starts_with("//");
    }
    names
}

#[test]
fn a_bullet_ends_with_its_tests() {
    let document = "# Title\n- One thing (as such)\n  goes on. (`a::b_c_d`, `d::e_f_g`)\n\n- Two. (no test)\n- Three. (`b_c_d`)\n";
    let promises = promises(document);
    let tests: Vec<&[String]> = promises.iter().map(|promise| &promise.tests[..]).collect();
    assert_eq!(tests, [&["a::b_c_d".to_owned(), "d::e_f_g".to_owned()][..], &[], &[]]);
    assert_eq!(promises[0].line, 2);
}

#[test]
fn a_test_is_named_by_its_file_and_crate() {
    let test = Test { path: "controller/ruleset/src/compile/ports.rs".into(), name: "x_y".to_owned() };
    for good in
        ["ports::x_y", "compile::ports::x_y", "ruleset::ports::x_y", "ports::tests::x_y", "fw_ruleset::x_y"]
    {
        assert!(test.is(good), "{good}");
    }
    for bad in ["ports::x", "names::x_y", "ports::compile::x_y", "tests::ports::x_y"] {
        assert!(!test.is(bad), "{bad}");
    }
}

#[test]
fn only_functions_marked_as_tests_count() {
    let source =
        "#[test]\n#[should_panic]\nfn a() {}\nfn b() {}\n    #[tokio::test]\n    async fn c(x: u8) {\n";
    assert_eq!(tests_in(source), ["a", "c"]);
}
