//! Today's droptailer client and server (github.com/metal-stack/droptailer), which are programs not written here.
//!
//! Their module cannot be had from the module proxy, so nothing builds them, and `cargo test` leaves this target out:
//! whoever has built them names their directory and runs `make today FW_TODAY=DIRECTORY`. CONTRIBUTING.md says how.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fw_droptailer::journal::Journal;
use fw_droptailer::line::line;
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::inject::Injector;
use fw_testkit::{Process, WorkDir, nft};

use journald::{Journald, fields, write};
use rig::{PATIENCE, RULES, Server, certificates};

#[path = "../it/journald.rs"]
#[allow(dead_code, reason = "the tests beside it use the rest")]
mod journald;
#[path = "../it/rig.rs"]
#[allow(dead_code, reason = "the tests beside it use the rest")]
mod rig;

const VARIABLE: &str = "FW_TODAY";
/// In a namespace of the lab's own.
const PORT: &str = "50051";

/// One of today's programs; fails with the reason where there is none.
fn today(name: &str) -> PathBuf {
    let how = "build it by hand and run `make today FW_TODAY=DIRECTORY`, see CONTRIBUTING.md";
    let directory = std::env::var_os(VARIABLE)
        .unwrap_or_else(|| panic!("today's droptailer is absent, for {VARIABLE} is not set: {how}"));
    let path = PathBuf::from(directory).join(name);
    assert!(path.is_file(), "today's droptailer is absent, for there is no {}: {how}", path.display());
    path
}

/// The keys of a printed line, which must be as our server would have printed it.
fn read(printed: &str) -> BTreeMap<String, String> {
    let (time, json) = printed.split_at(printed.find('{').unwrap_or_else(|| panic!("{printed}")));
    let fields: BTreeMap<String, String> = serde_json::from_str(json).unwrap();
    assert_eq!(fields["timestamp"], time.trim_end());
    let seconds = fields["TS_US"].parse::<u64>().unwrap() / 1_000_000;
    let ours = line(seconds, fields.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    assert_eq!(printed, ours);
    fields
}

#[test]
fn todays_server_prints_each_record_of_our_client_once_and_in_order_as_ours_would() {
    let program = today("droptailer-server");
    let lab = Lab::standard("today").unwrap();
    nft::load(&lab.firewall, RULES).unwrap();
    let work = WorkDir::new("today-server").unwrap();
    certificates(work.path());
    let mut command = lab.firewall.command(program);
    command.env("TZ", "UTC").env("SERVER_PORT", PORT);
    for (variable, file) in [("SERVER_CERTIFICATE", "tls.crt"), ("SERVER_KEY", "tls.key")] {
        command.env(variable, work.path().join("server").join(file));
    }
    let server = Process::spawn(command).unwrap();
    server.wait_for_line("listening on", PATIENCE).unwrap();
    let mut command = lab.firewall.command(env!("CARGO_BIN_EXE_droptailer"));
    command.args(["client", "--server-address", &format!("127.0.0.1:{PORT}")]);
    for (flag, file) in
        [("--ca-certificate", "ca.crt"), ("--client-certificate", "tls.crt"), ("--client-key", "tls.key")]
    {
        command.arg(flag).arg(work.path().join("client").join(file));
    }
    command.arg("--socket").arg(work.path().join("socket"));
    command.arg("--control-socket").arg(work.path().join("none"));
    let client = Process::spawn(command).unwrap();
    client.wait_for_line("listening to NFLOG", PATIENCE).unwrap();
    client.wait_for_line("the server takes one record at a time", PATIENCE).unwrap();

    let mut injector = Injector::on(lab.cluster()).unwrap();
    let source = "10.0.16.2:5000".parse().unwrap();
    for port in 1..=100 {
        let packet = Crafted::syn(source, ([1, 2, 3, 4], port).into());
        injector.send(&packet.encode(Tag { run: 0, id: 0 }).unwrap()).unwrap();
    }
    server.wait_for_line("\"DPT\":\"100\"", PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let printed = server.lines();
    let records: Vec<_> =
        printed.iter().filter(|line| line.contains("{\"")).map(|printed| read(printed)).collect();
    let ports: Vec<&str> = records.iter().map(|record| record["DPT"].as_str()).collect();
    assert_eq!(ports, (1..=100).map(|port: u16| port.to_string()).collect::<Vec<_>>());
    for record in records {
        let expected =
            [("SRC", "10.0.16.2"), ("DST", "1.2.3.4"), ("SPT", "5000"), ("SYN", ""), ("ACTION", "drop")];
        assert!(expected.iter().all(|(key, value)| record[*key] == *value), "{record:?}");
    }
}

#[test]
fn our_server_prints_each_line_that_todays_client_reads_in_the_journal() {
    let program = today("droptailer-client");
    let server = Server::start("today-client", &[]);
    let journald = Journald::start("today-journal");
    let mut journal = Journal::new(journald.socket()).unwrap();
    // journald makes its file at the first entry, and today's client sends what is there already.
    write(&mut journal, 1);
    let files = server.client_files();
    let mut command: Command = journald.command(&program);
    command.env("DROPTAILER_SERVER_ADDRESS", server.address.to_string());
    for (variable, file) in [
        ("DROPTAILER_CA_CERTIFICATE", files.authority),
        ("DROPTAILER_CLIENT_CERTIFICATE", files.certificate),
        ("DROPTAILER_CLIENT_KEY", files.key),
    ] {
        command.env(variable, journald.copy(&file));
    }
    let client = Process::spawn(command).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while server.metric("droptailer_server_printed_lines_total") == 0 {
        assert!(Instant::now() < deadline, "nothing came: {:?}", client.lines());
        std::thread::sleep(Duration::from_millis(50));
    }
    for port in 2..=100 {
        write(&mut journal, port);
    }
    let printed = server.lines(100);
    let wanted: BTreeSet<BTreeMap<String, String>> = (1..=100).map(fields).collect();
    let records: BTreeSet<BTreeMap<String, String>> = printed
        .iter()
        .map(|printed| {
            let (time, json) = printed.split_at(printed.find('{').unwrap());
            let mut fields: BTreeMap<String, String> = serde_json::from_str(json).unwrap();
            assert_eq!(fields.remove("timestamp").as_deref(), Some(time.trim_end()), "{printed}");
            fields
        })
        .collect();
    assert_eq!((printed.len(), records), (100, wanted), "{:?}", client.lines());
}
