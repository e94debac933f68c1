//! What all tests of the intrusion detection share.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fw_testkit::Process;
use fw_testkit::topology::Lab;
use serde_json::Value;

use crate::daemon::{Daemon, eventually};
use crate::rig::{FIREWALL, documents, fire, policy};
use crate::traffic::{INTERNET, out};

/// Where the controller of a test serves its metrics, in the firewall's namespace.
const METRICS: &str = "127.0.0.1:8080";

/// A suricata that looks at one interface.
pub(crate) struct Suricata {
    _process: Process,
}

impl Suricata {
    /// Starts it in the foreground with all its files in `directory`, and waits until it looks at packets.
    pub(crate) fn start(lab: &Lab, interface: &str, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let place = directory.to_str().context("a path in UTF-8")?;
        let config =
            include_str!("suricata.yaml").replace("DIRECTORY", place).replace("INTERFACE", interface);
        let files = [
            ("suricata.yaml", config.as_str()),
            (
                "own.rules",
                "alert udp any any -> any 9 (msg:\"lab: a datagram to discard\"; classtype:lab; sid:1000001; rev:3;)\n",
            ),
            ("classification.config", "config classification: lab,Seen in the lab,2\n"),
            ("reference.config", ""),
            ("threshold.config", ""),
        ];
        for (name, text) in files {
            fs::write(directory.join(name), text)?;
        }
        let mut command = lab.firewall.exec("suricata");
        command.arg("-c").arg(directory.join("suricata.yaml")).arg("-l").arg(directory);
        command.arg(format!("--af-packet={interface}"));
        let process = Process::spawn(command).context("suricata comes with `make tools`")?;
        process.wait_for_line("Engine started", Duration::from_secs(60))?;
        Ok(Self { _process: process })
    }
}

/// Socket and log of suricata, beside the directories of a controller.
pub(crate) fn places(daemon: &Daemon) -> (PathBuf, PathBuf) {
    let directory = daemon.beside("suricata");
    (directory.join("command.socket"), directory.join("eve.json"))
}

/// Flags for a controller that looks there every second and serves metrics.
pub(crate) fn watch(daemon: &mut Daemon) -> Result<()> {
    let (socket, log) = places(daemon);
    fs::create_dir_all(daemon.beside("suricata"))?;
    daemon.flag("--enable-IDS");
    daemon.flag(format!("--suricata-socket={}", socket.display()));
    daemon.flag(format!("--suricata-log={}", log.display()));
    daemon.flag("--counter-interval=1");
    daemon.flag(format!("--metrics-addr={METRICS}"));
    Ok(())
}

/// A lab whose firewall enforces manifests and looks for a suricata that is not there.
pub(crate) fn running(label: &str) -> Result<(Lab, Daemon)> {
    let lab = Lab::standard(label)?;
    let mut daemon = Daemon::new(label)?;
    watch(&mut daemon)?;
    daemon.write("firewall.yaml", FIREWALL)?;
    daemon.start_in(&lab)?;
    Ok((lab, daemon))
}

/// An edit is enforced: what was closed is open.
pub(crate) fn edits_are_enforced(lab: &Lab, daemon: &Daemon, port: u16) -> Result<()> {
    let shot = || fire(lab, &[out(INTERNET[0], port)]).map(|passed| passed == [true]);
    assert!(!shot()?, "nothing allows port {port} yet");
    let spec =
        format!("{{egress: [{{to: [{{cidr: 203.0.113.0/24}}], ports: [{{protocol: TCP, port: {port}}}]}}]}}");
    daemon.write("firewall.yaml", &documents(&[FIREWALL, &policy(&format!("to-{port}"), &spec)]))?;
    eventually("the edit is enforced", shot)
}

/// What the status says of the intrusion detection.
pub(crate) fn of(status: &Value) -> &Value {
    &status["status"]["controller"]["ids"]
}

/// Problems of the status that speak of suricata.
pub(crate) fn problems(status: &Value) -> Vec<String> {
    let problems = status["status"]["controller"]["problems"].as_array().cloned().unwrap_or_default();
    let texts = problems.iter().filter_map(Value::as_str).map(str::to_owned);
    texts.filter(|text| text.contains("suricata")).collect()
}

/// Lines of the controller's log about alerts.
pub(crate) fn logged(daemon: &Daemon) -> Result<Vec<String>> {
    Ok(daemon.lines()?.into_iter().filter(|line| line.contains("IDS: ")).collect())
}

/// Lines of the controller's metrics about the intrusion detection; promtool has nothing to say about them.
pub(crate) fn metrics(lab: &Lab) -> Result<Vec<String>> {
    let text = lab.firewall.run(|| -> Result<String> {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: lab\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let lines = text.lines().filter(|line| line.contains("firewall_ids_")).map(str::to_owned);
    let lines: Vec<String> = lines.collect();
    lab.firewall
        .output_with_input("promtool", &["check", "metrics"], &(lines.join("\n") + "\n"))
        .context("promtool comes with `make tools`")?;
    Ok(lines)
}
