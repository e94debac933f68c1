//! What operators see: alerts that can fire, and a dashboard whose panels have answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::{Connect, Load, Pace, Reply, Unique};
use fw_testkit::monitoring::picture::{Named, draw};
use fw_testkit::monitoring::{Dashboard, Kind, Panel, Prometheus};
use fw_testkit::topology::SCRIPTED_ADDRESSES;
use fw_testkit::traffic::probe::{tcp_connect, udp};
use fw_testkit::{Process, WorkDir};

use crate::daemon::{BINARY, PATIENCE, eventually};
use crate::ids::field::{Suricata, watch};
use crate::names::field::{Mode, Names, PORT, to_names};
use crate::rig::{at, policy};
use crate::tree::root;

/// Where the exporter listens, in the firewall's namespace.
const EXPORTER: &str = "127.0.0.1:9630";
/// What suricata looks at: the way to the internet.
const INTERFACE: &str = "vrf104009";
/// Seconds of traffic that the picture shows.
const SECONDS: u64 = 40;
/// Queries about what a healthy firewall does not do.
const MAY_BE_EMPTY: [&str; 3] = ["names_refused_total", "names_evicted_total", "droptailer_lost"];

fn folder() -> PathBuf {
    root().join("deploy/monitoring")
}

fn promtool(arguments: &[&str]) -> Result<()> {
    let said = Command::new("promtool").args(arguments).current_dir(folder()).output();
    let said = said.context("promtool, of Debian's package prometheus")?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "promtool {arguments:?}: {text}");
    Ok(())
}

#[test]
fn alerts_fire_where_they_should_and_nowhere_else() -> Result<()> {
    promtool(&["check", "rules", "rules.yaml"])?;
    promtool(&["test", "rules", "rules_test.yaml"])?;
    let named = |file: &str, key: &str| -> Result<BTreeSet<String>> {
        let text = fs::read_to_string(folder().join(file))?;
        let names = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
        Ok(names.map(str::to_owned).collect())
    };
    let (alerts, tested) = (named("rules.yaml", "alert: ")?, named("rules_test.yaml", "alertname: ")?);
    ensure!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(alerts, tested, "each alert has its test");
    Ok(())
}

/// A controller with names and traffic, a suricata, and the programs that report of them.
struct Scene {
    names: Names,
    _suricata: Suricata,
    _programs: Vec<Process>,
    _files: WorkDir,
}

impl Scene {
    fn new() -> Result<Self> {
        let mut names = Names::bare("monitoring", Mode::Tcx)?;
        let web = policy(
            "web",
            &format!(
                "{{egress: [{{to: [{{cidr: 203.0.113.0/24}}], ports: \
                 [{{protocol: TCP, port: {PORT}}}, {{protocol: UDP, port: 9}}]}}]}}"
            ),
        );
        names.write(
            "  dropLog: {rate: 100, burst: 5}\n",
            &[to_names("shops", "{matchPattern: '*.shop.scripted.test'}"), web],
        )?;
        watch(&mut names.daemon)?;
        let suricata = Suricata::start(&names.lab, INTERFACE, &names.daemon.beside("suricata"))?;
        names.start()?;
        let files = WorkDir::new("monitoring")?;
        let socket = files.path().join("droptailer.sock");
        let programs = vec![
            droptailer(&names, &["server"], &files)?,
            droptailer(&names, &["client", "--socket", &socket.display().to_string()], &files)?,
            exporter(&names, &socket, &files)?,
        ];
        Ok(Self { names, _suricata: suricata, _programs: programs, _files: files })
    }
}

/// A program that is built beside the controller.
fn beside(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(BINARY).with_file_name(name);
    ensure!(path.is_file(), "{} is missing: cargo build --workspace", path.display());
    Ok(path)
}

fn droptailer(names: &Names, arguments: &[&str], files: &WorkDir) -> Result<Process> {
    let certificates = files.path().join("certificates");
    let is_server = arguments[0] == "server";
    if is_server {
        let made = Command::new(beside("droptailer")?)
            .arg("certs")
            .arg("--directory")
            .arg(&certificates)
            .output()?;
        ensure!(made.status.success(), "certs: {}", String::from_utf8_lossy(&made.stderr));
    }
    let mut command = names.lab.firewall.command(beside("droptailer")?);
    command.args(arguments);
    let (own, prefix) = if is_server {
        command.args(["--address", "127.0.0.1", "--port", "50051", "--metrics-addr", "127.0.0.1:0"]);
        ("server", "")
    } else {
        command.args(["--server-address", "127.0.0.1:50051"]);
        command.arg("--control-socket").arg(names.daemon.beside("control.sock"));
        ("client", "client-")
    };
    for (flag, file) in [("certificate", "tls.crt"), ("key", "tls.key")] {
        command.arg(format!("--{prefix}{flag}")).arg(certificates.join(own).join(file));
    }
    command.arg("--ca-certificate").arg(certificates.join(own).join("ca.crt"));
    let process = Process::spawn(command)?;
    process.wait_for_line(if is_server { "listening on" } else { "connected to" }, PATIENCE)?;
    Ok(process)
}

fn exporter(names: &Names, droptailer: &std::path::Path, files: &WorkDir) -> Result<Process> {
    let config = files.path().join("exporter.yaml");
    let control = names.daemon.beside("control.sock");
    fs::write(
        &config,
        format!(
            "nftables_exporter:\n  bind_to: {EXPORTER}\n  log_level: info\n  controller_socket: {}\n  droptailer_socket: {}\n",
            control.display(),
            droptailer.display()
        ),
    )?;
    let mut command = names.lab.firewall.command(beside("nftables-exporter")?);
    command.arg("--config").arg(&config);
    let process = Process::spawn(command)?;
    process.wait_for_line("listening on", PATIENCE)?;
    Ok(process)
}

