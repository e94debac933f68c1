//! A real systemd-journald in a mount namespace of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fw_droptailer::journal::Journal;
use fw_testkit::{Process, WorkDir};

const JOURNALD: &str = "/lib/systemd/systemd-journald";
const PATIENCE: Duration = Duration::from_secs(20);

/// A journald whose `/run` is a directory of ours.
pub(crate) struct Journald {
    directory: WorkDir,
    process: Process,
}

impl Journald {
    pub(crate) fn start(label: &str) -> Self {
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
        let journald = Self { directory, process };
        let deadline = Instant::now() + PATIENCE;
        while !journald.socket().exists() {
            assert!(Instant::now() < deadline, "journald makes no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        journald
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("systemd/journal/socket")
    }

    /// Copies a file to where programs of [`Self::command`] find it; gives its path for them.
    pub(crate) fn copy(&self, file: &Path) -> PathBuf {
        let name = file.file_name().unwrap();
        std::fs::copy(file, self.directory.path().join(name)).unwrap();
        Path::new("/run").join(name)
    }

    /// A program for which `/run` is this journald's, as it is for all programs of a machine.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg("--target").arg(self.process.id().to_string()).arg("--").arg(program);
        command
    }

    /// Where its files are.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.path().join("log/journal")
    }

    /// Messages of the kernel, as a pipeline asks for them.
    pub(crate) fn messages(&self) -> Vec<String> {
        let mut command = Command::new("journalctl");
        command.args(["--quiet", "--no-pager", "--output=cat", "SYSLOG_IDENTIFIER=kernel", "--directory"]);
        let output = command.arg(self.files()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

/// A record as the client writes it.
pub(crate) fn fields(port: u16) -> BTreeMap<String, String> {
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

/// As soon as journald has room for it: the kernel keeps ten datagrams (net.unix.max_dgram_qlen).
pub(crate) fn write(journal: &mut Journal, number: u16) {
    while let Err(error) = journal.write(&fields(number)) {
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        std::thread::sleep(Duration::from_millis(1));
    }
}
