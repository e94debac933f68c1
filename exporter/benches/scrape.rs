//! A scrape of 10,000 rules over HTTP beside `nft -j list ruleset`, interleaved in one run; exits 1 when the goal is missed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::figures::{Goal, ROUNDS, Table};
use fw_testkit::{Netns, Process, WorkDir, nft};

const RULES: usize = 10_000;
/// Rules with an anonymous set; nft loads them in quadratic time.
const SETS: usize = 500;
const PORT: u16 = 9630;

fn main() -> Result<ExitCode> {
    let ns = Netns::new("bench-scrape")?;
    ns.ip("link set lo up\n")?;
    nft::load(&ns, &ruleset())?;
    let dir = WorkDir::new("bench-scrape")?;
    let config =
        dir.write("config.yaml", "nftables_exporter: {bind_to: '127.0.0.1:9630', log_level: info}\n")?;
    let mut command = ns.command(env!("CARGO_BIN_EXE_nftables-exporter"));
    command.arg("--config").arg(&config);
    let program = Process::spawn(command)?;
    program.wait_for_line("listening", Duration::from_secs(20))?;
    scrape(&ns)?;

    let (mut times, mut memory, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let text = scrape(&ns)?;
        let ours = start.elapsed().as_secs_f64();
        ensure!(text.matches("\nnftables_rule_packets{").count() == RULES, "not all rules were shown");
        let start = Instant::now();
        let json = ns.output("nft", &["-j", "list", "ruleset"])?;
        let theirs = start.elapsed().as_secs_f64();
        ensure!(json.len() > RULES, "nft lists too little");
        times.push((ours * 1e3, theirs * 1e3));
        let read = text.lines().find_map(|line| line.strip_prefix("nftables_exporter_read_seconds "));
        reads.push((read.context("no read time")?.parse::<f64>()? * 1e3, 100.0));
        memory.push((resident(program.id())?, peak_of_nft(&ns)?));
    }
    let mut table = Table::new();
    table.add("scrape of 10,000 rules: ms / nft -j list ruleset", &times, Goal::AtMost(0.2));
    // Shown only: a time by itself says more of the machine than of us.
    table.add("  reading the kernel: ms beside 100 ms", &reads, Goal::None);
    table.add("resident memory: MiB / nft's at its highest", &memory, Goal::AtMost(0.5));
    println!("{}", table.text());
    Ok(if table.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn ruleset() -> String {
    let mut text = String::from("table inet bench {\n");
    for chain in 0..10 {
        let _ = writeln!(text, "chain c{chain} {{");
        for rule in (0..RULES).filter(|rule| rule % 10 == chain) {
            let (high, low) = (rule / 250, rule % 250);
            let port = match rule % (RULES / SETS) {
                0 => format!("{{ {}, 443, 8000-9000 }}", 1 + rule % 400),
                _ => (1 + rule % 60_000).to_string(),
            };
            let _ = writeln!(
                text,
                "ip saddr 10.{high}.{low}.0/24 ip daddr 192.168.{low}.1 tcp dport {port} \
                 counter packets {rule} bytes {rule} accept comment \"accept traffic for k8s network policy p{rule} tcp\""
            );
        }
        text.push_str("}\n");
    }
    text.push_str("}\n");
    text
}

fn scrape(ns: &Netns) -> Result<String> {
    let mut stream = ns.run(|| TcpStream::connect(("127.0.0.1", PORT)))??;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// VmRSS of a process in MiB.
fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no figure")?.parse()?;
    Ok(kib / 1024.0)
}

/// The most that nft had resident in one listing, in MiB, looked at until it ends.
fn peak_of_nft(ns: &Netns) -> Result<f64> {
    let mut command = ns.command("nft");
    command.args(["-j", "list", "ruleset"]).stdout(std::process::Stdio::null());
    let mut child = command.spawn()?;
    let mut peak = 0.0_f64;
    while child.try_wait()?.is_none() {
        peak = peak.max(resident(child.id()).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(peak)
}