/// Questions and connections, allowed and denied ones, for some seconds.
fn traffic(names: &Names) -> Result<()> {
    let script = names.script()?;
    script.otherwise(Reply::Unique(Unique {
        v4: "198.18.0.0/16".parse()?,
        v6: "2001:db8:f00::/64".parse()?,
        ttl: 60,
    }));
    let server = SocketAddr::new(SCRIPTED_ADDRESSES[0].parse()?, 53);
    let until = Instant::now() + Duration::from_secs(SECONDS);
    let mut round = 0;
    while Instant::now() < until {
        // Busier and quieter seconds; every third name is one that no policy has.
        let count = 20 + 15 * (round % 4);
        let name = move |number: usize| match number % 3 {
            0 => format!("r{round}n{number}.elsewhere.scripted.test"),
            _ => format!("r{round}n{number}.shop.scripted.test"),
        };
        let mut load = Load::new(server, count, name);
        load.pace = Pace::PerSecond(u32::try_from(count)?);
        load.connect = Some((Connect::Tcp, PORT));
        load.run(&names.lab.cluster().ns)?;
        let cluster = &names.lab.cluster().ns;
        for _ in 0..round % 5 {
            tcp_connect(cluster, None, at("203.0.113.100", PORT), Duration::from_millis(50)).ok();
            // What the rule of the lab's suricata looks for; nobody answers.
            udp(cluster, None, at("203.0.113.100", 9), Duration::from_millis(1)).ok();
        }
        round += 1;
    }
    Ok(())
}

fn ask(prometheus: &Prometheus<'_>, panel: &Panel) -> Result<Vec<Named>> {
    let mut all = Vec::new();
    for query in &panel.queries {
        let series = prometheus.range(&query.expression, SECONDS)?;
        all.extend(series.into_iter().map(|series| (query.name_of(&series.labels), series)));
    }
    Ok(all)
}

/// Queries without an answer, though there should be one.
fn unanswered(prometheus: &Prometheus<'_>, dashboard: &Dashboard) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for panel in &dashboard.panels {
        for query in &panel.queries {
            let excused = MAY_BE_EMPTY.iter().any(|part| query.expression.contains(part));
            if prometheus.range(&query.expression, SECONDS)?.is_empty() && !excused {
                missing.push(format!("{}: {}", panel.title, query.expression));
            }
        }
    }
    Ok(missing)
}

#[test]
fn every_panel_of_the_dashboard_has_an_answer_in_the_lab() -> Result<()> {
    let json = fs::read_to_string(folder().join("dashboard.json"))?;
    let variables = BTreeMap::from([("instance", ".*"), ("__rate_interval", "5s"), ("datasource", "")]);
    let dashboard = Dashboard::parse(&json, &variables)?;
    let scene = Scene::new()?;
    let rules = fs::read_to_string(folder().join("rules.yaml"))?;
    let prometheus =
        Prometheus::start(&scene.names.lab.firewall, &[("nftables-exporter", EXPORTER.parse()?)], &rules)?;
    prometheus.wait_until_up("nftables-exporter")?;
    traffic(&scene.names)?;
    assert_eq!(unanswered(&prometheus, &dashboard)?, Vec::<String>::new());
    let alerts = prometheus.alerts()?;
    ensure!(alerts.is_empty(), "of a healthy firewall: {alerts:?}");
    let data: Vec<Vec<Named>> =
        dashboard.panels.iter().map(|panel| ask(&prometheus, panel)).collect::<Result<_>>()?;
    let last = data.iter().flatten().filter_map(|(_, series)| series.points.last()).map(|(time, _)| *time);
    let now = last.fold(0.0, f64::max);
    let svg = draw(&dashboard, &data, (now - SECONDS as f64, now));
    ensure!(svg.matches("stroke-width").count() > 20, "a picture without lines");
    if std::env::var_os("BLESS").is_some() {
        fs::write(folder().join("dashboard.svg"), &svg)?;
    }
    let shown = fs::read_to_string(folder().join("dashboard.svg")).context("the picture of the README")?;
    for panel in dashboard.panels.iter().filter(|panel| panel.kind != Kind::Row) {
        let title = panel.title.replace('&', "&amp;");
        ensure!(
            shown.contains(&format!(">{title}</text>")),
            "the picture does not show {title:?}: BLESS=1 draws it anew"
        );
    }
    Ok(())
}

#[test]
fn a_firewall_that_stops_enforcing_raises_an_alert() -> Result<()> {
    let scene = Scene::new()?;
    // As the rules of the deployment, without their patience.
    let rules = fs::read_to_string(folder().join("rules.yaml"))?;
    let hasty: Vec<&str> = rules.lines().filter(|line| !line.trim().starts_with("for: ")).collect();
    let rules = hasty.join("\n");
    let prometheus =
        Prometheus::start(&scene.names.lab.firewall, &[("nftables-exporter", EXPORTER.parse()?)], &rules)?;
    prometheus.wait_until_up("nftables-exporter")?;
    ensure!(!prometheus.alerts()?.contains_key("FirewallNotEnforcing"));
    let flushed = scene.names.daemon.ask(&["flush"])?;
    ensure!(flushed.status.success(), "{flushed:?}");
    eventually("Prometheus pages", || {
        Ok(prometheus.alerts()?.get("FirewallNotEnforcing").is_some_and(|state| state == "firing"))
    })
}
