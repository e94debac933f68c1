//! A real server process, and clients on real sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use fw_droptailer::tls::Files;
use fw_droptailer::wire::{Drop as Record, DroptailerClient};
use fw_testkit::WorkDir;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Rules of a lab whose firewall drops and logs all.
pub(crate) const RULES: &str = "table inet firewall {
counter drop_logged { }
chain forward {
type filter hook forward priority 0; policy drop;
counter name drop_logged log prefix \"nftables-firewall-dropped: \" group 1 snaplen 128 drop
}
}
";

/// Runs the program and gives what it says.
pub(crate) fn droptailer(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_droptailer")).args(arguments).output().unwrap()
}

/// Makes an authority and pairs by the program.
pub(crate) fn certificates(directory: &Path) {
    let output = droptailer(&["certs", "--directory", directory.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[derive(Default)]
struct Text {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Text {
    fn until<T>(&self, what: &str, found: impl Fn(&[String]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(found) = found(&lines) {
                return found;
            }
            assert!(Instant::now() < deadline, "no {what} in {} lines: {:?}", lines.len(), lines.last());
            lines = self.more.wait_timeout(lines, Duration::from_secs(1)).unwrap().0;
        }
    }
}

/// Holds a reader up.
#[derive(Default)]
pub(crate) struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn shut(&self) {
        *self.shut.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        drop(self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

/// Reads lines to their end; not while the gate is shut.
fn follow(source: impl Read + Send + 'static, gate: Arc<Gate>) -> Arc<Text> {
    let text = Arc::new(Text::default());
    let writer = Arc::clone(&text);
    thread::spawn(move || {
        for line in BufReader::new(source).lines() {
            gate.pass();
            let Ok(line) = line else { return };
            writer.lines.lock().unwrap().push(line);
            writer.more.notify_all();
        }
    });
    text
}

/// The server, on ports of its own; it ends with this.
pub(crate) struct Server {
    child: Child,
    /// Where its certificates are, as `droptailer certs` makes them.
    pub(crate) directory: Arc<WorkDir>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    metrics: SocketAddr,
    output: Arc<Text>,
    /// While it is shut nobody reads what the server prints.
    pub(crate) gate: Arc<Gate>,
}

impl Server {
    pub(crate) fn start(name: &str, arguments: &[&str]) -> Self {
        let directory = Arc::new(WorkDir::new(name).unwrap());
        certificates(directory.path());
        Self::start_in(directory, 0, arguments)
    }

    /// Another one after it, at the same address.
    pub(crate) fn start_again(self, arguments: &[&str]) -> Self {
        let (directory, port) = (Arc::clone(&self.directory), self.address.port());
        drop(self);
        Self::start_in(directory, port, arguments)
    }

    fn start_in(directory: Arc<WorkDir>, port: u16, arguments: &[&str]) -> Self {
        let files = Files::of(&directory.path().join("server"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_droptailer"))
            .args(["server", "--log-level", "debug", "--metrics-addr", "127.0.0.1:0", "--patience", "3"])
            .args(arguments)
            .env("SERVER_PORT", port.to_string())
            .env("SERVER_CERTIFICATE", files.certificate)
            .env("SERVER_KEY", files.key)
            .env("SERVER_CA_CERTIFICATE", files.authority)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let gate = Arc::<Gate>::default();
        let output = follow(child.stdout.take().unwrap(), Arc::clone(&gate));
        let log = follow(child.stderr.take().unwrap(), Arc::default());
        let port = |what: &str| {
            log.until(what, |lines| {
                let line = lines.iter().find(|line| line.contains(what))?;
                line.rsplit(':').next()?.trim().parse::<u16>().ok()
            })
        };
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (address, metrics) = (at(port("listening on ")), at(port("metrics on ")));
        Self { child, directory, address, metrics, output, gate }
    }

    /// Waits for so many lines, and gives all of them.
    pub(crate) fn lines(&self, enough: usize) -> Vec<String> {
        self.output.until(&format!("{enough} lines"), |lines| (lines.len() >= enough).then(|| lines.to_vec()))
    }

    /// A page of its HTTP server: status line, headers and text.
    pub(crate) fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// A sample of its metrics, such as `droptailer_server_refused_records_total{reason="size"}`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.page("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until a sample has at least this value.
    pub(crate) fn metric_reaches(&self, name: &str, value: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(name) < value {
            assert!(Instant::now() < deadline, "{name} stays below {value}: {}", self.page("/metrics"));
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn client_files(&self) -> Files {
        Files::of(&self.directory.path().join("client"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A connection of gRPC with the client's certificate.
    pub(crate) async fn client(&self) -> DroptailerClient<Channel> {
        self.client_with(self.client_files().client().unwrap()).await.unwrap()
    }

    pub(crate) async fn client_with(
        &self,
        tls: ClientConfig,
    ) -> Result<DroptailerClient<Channel>, tonic::transport::Error> {
        let connector = Connector { tls: Arc::new(tls), address: self.address };
        // The connector does TLS; tonic is told of none.
        let endpoint = Endpoint::from_static("http://droptailer");
        Ok(DroptailerClient::new(endpoint.connect_with_connector(connector).await?))
    }

    /// TLS and nothing in it.
    pub(crate) async fn tls(&self) -> TlsStream<tokio::net::TcpStream> {
        connect(Arc::new(self.client_files().client().unwrap()), self.address).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) async fn connect(
    tls: Arc<ClientConfig>,
    address: SocketAddr,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    // Else the end of every request waits for the acknowledgement of its beginning: 40 ms.
    stream.set_nodelay(true)?;
    TlsConnector::from(tls).connect(ServerName::try_from("droptailer").unwrap(), stream).await
}

struct Connector {
    tls: Arc<ClientConfig>,
    address: SocketAddr,
}

impl tonic::codegen::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<tokio::net::TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connection = connect(Arc::clone(&self.tls), self.address);
        Box::pin(async { connection.await.map(TokioIo::new) })
    }
}

/// A record as a firewall sends it; `number` is in it.
pub(crate) fn record(number: u64) -> Record {
    let fields = [("ACTION", "drop"), ("DPT", "4000"), ("DST", "1.2.3.4"), ("SYN", "")];
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    let timestamp = prost_types::Timestamp { seconds: 1_592_400_207, nanos: 5_000 };
    Record {
        timestamp: Some(timestamp),
        fields: fields.chain([("ID".to_owned(), number.to_string())]).collect(),
    }
}

/// The line of [`record`].
pub(crate) fn line(number: u64) -> String {
    let time = "2020-06-17 13:23:27 +0000 UTC";
    format!(
        r#"{time} {{"ACTION":"drop","DPT":"4000","DST":"1.2.3.4","ID":"{number}","SYN":"","timestamp":"{time}"}}"#
    )
}
