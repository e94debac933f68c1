//! Pages for Prometheus and for probes, over HTTP/1.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::debug;

/// Connections at one time.
pub const MAX_CONNECTIONS: usize = 16;
/// Prometheus' text format.
pub const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
/// For a request's head to arrive, and for an answer to be fetched once its connection's time is over.
const PATIENCE: Duration = Duration::from_secs(5);
/// After an accept that failed, for want of descriptors say: the next one would fail as fast.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What becomes of who comes while there are [`MAX_CONNECTIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Waits for a place, as probes do.
    Wait,
    /// The connection is closed at once, and counted.
    TurnAway,
}

/// An answer that is one text.
pub type Page = Response<Full<Bytes>>;

/// A text in Prometheus' format.
pub fn page(status: StatusCode, text: String) -> Page {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT_FORMAT);
    response
}

/// Lets so many in, and for so long.
#[derive(Debug)]
pub struct Door {
    when_full: WhenFull,
    lifetime: Duration,
    places: Arc<Semaphore>,
    turned_away: AtomicU64,
}

impl Door {
    /// `lifetime` is the longest of a connection, whatever it does, but for some seconds to fetch the last answer: whoever
    /// reads that slowly begins again.
    pub fn new(when_full: WhenFull, lifetime: Duration) -> Self {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { when_full, lifetime, places, turned_away: AtomicU64::new(0) }
    }

    /// Connections that were closed because too many were open.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Serves until dropped; connections that are open then go on. Another listener may be served by the same door
    /// afterwards: its bounds are for all of them.
    pub async fn serve<Answer, Answering, Text>(&self, listener: &TcpListener, answer: Answer)
    where
        Answer: Fn(Request<Incoming>) -> Answering + Clone + Send + 'static,
        Answering: Future<Output = Response<Text>> + Send,
        Text: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        loop {
            let waited = match self.when_full {
                WhenFull::Wait => Arc::clone(&self.places).acquire_owned().await.ok(),
                WhenFull::TurnAway => None,
            };
            let Ok((stream, _)) = listener.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Some(place) = waited.or_else(|| Arc::clone(&self.places).try_acquire_owned().ok()) else {
                self.turned_away.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (answer, lifetime) = (answer.clone(), self.lifetime);
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let answering = answer(request);
                    async { Ok::<_, Infallible>(answering.await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), answer);
                tokio::pin!(connection);
                let mut ended = timeout(lifetime, connection.as_mut()).await;
                if ended.is_err() {
                    // A scrape that is being answered gets the rest of its answer.
                    connection.as_mut().graceful_shutdown();
                    ended = timeout(PATIENCE, connection).await;
                }
                match ended {
                    Ok(Ok(())) => {}
                    // How a scraper goes away is its own business.
                    Ok(Err(error)) => debug!("a connection broke: {error}"),
                    Err(_) => debug!("a connection was open for too long"),
                }
                drop(place);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);
    const LONG: Duration = Duration::from_secs(600);

    async fn start(when_full: WhenFull, lifetime: Duration) -> (Arc<Door>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Arc::new(Door::new(when_full, lifetime));
        let serving = Arc::clone(&door);
        tokio::spawn(async move {
            let answer =
                |request: Request<Incoming>| async move { page(StatusCode::OK, request.uri().to_string()) };
            serving.serve(&listener, answer).await;
        });
        (door, address)
    }

    /// A connection that has its place: it was answered, and stays open.
    async fn open(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /open HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"/open") {
            assert_ne!(timeout(DEADLINE, stream.read_buf(&mut text)).await.unwrap().unwrap(), 0, "{text:?}");
        }
        stream
    }

    /// All that comes until the other side closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        // Reset, where a request was not read any more.
        timeout(DEADLINE, stream.read_to_end(&mut text)).await.unwrap().ok();
        String::from_utf8(text).unwrap()
    }

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /asked HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok();
        rest(stream).await
    }

    #[tokio::test]
    async fn a_page_is_answered_in_prometheus_text_format() {
        let (door, address) = start(WhenFull::TurnAway, LONG).await;
        let text = ask(address).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n/asked"), "{text}");
        assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
        assert_eq!(door.turned_away(), 0);
    }

    #[tokio::test]
    async fn beyond_the_bound_connections_are_closed_at_once_and_counted() {
        let (door, address) = start(WhenFull::TurnAway, LONG).await;
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            held.push(open(address).await);
        }
        assert_eq!((ask(address).await.as_str(), door.turned_away()), ("", 1));
        held.clear();
        let answered = async {
            while ask(address).await.is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(DEADLINE, answered).await.unwrap();
    }

    #[tokio::test]
    async fn who_may_wait_is_answered_when_another_goes() {
        let (door, address) = start(WhenFull::Wait, LONG).await;
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            held.push(open(address).await);
        }
        let waiting = ask(address);
        tokio::pin!(waiting);
        let early = timeout(Duration::from_millis(200), &mut waiting).await;
        assert!(early.is_err(), "there is no place: {early:?}");
        held.pop();
        assert!(waiting.await.ends_with("/asked"));
        assert_eq!(door.turned_away(), 0);
    }

    #[tokio::test]
    async fn nobody_is_connected_for_longer_than_a_lifetime() {
        let (_door, address) = start(WhenFull::Wait, Duration::from_millis(300)).await;
        let mut stream = open(address).await;
        // It goes on asking, so that it is no head that is late.
        let asking = async {
            let mut ignored = [0; 4096];
            loop {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
                if stream.read(&mut ignored).await? == 0 {
                    return Ok::<_, std::io::Error>(());
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        // Closed, or reset in the middle of a request: either way it ends.
        timeout(DEADLINE, asking).await.unwrap().ok();
    }

    #[tokio::test]
    async fn what_is_being_answered_at_the_end_of_a_lifetime_is_answered_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let door = Door::new(WhenFull::Wait, Duration::from_millis(100));
            let slow = |_| async {
                sleep(Duration::from_millis(400)).await;
                page(StatusCode::OK, "all of it".to_owned())
            };
            door.serve(&listener, slow).await;
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(rest(stream).await.ends_with("all of it"));
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_is_not_waited_for() {
        let (_door, address) = start(WhenFull::Wait, LONG).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        assert!(!rest(stream).await.contains("200 OK"));
    }
}
