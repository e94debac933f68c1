//! The journal as pipelines know it, with a real systemd-journald in a mount namespace of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fw_droptailer::journal::Journal;
use fw_testkit::{Process, WorkDir};
use nix::sys::signal::Signal;

const BINARY: &str = env!("CARGO_BIN_EXE_droptailer");
const JOURNALD: &str = "/lib/systemd/systemd-journald";
const PATIENCE: Duration = Duration::from_secs(20);

/// A journald whose `/run` is a directory of ours.
struct Journald {
    directory: WorkDir,
    _process: Process,
}

impl Journald {
    fn start(label: &str) -> Self {
        assert!(PathBuf::from(JOURNALD).exists(), "{JOURNALD} is missing: it is in Debian's package systemd");
        let directory = WorkDir::new(label).unwrap();
        for name in ["systemd/journal", "systemd/journald.conf.d", "log/journal"] {
            std::fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        let settings =
            "[Journal]\nStorage=volatile\nReadKMsg=no\nForwardToSyslog=no\nRateLimitBurst=0\nAudit=no\n";
        std::fs::write(directory.path().join("systemd/journald.conf.d/ours.conf"), settings).unwrap();
        let mut command = Command::new("unshare");
        let script = format!("mount --make-rprivate / && mount --bind \"$0\" /run && exec {JOURNALD}");
        command.args(["--mount", "sh", "-c", &script]).arg(directory.path());
        let process = Process::spawn(command).unwrap();
        let journald = Self { directory, _process: process };
        let deadline = Instant::now() + PATIENCE;
        while !journald.socket().exists() {
            assert!(Instant::now() < deadline, "journald makes no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        journald
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("systemd/journal/socket")
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("log/journal")
    }

    /// Messages of the kernel, as a pipeline asks for them.
    fn messages(&self) -> Vec<String> {
        let mut command = Command::new("journalctl");
        command.args(["--quiet", "--no-pager", "--output=cat", "SYSLOG_IDENTIFIER=kernel", "--directory"]);
        let output = command.arg(self.files()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

fn fields(port: u16) -> BTreeMap<String, String> {
    let pairs = [
        ("ACTION", "drop"),
        ("IN", "vrf1"),
        ("OUT", "vlan2"),
        ("SRC", "10.0.0.5"),
        ("DST", "192.0.2.1"),
        ("PROTO", "UDP"),
    ];
    let mut fields: BTreeMap<String, String> =
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    fields.insert("DPT".to_owned(), port.to_string());
    fields
}

#[test]
fn a_line_that_was_written_is_in_the_journal_as_the_kernels() {
    let journald = Journald::start("journal-out");
    let mut journal = Journal::new(journald.socket()).unwrap();
    journal.write(&fields(53)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while journald.messages().is_empty() {
        assert!(Instant::now() < deadline, "nothing is in the journal");
        std::thread::sleep(Duration::from_millis(50));
    }
    let expected = "nftables-firewall-dropped: IN=vrf1 OUT=vlan2 SRC=10.0.0.5 DST=192.0.2.1 PROTO=UDP DPT=53";
    assert_eq!(journald.messages(), [expected]);
    let gone = Journal::new(journald.directory.path().join("nobody")).unwrap().write(&fields(53));
    assert!(gone.is_err(), "and where nobody listens it is an error at once");
}

/// As soon as journald has room for it: the kernel keeps ten datagrams (net.unix.max_dgram_qlen).
fn write(journal: &mut Journal, number: u16) {
    while let Err(error) = journal.write(&fields(number)) {
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn lines_of_the_journal_go_to_the_server_and_a_restart_repeats_and_misses_none() {
    let journald = Journald::start("journal-in");
    let work = WorkDir::new("journal-client").unwrap();
    let made = Command::new(BINARY).args(["certs", "--directory"]).arg(work.path()).output().unwrap();
    assert!(made.status.success());
    let mut command = Command::new(BINARY);
    command.args(["server", "--address", "127.0.0.1", "--port", "0", "--metrics-addr", "127.0.0.1:0"]);
    for (flag, file) in [("--certificate", "tls.crt"), ("--key", "tls.key"), ("--ca-certificate", "ca.crt")] {
        command.arg(flag).arg(work.path().join("server").join(file));
    }
    let server = Process::spawn(command).unwrap();
    let listening = server.wait_for_line("listening on", PATIENCE).unwrap();
    let address = listening.rsplit(' ').next().unwrap().to_owned();
    let start = || {
        let mut command = Command::new(BINARY);
        command.args(["client", "--journal", "--server-address", &address]);
        for (flag, file) in
            [("--ca-certificate", "ca.crt"), ("--client-certificate", "tls.crt"), ("--client-key", "tls.key")]
        {
            command.arg(flag).arg(work.path().join("client").join(file));
        }
        command.arg("--journal-directory").arg(journald.files());
        command.arg("--spool-directory").arg(work.path().join("spool"));
        command.arg("--socket").arg(work.path().join("socket"));
        command.arg("--control-socket").arg(work.path().join("none"));
        Process::spawn(command).unwrap()
    };
    let mut journal = Journal::new(journald.socket()).unwrap();
    // journald makes its file at the first entry, and the first start begins behind what is there.
    journal.write(&fields(1)).unwrap();
    let mut client = start();
    client.wait_for_line("connected to", PATIENCE).unwrap();
    let port = |port: u16| format!("\"DPT\":\"{port}\"");
    // journalctl is up some time after its parent says so.
    let deadline = Instant::now() + PATIENCE;
    while !server.lines().iter().any(|line| line.contains(&port(2))) {
        assert!(Instant::now() < deadline, "{:?}", client.lines());
        journal.write(&fields(2)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    for number in 100..150 {
        write(&mut journal, number);
    }
    server.wait_for_line(&port(149), PATIENCE).unwrap();
    client.signal(Signal::SIGTERM).unwrap();
    assert!(client.wait(PATIENCE).unwrap().success());
    for number in 150..200 {
        write(&mut journal, number);
    }
    let client = start();
    server.wait_for_line(&port(199), PATIENCE).unwrap();
    let lines = server.lines();
    let times = |number: u16| lines.iter().filter(|line| line.contains(&port(number))).count();
    let wrong: Vec<(u16, usize)> =
        (100..200).map(|number| (number, times(number))).filter(|(_, times)| *times != 1).collect();
    assert_eq!(wrong, [], "{:?}", client.lines());
    assert_eq!(times(1), 0, "what was there before the first start is not sent");
}
