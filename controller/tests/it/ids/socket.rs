//! Command sockets that are missing, hang or lie.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::field::{edits_are_enforced, of, places, problems, running};

/// What is done with a connection.
type Script = fn(UnixStream);

/// Serves every connection as told, in place of who served before, until this process ends.
fn serve(socket: &Path, script: Script) -> Result<()> {
    fs::remove_file(socket).ok();
    let listener = UnixListener::bind(socket)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || script(stream));
        }
    });
    Ok(())
}

fn hang(stream: UnixStream) {
    std::thread::sleep(Duration::from_secs(3600));
    drop(stream);
}

fn garbage(mut stream: UnixStream) {
    stream.write_all(&vec![b'{'; 10_000_000]).ok();
}

fn lies(mut stream: UnixStream) {
    let names: Vec<String> = (0..1000).map(|number| format!("\"vlan{number}\"")).collect();
    let answers = [
        "{\"return\":\"OK\"}",
        &format!("{{\"return\":\"OK\",\"message\":{{\"ifaces\":[{}]}}}}", names.join(",")),
    ];
    let mut requests = BufReader::new(stream.try_clone().unwrap());
    for answer in answers.into_iter().chain(std::iter::repeat(
        "{\"return\":\"OK\",\"message\":{\"pkts\":18446744073709551615,\"drop\":1,\"invalid-checksums\":2}}",
    )) {
        if !matches!(requests.read_line(&mut String::new()), Ok(1..)) {
            return;
        }
        stream.write_all(format!("{answer}\n").as_bytes()).ok();
    }
}

#[test]
fn a_socket_that_is_missing_hangs_or_lies_costs_nothing_but_its_figures() -> Result<()> {
    let (lab, daemon) = running("ids-socket")?;
    let (socket, log) = places(&daemon);
    fs::write(log, "")?;
    let stages: [(Option<Script>, &str); 3] = [
        (None, "nobody listens"),
        (Some(hang), "did not answer in time"),
        (Some(garbage), "more than 65536 bytes"),
    ];
    for (port, (script, problem)) in (443..).zip(stages) {
        if let Some(script) = script {
            serve(&socket, script)?;
        }
        let status = daemon.wait_until(
            "the problem is shown",
            |status| matches!(problems(status).as_slice(), [text] if text.contains(problem)),
        )?;
        assert_eq!(of(&status)["answers"], false);
        assert_eq!(status["status"]["controller"]["enforcing"], true);
        edits_are_enforced(&lab, &daemon, port)?;
    }
    serve(&socket, lies)?;
    let status = daemon.wait_until("what can be read is shown and the problem is over", |status| {
        of(status)["answers"] == true && problems(status).is_empty()
    })?;
    let shown = status["status"]["stats"]["idsstats"].as_object().cloned().unwrap_or_default();
    assert_eq!(shown.len(), 64, "interfaces are bounded");
    assert_eq!(shown["vlan0"]["packets"], u64::MAX);
    assert_eq!(of(&status)["interfacesLeftOut"], 1000 - 64);
    edits_are_enforced(&lab, &daemon, 446)
}
