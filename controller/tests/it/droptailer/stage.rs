//! A lab with a controller, and both ends of droptailer in the firewall's namespace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::inject::Injector;
use fw_testkit::{Process, WorkDir};
use nix::sys::signal::Signal;

use crate::daemon::{BINARY, Daemon, PATIENCE};
use crate::rig::at;

/// In a namespace of the lab's own.
const PORT: u16 = 50_051;

/// A record as the server printed it.
pub(super) type Record = BTreeMap<String, String>;

/// The program, built beside the controller.
pub(crate) fn binary() -> Result<PathBuf> {
    let path = PathBuf::from(BINARY).with_file_name("droptailer");
    ensure!(path.is_file(), "{} is missing: cargo build --workspace", path.display());
    Ok(path)
}

/// The lab and its programs.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) daemon: Daemon,
    directory: WorkDir,
    server: Option<Process>,
    client: Option<Process>,
    /// Records of servers that have ended.
    printed: Vec<Record>,
}

impl Stage {
    /// A lab whose firewall enforces a manifest; no droptailer yet.
    pub(super) fn new(label: &str, yaml: &str) -> Result<Self> {
        let lab = Lab::standard(label)?;
        let mut daemon = Daemon::new(label)?;
        daemon.write("all.yaml", yaml)?;
        daemon.start_in(&lab)?;
        Self::on(label, lab, daemon)
    }

    /// A lab whose firewall enforces already; no droptailer yet.
    pub(super) fn on(label: &str, lab: Lab, daemon: Daemon) -> Result<Self> {
        let directory = WorkDir::new(label)?;
        let mut certs = std::process::Command::new(binary()?);
        let made = certs.arg("certs").arg("--directory").arg(directory.path()).output()?;
        ensure!(made.status.success(), "certs: {}", String::from_utf8_lossy(&made.stderr));
        Ok(Self { lab, daemon, directory, server: None, client: None, printed: Vec::new() })
    }

    /// The same with both ends running.
    pub(super) fn running(label: &str, yaml: &str) -> Result<Self> {
        let mut stage = Self::new(label, yaml)?;
        stage.start_server()?;
        stage.start_client(&[])?;
        stage.client()?.wait_for_line("connected to", PATIENCE)?;
        Ok(stage)
    }

    /// Where a client keeps its records.
    pub(super) fn spool(&self) -> String {
        self.directory.path().join("spool").display().to_string()
    }

    /// Where the files of certificates are, as `droptailer certs` makes them.
    pub(super) fn certificates(&self) -> &Path {
        self.directory.path()
    }

