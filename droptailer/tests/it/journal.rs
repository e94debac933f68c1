//! The journal as pipelines know it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fw_droptailer::journal::Journal;
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::inject::Injector;
use fw_testkit::{Process, WorkDir, nft};
use nix::sys::signal::Signal;

use crate::journald::{Journald, fields, write};

const BINARY: &str = env!("CARGO_BIN_EXE_droptailer");
const PATIENCE: Duration = Duration::from_secs(20);

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
    let gone = Journal::new(journald.socket().with_file_name("nobody")).unwrap().write(&fields(53));
    assert!(gone.is_err(), "and where nobody listens it is an error at once");
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

/// What becomes of denied packets in a lab whose client writes to the journal.
struct Writing {
    lab: Lab,
    client: Process,
    socket: PathBuf,
}

impl Writing {
    fn start(journald: &Journald, work: &WorkDir, server: &str) -> Self {
        let lab = Lab::standard("journal-out").unwrap();
        nft::load(&lab.firewall, crate::rig::RULES).unwrap();
        let mut command = lab.firewall.command(BINARY);
        command.args(["client", "--server-address", server, "--journal-out"]).arg(journald.socket());
        let socket = work.path().join("writing.sock");
        command.arg("--socket").arg(&socket).arg("--control-socket").arg(work.path().join("none"));
        let client = Process::spawn(command).unwrap();
        client.wait_for_line("listening to NFLOG", PATIENCE).unwrap();
        Self { lab, client, socket }
    }

    /// Denied packets, one behind the other.
    fn send(&self, packets: &[Crafted]) {
        let mut injector = Injector::on(self.lab.cluster()).unwrap();
        for packet in packets {
            injector.send(&packet.encode(Tag { run: 0, id: 0 }).unwrap()).unwrap();
            // journald's queue is short, and nobody waits for it.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn metric(&self, name: &str) -> u64 {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(b"{\"request\":\"metrics\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = answer["result"].as_str().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or_else(|| panic!("{name} is not in {text}"))
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Of every kind that has a line of its own form, and that line as the kernel would have written it.
fn kinds() -> Vec<(Crafted, &'static str)> {
    let v4 = |port| (at("10.0.16.2", 4000), at("1.2.3.4", port));
    let v6 = |port| (at("2001:db8:10:16::2", 4000), at("2001:db8:f00::1", port));
    let (source, destination) = v4(80);
    let (source6, destination6) = v6(80);
    vec![
        (
            Crafted::syn(source, destination),
            " SRC=10.0.16.2 DST=1.2.3.4 LEN=* TOS=0x00 PREC=0x00 TTL=63 ID=* DF PROTO=TCP SPT=4000 DPT=80 WINDOW=* RES=0x00 SYN URGP=0",
        ),
        (
            Crafted::udp(source, destination),
            " SRC=10.0.16.2 DST=1.2.3.4 LEN=* TOS=0x00 PREC=0x00 TTL=63 ID=* DF PROTO=UDP SPT=4000 DPT=80",
        ),
        (
            Crafted::echo(source.ip(), destination.ip(), 7),
            " SRC=10.0.16.2 DST=1.2.3.4 LEN=* TOS=0x00 PREC=0x00 TTL=63 ID=7 DF PROTO=ICMP TYPE=8 CODE=0 SEQ=*",
        ),
        (
            Crafted::syn(source6, destination6),
            " SRC=2001:0db8:0010:0016:0000:0000:0000:0002 DST=2001:0db8:0f00:0000:0000:0000:0000:0001 LEN=* TC=0 HOPLIMIT=63 FLOWLBL=0 PROTO=TCP SPT=4000 DPT=80 WINDOW=* RES=0x00 SYN URGP=0",
        ),
    ]
}

/// A line with what differs from packet to packet left out.
fn without_values(line: &str) -> String {
    let blank = |word: &str| match word.split_once('=') {
        Some((key @ ("LEN" | "WINDOW" | "SEQ"), _)) => format!("{key}=*"),
        Some(("ID", value)) if value != "7" => "ID=*".to_owned(),
        _ => word.to_owned(),
    };
    line.split(' ').map(blank).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_denied_packet_is_one_line_of_a_real_journal_as_the_kernel_would_have_written_it() {
    let journald = Journald::start("journal-lab");
    let work = WorkDir::new("journal-lab").unwrap();
    let writing = Writing::start(&journald, &work, "127.0.0.1:9");
    let kinds = kinds();
    for (number, (packet, expected)) in kinds.iter().enumerate() {
        writing.send(std::slice::from_ref(packet));
        let deadline = Instant::now() + PATIENCE;
        while journald.messages().len() <= number {
            assert!(Instant::now() < deadline, "{:?}", writing.client.lines());
            std::thread::sleep(Duration::from_millis(50));
        }
        let messages = journald.messages();
        assert_eq!(messages.len(), number + 1, "{messages:?}");
        let line = &messages[number];
        let (link, rest) = line.split_at(line.find(" SRC=").unwrap());
        assert!(link.starts_with("nftables-firewall-dropped: IN=vrf104009 OUT=vlan179 MAC=02:00:"), "{line}");
        assert_eq!(without_values(rest), *expected);
    }

    // Many: each is in the journal, or journald did not take it in time and that is counted.
    let many: Vec<Crafted> =
        (1..=300).map(|port| Crafted::udp(at("10.0.16.2", 5000), at("1.2.3.4", port))).collect();
    writing.send(&many);
    let deadline = Instant::now() + PATIENCE;
    let (mut taken, mut refused) = (0, 0);
    while taken + refused < 300 + kinds.len() as u64 {
        assert!(
            Instant::now() < deadline,
            "{taken} taken and {refused} refused: {:?}",
            writing.client.lines()
        );
        std::thread::sleep(Duration::from_millis(50));
        taken = writing.metric("droptailer_journal_lines_total");
        refused = writing.metric("droptailer_journal_errors_total");
    }
    assert!(taken > 200, "journald took {taken} only");
    let deadline = Instant::now() + PATIENCE;
    while (journald.messages().len() as u64) < taken {
        assert!(Instant::now() < deadline, "{} lines of {taken}", journald.messages().len());
        std::thread::sleep(Duration::from_millis(50));
    }
    let messages = journald.messages();
    assert_eq!(messages.len() as u64, taken);
    let ends = messages.iter().filter_map(|line| Some(line.split_once("SPT=5000 ")?.1));
    let different: BTreeSet<&str> = ends.collect();
    assert_eq!(different.len() + kinds.len(), messages.len(), "none twice");

    // With the journal gone records go on, and are counted.
    drop(journald);
    writing.send(&many[..10]);
    let deadline = Instant::now() + PATIENCE;
    while writing.metric("droptailer_journal_errors_total") < refused + 10 {
        assert!(Instant::now() < deadline, "{:?}", writing.client.lines());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        writing.metric("droptailer_spool_records"),
        310 + kinds.len() as u64,
        "and wait for the server"
    );
}
