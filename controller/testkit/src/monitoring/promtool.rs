use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

/// What `promtool check metrics` complains about in the text of a page, a line each.
pub fn promtool(text: &str) -> Result<Vec<String>> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool, of Debian's package prometheus, does not start")?;
    child.stdin.take().context("promtool has no input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let mut lines: Vec<String> = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
    if !output.status.success() && lines.is_empty() {
        lines.push(output.status.to_string());
    }
    Ok(lines)
}
