//! Requests to the API server as its administrator, without the tenth of a second that kubectl takes to start.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsConnector;

use super::tls;

/// How long a request may take; a list of thousands of objects on a busy machine is the longest.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer of the API server.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub code: u16,
    /// The body, as JSON; a string if it is none.
    pub body: Value,
}

impl Reply {
    /// The body, or an error with the code and the message of the API server.
    pub fn ok(self) -> Result<Value> {
        if !(200..300).contains(&self.code) {
            let message = self.body.get("message").and_then(Value::as_str).map(str::to_owned);
            bail!("{}: {}", self.code, message.unwrap_or_else(|| self.body.to_string()));
        }
        Ok(self.body)
    }
}

/// One connection, on a thread of its own (so that it also serves callers that are inside of a runtime).
#[derive(Debug)]
pub(super) struct Api {
    jobs: UnboundedSender<Job>,
}

#[derive(Debug)]
struct Job {
    request: Request<Full<Bytes>>,
    answer: mpsc::Sender<Result<Reply>>,
}

impl Api {
    pub(super) fn new(directory: &Path, port: u16) -> Result<Self> {
        let server = Server { connector: tls::connector(directory, true)?, port };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (jobs, waiting) = unbounded_channel();
        std::thread::Builder::new()
            .name("testkit-api".to_owned())
            .spawn(move || runtime.block_on(work(&server, waiting)))?;
        Ok(Self { jobs })
    }

    pub(super) fn request(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<Reply> {
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header(HOST, tls::SERVER_NAME)
            .header(CONTENT_TYPE, kind)
            .body(Full::new(Bytes::from(body)))?;
        let (answer, answered) = mpsc::channel();
        self.jobs
            .send(Job { request, answer })
            .map_err(|_| anyhow!("the client of the API server is gone"))?;
        answered.recv()?.with_context(|| format!("{method} {path}"))
    }
}

struct Server {
    connector: TlsConnector,
    port: u16,
}

async fn work(server: &Server, mut waiting: UnboundedReceiver<Job>) {
    let mut connection: Option<SendRequest<Full<Bytes>>> = None;
    while let Some(job) = waiting.recv().await {
        let done = tokio::time::timeout(PATIENCE, send(server, &mut connection, job.request)).await;
        let done = done.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
        if done.is_err() {
            connection = None;
        }
        // Whoever asked may have given up.
        let _ = job.answer.send(done);
    }
}

async fn send(
    server: &Server,
    connection: &mut Option<SendRequest<Full<Bytes>>>,
    request: Request<Full<Bytes>>,
) -> Result<Reply> {
    // A connection that the server has closed in the meantime says so here, or never is ready again.
    let alive = match connection {
        Some(sender) => sender.ready().await.is_ok(),
        None => false,
    };
    if !alive {
        *connection = Some(connect(server).await?);
    }
    let Some(sender) = connection else { bail!("no connection") };
    let response = sender.send_request(request).await?;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    let body = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    Ok(Reply { code, body })
}

async fn connect(server: &Server) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(("127.0.0.1", server.port)).await?;
    stream.set_nodelay(true)?;
    let stream = server.connector.connect(tls::server_name()?, stream).await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Its end is seen by the sender.
    tokio::spawn(connection);
    Ok(sender)
}
