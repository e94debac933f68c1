//! The programs beside: what they give is appended, and nothing they do breaks a scrape.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_exporter::config::Config;
use fw_exporter::exposition::MAX_TEXT;
use fw_testkit::{Netns, WorkDir, nft};
use serde_json::json;

use crate::rig::{alone, parse, scrape};

/// A program that answers every connection with these bytes, in pieces, and then keeps it open or closes it.
fn answer(path: &Path, bytes: Vec<u8>, close: bool) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = String::new();
            let Ok(copy) = stream.try_clone() else { return };
            if BufReader::new(copy).read_line(&mut request).is_err()
                || request != "{\"request\":\"metrics\"}\n"
            {
                continue;
            }
            for piece in bytes.chunks(60_000) {
                if stream.write_all(piece).is_err() {
                    break;
                }
            }
            if !close {
                open.push(stream);
            }
        }
    });
    Ok(())
}

fn result(text: &str) -> Vec<u8> {
    format!("{}\n", json!({ "result": text })).into_bytes()
}

/// What is answered, and whether the connection is closed then.
type Behaviour = (Vec<u8>, bool);

fn source_of(labels: &std::collections::BTreeMap<String, String>) -> Option<&str> {
    labels.get("source").map(String::as_str)
}

fn with_sockets(controller: PathBuf, droptailer: PathBuf) -> Config {
    Config {
        controller_socket: controller.display().to_string(),
        droptailer_socket: droptailer.display().to_string(),
        ..alone()
    }
}

#[test]
fn families_of_controller_and_droptailer_are_in_the_same_scrape() -> Result<()> {
    let (ns, dir) = (Netns::new("expsrc")?, WorkDir::new("expsrc")?);
    nft::load(&ns, "table ip t {\ncounter c { packets 1 bytes 2 }\n}")?;
    let config = with_sockets(dir.path().join("c.sock"), dir.path().join("d.sock"));
    let histogram = "# HELP firewall_x_seconds X.\n# TYPE firewall_x_seconds histogram\n\
        firewall_x_seconds_bucket{le=\"+Inf\"} 1\nfirewall_x_seconds_sum 1\nfirewall_x_seconds_count 1\n";
    answer(Path::new(&config.controller_socket), result(histogram), true)?;
    answer(Path::new(&config.droptailer_socket), result("droptailer_lost_total{cause=\"queue\"} 3"), false)?;
    let text = scrape(&ns, &config)?;
    let all = parse(&text)?;
    for part in [
        "firewall_x_seconds_bucket{le=\"+Inf\"} 1\n",
        "droptailer_lost_total{cause=\"queue\"} 3\n",
        "nftables_exporter_source_up{source=\"controller\"} 1\n",
        "nftables_exporter_source_up{source=\"droptailer\"} 1\n",
    ] {
        ensure!(text.contains(part), "{part} is not in\n{text}");
    }
    ensure!(all.keys().any(|(name, _)| name == "nftables_counter_packets"));
    Ok(())
}

#[test]
fn whatever_a_neighbour_answers_the_scrape_goes_on_and_counts_why() -> Result<()> {
    let (ns, dir) = (Netns::new("expbad")?, WorkDir::new("expbad")?);
    nft::load(&ns, "table ip t {\ncounter c { packets 1 bytes 2 }\n}")?;
    let endless = vec![b'x'; 3 * MAX_TEXT];
    let duplicate = result("firewall_a 1\nfirewall_a 1\n");
    let cases: [(&str, Option<Behaviour>); 12] = [
        ("absent", None),
        ("slow", Some((Vec::new(), false))),
        ("slow", Some((b"{\"result\":\"firewall_a 1".to_vec(), false))),
        ("broken", Some((Vec::new(), true))),
        ("broken", Some((b"hello\n".to_vec(), true))),
        ("broken", Some((b"{\"result\":7}\n".to_vec(), true))),
        ("broken", Some((endless, false))),
        ("refused", Some((b"{\"error\":\"no such request\"}\n".to_vec(), true))),
        ("invalid", Some((duplicate, true))),
        ("invalid", Some((result("nftables_up 0\n"), true))),
        ("invalid", Some((result("firewall_a{b=\"\u{0}} 1\n"), true))),
        ("invalid", Some((result(&"firewall_a 1\n".repeat(MAX_TEXT / 12)), true))),
    ];
    for (index, (cause, behaviour)) in cases.into_iter().enumerate() {
        let socket = dir.path().join(format!("{index}.sock"));
        if let Some((bytes, close)) = behaviour {
            answer(&socket, bytes, close)?;
        }
        let began = Instant::now();
        let text = scrape(&ns, &with_sockets(socket, dir.path().join("nobody.sock")))?;
        ensure!(began.elapsed() < Duration::from_secs(5), "case {index} took {:?}", began.elapsed());
        let all = parse(&text)?;
        ensure!(!text.contains("firewall_a"), "case {index}:\n{text}");
        ensure!(all.keys().any(|(name, _)| name == "nftables_counter_packets"), "case {index}:\n{text}");
        let failures: Vec<_> = all
            .iter()
            .filter(|((name, labels), value)| {
                name == "nftables_exporter_source_failures_total"
                    && source_of(labels) == Some("controller")
                    && **value > 0.0
            })
            .map(|((_, labels), _)| labels["cause"].clone())
            .collect();
        assert_eq!(failures, [cause], "case {index}:\n{text}");
    }
    Ok(())
}
