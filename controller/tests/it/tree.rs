//! The checkout, as the tests about its sources and documents see it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Directories that hold what is built, recorded or found, never what is written by hand.
const GENERATED: [&str; 5] = ["target", ".git", "corpus", "artifacts", "coverage"];

/// Root of the checkout.
pub(crate) fn root() -> PathBuf {
    let controller = Path::new(env!("CARGO_MANIFEST_DIR"));
    controller.parent().expect("controller/ lies in the root").to_owned()
}

/// Text of a file, named from the root.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {}", path.display()))
}

/// All files with one of these extensions, named from the root, sorted.
pub(crate) fn files(extensions: &[&str]) -> Result<Vec<PathBuf>> {
    files_below(Path::new(""), extensions)
}

/// As [`files`], below one directory.
pub(crate) fn files_below(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(directory, extensions, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(directory: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(root().join(directory))
        .with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        let generated = GENERATED.iter().any(|name| *name == entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() && !generated {
            collect(&path, extensions, found)?;
        } else if kind.is_file() && path.extension().is_some_and(|it| extensions.iter().any(|e| *e == it)) {
            found.push(path);
        }
    }
    Ok(())
}

/// Fails with all complaints, one a line.
pub(crate) fn none(what: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{what}:\n  {}", complaints.join("\n  "));
}
