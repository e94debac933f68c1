use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::channel;

use super::*;
use crate::reconcile::{Basis, Judged, State};
use crate::temporary::TemporaryDirectory;

/// A served socket and the directory it is in. The reconciler is a thread that answers every job at once.
struct Served {
    directory: TemporaryDirectory,
    server: Arc<Server>,
}

impl Served {
    fn start() -> Self {
        let directory = TemporaryDirectory::new("control");
        let (jobs, received) = channel();
        std::thread::spawn(move || {
            for job in received {
                match job {
                    Job::Counters(done) | Job::UndoFlush(done) => drop(done.send(())),
                    Job::Flush(done) => drop(done.send(Err("busy".to_owned()))),
                    _ => {}
                }
            }
        });
        let view = View {
            state: State::Enforcing(Basis::Base),
            enforced: Some(Judged::base().into()),
            ..View::default()
        };
        let server = Arc::new(Server {
            api: None,
            names: crate::names::Handle::detached(),
            ids: crate::ids::Handle::default(),
            view: watch::channel(Arc::new(view)).1,
            jobs,
            identification: Identification { firewall: "fw1".to_owned(), ..Identification::default() },
            problems: Problems::default(),
            counters: Counters::default(),
            followers: crate::names::Followers::default(),
            enricher: Arc::default(),
            enriching: Arc::new(Semaphore::new(1)),
        });
        server.problems.set("disk", vec!["disk full".to_owned()]);
        let listening = Listening::bind(&directory.path().join("control.sock")).unwrap();
        let serving = Arc::clone(&server);
        tokio::spawn(async move { serve(&listening, serving).await });
        Self { directory, server }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    async fn ask(&self, request: Request) -> Result<Value, client::ClientError> {
        let path = self.path();
        tokio::task::spawn_blocking(move || client::ask(&path, &request)).await.unwrap()
    }

    /// Sends bytes as they are and reads what comes until the other side closes.
    async fn send(&self, bytes: Vec<u8>) -> String {
        let path = self.path();
        let conversation = tokio::task::spawn_blocking(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        conversation.await.unwrap()
    }
}

#[tokio::test]
async fn every_request_has_its_answer() {
    let served = Served::start();
    let status = served.ask(Request::Status).await.unwrap();
    assert_eq!(status["metadata"]["name"], "fw1");
    assert_eq!(status["status"]["controller"]["problems"], json!(["disk full"]));
    assert_eq!(served.ask(Request::Findings).await.unwrap(), json!([]));
    let packet = "tcp 10.0.1.5 -> 1.2.3.4:443 in a out b".to_owned();
    let answer = served.ask(Request::Explain { packet }).await.unwrap();
    assert_eq!(answer["accepted"], false);
    assert!(served.ask(Request::Legend).await.unwrap().is_array());
    assert_eq!(served.ask(Request::UndoFlush).await.unwrap(), Value::Null);
    let error = served.ask(Request::Flush).await.unwrap_err().to_string();
    assert!(error.contains("busy"), "{error}");
    let error = served.ask(Request::Explain { packet: "nonsense".to_owned() }).await.unwrap_err().to_string();
    assert!(error.contains("\"nonsense\""), "{error}");
}

#[tokio::test]
async fn several_requests_fit_in_one_connection() {
    let served = Served::start();
    let line = b"{\"request\":\"findings\"}\n";
    assert_eq!(served.send(line.repeat(500)).await, "{\"result\":[]}\n".repeat(500));
    assert_eq!(served.server.counters.value()["requests"], 500);
}

#[tokio::test]
async fn what_is_not_understood_or_too_long_is_an_error_and_counted() {
    let served = Served::start();
    for bytes in [&b"\xff\xfe\n"[..], b"{}\n", b"{\"request\":\"explain\"}\n", b"{\"request\":\"reboot\"}"] {
        let answer = served.send(bytes.to_vec()).await;
        assert!(answer.starts_with("{\"error\":\""), "{answer}");
    }
    let answer = served.send(vec![b'x'; 4096]).await;
    assert!(answer.contains("at most 4096 bytes"), "{answer}");
    assert_eq!(served.server.counters.value()["badRequests"], 5);
}

#[tokio::test]
async fn connections_beyond_the_bound_are_refused_and_counted() {
    let served = Served::start();
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        idle.push(UnixStream::connect(served.path()).await.unwrap());
    }
    let one_more = served.ask(Request::Findings).await;
    assert!(matches!(one_more, Err(client::ClientError::Broken(_))), "{one_more:?}");
    assert_eq!(served.server.counters.value()["refusedConnections"], 1);
    drop(idle);
    let answered = async {
        while served.ask(Request::Findings).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), answered).await.unwrap();
}