    /// Where a client can be asked.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("droptailer.sock")
    }

    pub(super) fn start_server(&mut self) -> Result<()> {
        let files = self.directory.path().join("server");
        let mut command = self.lab.firewall.command(binary()?);
        command.arg("server").args(["--address", "127.0.0.1", "--port", &PORT.to_string()]);
        command.args(["--metrics-addr", "127.0.0.1:0"]);
        for (flag, file) in
            [("--certificate", "tls.crt"), ("--key", "tls.key"), ("--ca-certificate", "ca.crt")]
        {
            command.arg(flag).arg(files.join(file));
        }
        let server = Process::spawn(command)?;
        server.wait_for_line("listening on", PATIENCE)?;
        self.server = Some(server);
        Ok(())
    }

    pub(super) fn server(&self) -> Result<&Process> {
        self.server.as_ref().context("no server")
    }

    pub(super) fn stop_server(&mut self) -> Result<()> {
        let mut server = self.server.take().context("no server")?;
        server.signal(Signal::SIGTERM)?;
        server.wait(PATIENCE)?;
        self.printed.extend(records(&server.lines())?);
        Ok(())
    }

    pub(super) fn start_client(&mut self, arguments: &[&str]) -> Result<()> {
        let files = self.directory.path().join("client");
        let mut command = self.lab.firewall.command(binary()?);
        command.arg("client").arg("--server-address").arg(format!("127.0.0.1:{PORT}"));
        command.arg("--control-socket").arg(self.daemon.beside("control.sock"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        for (flag, file) in
            [("--client-certificate", "tls.crt"), ("--client-key", "tls.key"), ("--ca-certificate", "ca.crt")]
        {
            command.arg(flag).arg(files.join(file));
        }
        let client = Process::spawn(command)?;
        client.wait_for_line("listening to NFLOG", PATIENCE)?;
        self.client = Some(client);
        Ok(())
    }

    pub(super) fn client(&mut self) -> Result<&mut Process> {
        self.client.as_mut().context("no client")
    }

    /// SIGTERM or SIGKILL, and its end.
    pub(super) fn end_client(&mut self, signal: Signal) -> Result<Vec<String>> {
        let mut client = self.client.take().context("no client")?;
        client.signal(signal)?;
        client.wait(PATIENCE)?;
        Ok(client.lines())
    }

    /// What servers have printed so far.
    pub(super) fn records(&self) -> Result<Vec<Record>> {
        let mut all = self.printed.clone();
        if let Some(server) = &self.server {
            all.extend(records(&server.lines())?);
        }
        Ok(all)
    }

    /// Waits until they account for so many packets, and gives the records.
    pub(super) fn wait_for(&mut self, packets: u64, patience: Duration) -> Result<Vec<Record>> {
        let deadline = Instant::now() + patience;
        loop {
            let records = self.records()?;
            let sum = shown(&records) + lost(&records);
            if sum >= packets {
                return Ok(records);
            }
            if Instant::now() > deadline {
                let client = self.client()?.lines().join("\n");
                bail!(
                    "{sum} of {packets} packets within {patience:?}:\n{:?}\n{client}\n{}",
                    losses(&records),
                    self.metrics()?
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The client's figures.
    pub(super) fn metrics(&self) -> Result<String> {
        use std::io::{BufRead as _, BufReader, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket())?;
        stream.write_all(b"{\"request\":\"metrics\"}\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: serde_json::Value = serde_json::from_str(&line)?;
        Ok(answer["result"].as_str().context("no text")?.to_owned())
    }

    /// One of them.
    pub(super) fn metric(&self, name: &str) -> Result<u64> {
        let text = self.metrics()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.with_context(|| format!("{name} is not in\n{text}"))
    }

    /// Sends packets from the cluster, in order, as fast as it goes.
    pub(super) fn send(&self, packets: &[Crafted]) -> Result<()> {
        let mut bytes = Vec::new();
        for packet in packets {
            bytes.extend(packet.encode(Tag { run: 0, id: 0 })?);
        }
        Injector::on(self.lab.cluster())?.send(&bytes)
    }

    /// Denied packets `range`, each with a number of its own.
    pub(super) fn send_numbered(&self, range: std::ops::Range<u32>) -> Result<()> {
        self.send(&range.map(numbered).collect::<Vec<_>>())
    }
}

/// A denied packet that says its number by its ports.
fn numbered(number: u32) -> Crafted {
    let [high, low] = [number / 1000, number % 1000].map(|part| u16::try_from(part).unwrap_or(u16::MAX));
    Crafted::udp(at("10.0.16.2", 10_000 + high), at("198.18.0.1", 20_000 + low))
}

/// The number of a record of [`Stage::send_numbered`].
pub(super) fn number(record: &Record) -> Option<u32> {
    let port = |key: &str| record.get(key)?.parse::<u32>().ok();
    Some((port("SPT")?.checked_sub(10_000)?) * 1000 + port("DPT")?.checked_sub(20_000)?)
}

/// Packets that records show.
pub(super) fn shown(records: &[Record]) -> u64 {
    records.iter().filter(|record| record["ACTION"] != "lost").map(count).sum()
}

/// Packets that records say are lost.
pub(super) fn lost(records: &[Record]) -> u64 {
    records.iter().filter(|record| record["ACTION"] == "lost").map(count).sum()
}

/// The same by cause.
pub(super) fn losses(records: &[Record]) -> BTreeMap<String, u64> {
    let mut losses = BTreeMap::new();
    for record in records.iter().filter(|record| record["ACTION"] == "lost") {
        *losses.entry(record["CAUSE"].clone()).or_default() += count(record);
    }
    losses
}

fn count(record: &Record) -> u64 {
    record.get("COUNT").and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// `2020-06-17 13:23:27 +0000 UTC {…}`; other lines are the server's log.
pub(super) fn records(lines: &[String]) -> Result<Vec<Record>> {
    let records = lines.iter().filter_map(|line| line.split_once(" +0000 UTC {"));
    records.map(|(_, rest)| Ok(serde_json::from_str(&format!("{{{rest}"))?)).collect()
}
