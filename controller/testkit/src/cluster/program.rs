//! The program that is the API server, `controller/tests/cluster`, built by `deploy/scripts/cluster.sh`; and stern.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Process;
use crate::netns::run_to_end;

/// How long a start may take; on a busy machine with two cores it is some ten seconds.
const START_PATIENCE: Duration = Duration::from_secs(150);

/// The top of the checkout.
pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where the program is; built if it is not there yet, which takes minutes.
pub(super) fn path() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &*built {
        return Ok(path.clone());
    }
    let path = build("cluster.sh", "the API server of the tests", "make apiserver")?;
    *built = Some(path.clone());
    Ok(path)
}

/// stern (github.com/stern/stern), by which people read the logs of Pods; built if it is not there yet, which takes
/// minutes. An error says why it is missing and what to do.
pub fn stern() -> Result<PathBuf> {
    build("stern.sh", "stern", "make stern")
}

fn build(script: &str, what: &str, target: &str) -> Result<PathBuf> {
    let script = root().join("deploy/scripts").join(script);
    let path = run_to_end(Command::new(script).arg("build"), "")
        .with_context(|| format!("cannot build {what}; `{target}` does the same and shows all it says"))?;
    Ok(PathBuf::from(path.trim()))
}

/// kubectl: the machine's, else the one that the program has in it.
pub(super) fn kubectl() -> Result<Command> {
    let installed = std::env::var_os("PATH").is_some_and(|directories| {
        std::env::split_paths(&directories).any(|directory| directory.join("kubectl").is_file())
    });
    if installed {
        return Ok(Command::new("kubectl"));
    }
    let mut command = Command::new(path()?);
    command.arg("kubectl");
    Ok(command)
}

/// Starts it in a directory and waits until it is ready.
///
/// It reads its standard input, a pipe that this process holds open, and ends when that closes, so it dies with this
/// process however that ends. (`PR_SET_PDEATHSIG` would not do: it is about the *thread* that started it, prctl(2), and
/// tests are threads that end.)
pub(super) fn serve(directory: &Path) -> Result<Process> {
    let mut command = Command::new(path()?);
    command.args(["serve", "--watch-stdin", "--dir"]).arg(directory);
    let process = Process::spawn_with_open_stdin(command)?;
    let started = process.wait_for_line("started in ", START_PATIENCE).with_context(|| {
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(20).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        format!("the API server did not start; its log ends with:\n{}", last.join("\n"))
    })?;
    // Who asks for programs of their own is not to be given ours.
    let assets = std::env::var("KUBEBUILDER_ASSETS").unwrap_or_default();
    ensure!(
        assets.is_empty() || started.ends_with(&format!("with programs in {assets}")),
        "KUBEBUILDER_ASSETS is {assets}, and the API server was {started:?}"
    );
    Ok(process)
}
