//! The program as it is started: file, flags, signals, HTTP, a socket of systemd's, and promtool's judgement.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fw_testkit::monitoring::promtool;
use fw_testkit::{Netns, Process, WorkDir, nft};
use nix::sys::signal::Signal;

const BINARY: &str = env!("CARGO_BIN_EXE_nftables-exporter");
const PATIENCE: Duration = Duration::from_secs(20);

fn namespace(label: &str) -> Result<Netns> {
    let ns = Netns::new(label)?;
    ns.ip("link set lo up\n")?;
    nft::load(&ns, include_str!("../fixtures/statements.nft"))?;
    Ok(ns)
}

fn file(dir: &WorkDir, keys: &str) -> Result<String> {
    let text = format!(
        "nftables_exporter: {{controller_socket: '', droptailer_socket: '', log_level: info, {keys}}}\n"
    );
    Ok(dir.write("config.yaml", &text)?.display().to_string())
}

fn connect(ns: &Netns, port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ns.run(|| TcpStream::connect(address))? {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => return Err(error).context("nobody listens"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Status line and body of a request.
fn ask(ns: &Netns, port: u16, method: &str, path: &str) -> Result<(String, String)> {
    let mut stream = connect(ns, port)?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

fn metrics(ns: &Netns, port: u16) -> Result<String> {
    let (status, body) = ask(ns, port, "GET", "/metrics")?;
    ensure!(status.ends_with("200 OK"), "{status}: {body}");
    Ok(body)
}

fn start(ns: &Netns, config: &str, more: &[&str]) -> Result<Process> {
    let mut command = ns.command(BINARY);
    command.args(["--config", config]).args(more);
    Process::spawn(command)
}

#[test]
fn promtool_reads_everything_and_only_dislikes_the_two_names_that_are_todays() -> Result<()> {
    let (ns, dir) = (namespace("exptool")?, WorkDir::new("exptool")?);
    crate::writer::hostile_table(&ns)?;
    let _program = start(&ns, &file(&dir, "bind_to: '127.0.0.1:9630'")?, &[])?;
    let text = metrics(&ns, 9630)?;
    assert_eq!(
        promtool(&text)?,
        [
            "nftables_counter_bytes metric name should not include type 'counter'",
            "nftables_counter_packets metric name should not include type 'counter'",
        ]
    );
    // It does complain when there is reason to.
    ensure!(!promtool("x_total{a=\"b} 1\n")?.is_empty());
    Ok(())
}

#[test]
fn paths_methods_and_slow_clients_are_answered_as_they_should() -> Result<()> {
    let (ns, dir) = (namespace("exphttp")?, WorkDir::new("exphttp")?);
    let _program = start(&ns, &file(&dir, "bind_to: ':9630', url_path: /other")?, &["--handles"])?;
    // Those that say nothing take their places, and no more.
    let silent: Vec<TcpStream> = (0..15).map(|_| connect(&ns, 9630)).collect::<Result<_>>()?;
    for (method, path, status, part) in [
        ("GET", "/other", "200 OK", "handle=\""),
        ("HEAD", "/other", "200 OK", ""),
        ("GET", "/healthz", "200 OK", "ok"),
        ("GET", "/", "200 OK", "/other"),
        ("GET", "/metrics", "404 Not Found", "/other"),
        ("POST", "/other", "405 Method Not Allowed", "GET"),
    ] {
        let (got, body) = ask(&ns, 9630, method, path)?;
        ensure!(got.ends_with(status) && body.contains(part), "{method} {path}: {got}\n{body}");
    }
    drop(silent);
    Ok(())
}

#[test]
fn the_file_is_read_again_on_sighup_and_a_wrong_one_changes_nothing() -> Result<()> {
    let (ns, dir) = (namespace("exphup")?, WorkDir::new("exphup")?);
    let path = file(&dir, "bind_to: '127.0.0.1:9630', nft_location: /sbin/nft")?;
    let program = start(&ns, &path, &[])?;
    program.wait_for_line("nft_location does nothing", PATIENCE)?;
    metrics(&ns, 9630)?;
    file(&dir, "bind_to: '127.0.0.1:9631', handles: true")?;
    program.signal(Signal::SIGHUP)?;
    program.wait_for_line("again", PATIENCE)?;
    ensure!(metrics(&ns, 9631)?.contains("handle=\""));
    ensure!(ns.run(|| TcpStream::connect("127.0.0.1:9630").is_err())?, "the old address is still open");
    file(&dir, "bind_to: nonsense")?;
    program.signal(Signal::SIGHUP)?;
    program.wait_for_line("stays as it was", PATIENCE)?;
    ensure!(metrics(&ns, 9631)?.contains("handle=\""));
    Ok(())
}

#[test]
fn flags_are_those_of_todays_exporter_with_one_dash_or_two() -> Result<()> {
    for flag in ["--version", "-version"] {
        let output = Command::new(BINARY).arg(flag).output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success() && text.contains(env!("CARGO_PKG_VERSION")), "{flag}: {text}");
    }
    for argument in ["--config=/nonexistent/file.yaml", "-config=/nonexistent/file.yaml"] {
        let output = Command::new(BINARY).arg(argument).output()?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && text.contains("/nonexistent/file.yaml"), "{argument}: {text}");
    }
    Ok(())
}

#[test]
fn a_socket_that_systemd_holds_is_used_in_place_of_the_files() -> Result<()> {
    let ns = namespace("expact")?;
    let dir = WorkDir::new("expact")?;
    let path = file(&dir, "bind_to: '127.0.0.1:9999'")?;
    let activate = "/usr/bin/systemd-socket-activate";
    if !Path::new(activate).exists() {
        bail!("{activate} is missing: apt-get install systemd");
    }
    let mut command = ns.command(activate);
    command.args(["--listen", "127.0.0.1:9640", BINARY, "--config", &path]);
    let _program = Process::spawn(command)?;
    ensure!(metrics(&ns, 9640)?.contains("nftables_up 1"));
    ensure!(ns.run(|| TcpStream::connect("127.0.0.1:9999").is_err())?, "it listens twice");
    Ok(())
}

#[test]
fn without_the_right_to_read_it_says_so_and_is_not_up() -> Result<()> {
    let (ns, dir) = (namespace("expcap")?, WorkDir::new("expcap")?);
    let path = file(&dir, "bind_to: '127.0.0.1:9630'")?;
    let mut command = ns.command("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", BINARY, "--config", &path]);
    let program = Process::spawn(command)?;
    let text = metrics(&ns, 9630)?;
    ensure!(text.contains("nftables_up 0") && !text.contains("nftables_rule_"), "{text}");
    program.wait_for_line("Operation not permitted", PATIENCE)?;
    Ok(())
}
