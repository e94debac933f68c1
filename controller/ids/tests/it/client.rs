use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fw_ids::command::{AnswerError, MAX_ANSWER};
use fw_ids::{Figures, Reading, SocketError};

use crate::directory::Directory;

/// Far below what a hanging test would take, far above what an answer takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one connection as `script` says.
fn suricata(path: &Path, script: impl FnOnce(UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || script(listener.accept().unwrap().0));
}

/// Answers requests one by one.
fn answers(texts: &'static [&'static str]) -> impl FnOnce(UnixStream) + Send {
    move |mut stream| {
        let mut requests = BufReader::new(stream.try_clone().unwrap());
        for text in texts {
            let mut request = String::new();
            requests.read_line(&mut request).unwrap();
            stream.write_all(text.as_bytes()).ok();
        }
        // Until the other side is through.
        requests.read_line(&mut String::new()).ok();
    }
}

fn read(path: PathBuf, patience: Duration) -> Result<Reading, SocketError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(fw_ids::read(&path, patience))
}

fn outcome(script: impl FnOnce(UnixStream) + Send + 'static) -> Result<Reading, SocketError> {
    let directory = Directory::new();
    let path = directory.path("socket");
    suricata(&path, script);
    read(path, PATIENCE)
}

#[test]
fn figures_of_all_interfaces_are_read() {
    let reading = outcome(answers(&[
        "{\"return\":\"OK\"}\n",
        "{\"message\":{\"count\":3,\"ifaces\":[\"vlan1\",\"vlan2\",\"no such name\"]},\"return\":\"OK\"}\n",
        "{\"message\":{\"pkts\":5,\"invalid-checksums\":1,\"drop\":2,\"bypassed\":0},\"return\":\"OK\"}\n",
        "{\"message\":\"Iface does not exist\",\"return\":\"NOK\"}\n",
    ]))
    .unwrap();
    let figures = Figures { packets: 5, drops: 2, invalid_checksums: 1 };
    assert_eq!(reading, Reading { interfaces: [("vlan1".to_owned(), figures)].into(), left_out: 2 });
}

#[test]
fn a_socket_that_is_not_there_or_that_nobody_serves_is_an_error() {
    let directory = Directory::new();
    let path = directory.path("socket");
    assert!(matches!(read(path.clone(), PATIENCE), Err(SocketError::Connect(_))));
    std::fs::write(&path, "a file").unwrap();
    assert!(matches!(read(path.clone(), PATIENCE), Err(SocketError::Connect(_))));
    std::fs::remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(read(path, PATIENCE), Err(SocketError::Connect(_))));
}

#[test]
fn a_socket_that_never_answers_or_never_ends_an_answer_costs_the_patience() {
    let scripts: [fn(UnixStream); 3] = [
        |stream| {
            std::thread::sleep(PATIENCE);
            drop(stream);
        },
        |mut stream| {
            stream.write_all(b"{\"return\":").unwrap();
            std::thread::sleep(PATIENCE);
        },
        |mut stream| {
            // One byte after the other is an answer that never ends.
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        },
    ];
    for script in scripts {
        let directory = Directory::new();
        let path = directory.path("socket");
        suricata(&path, script);
        let began = Instant::now();
        assert!(matches!(read(path, Duration::from_millis(200)), Err(SocketError::Silent)));
        assert!(began.elapsed() < PATIENCE);
    }
}

#[test]
fn answers_beyond_the_bound_and_those_that_are_none_are_errors() {
    let error = outcome(|mut stream| {
        let garbage = vec![b'x'; 10_000_000];
        stream.write_all(&garbage).ok();
    });
    assert!(matches!(error, Err(SocketError::TooLong)), "{error:?}");
    let longest = outcome(|mut stream| {
        let mut line = vec![b' '; MAX_ANSWER - 1];
        line.push(b'\n');
        stream.write_all(&line).unwrap();
        BufReader::new(stream).read_line(&mut String::new()).ok();
    });
    assert!(matches!(longest, Err(SocketError::Answer(AnswerError::Unreadable))), "{longest:?}");
    let closed = outcome(|stream| {
        let mut requests = BufReader::new(stream);
        requests.read_line(&mut String::new()).unwrap();
    });
    assert!(matches!(closed, Err(SocketError::Closed)), "{closed:?}");
    let refused = outcome(answers(&["{\"message\":\"too old\",\"return\":\"NOK\"}\n"]));
    let Err(SocketError::Answer(AnswerError::Refused(why))) = refused else { panic!("{refused:?}") };
    assert_eq!(why, "too old");
}
