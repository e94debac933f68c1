//! The control socket: what can be asked of a running controller.
//!
//! A unix socket (mode 0660). Each line is a request, each answer one line: `{"result": …}` or `{"error": "…"}`.
//!
//! ```text
//! {"request": "status"}                       the status, in the shape of the Firewall object
//! {"request": "findings"}                     what is wrong, a list of lines
//! {"request": "explain", "packet": "tcp 10.0.1.5:40000 -> 1.2.3.4:443 in vrf104009 out vlan179"}
//! {"request": "dns", "name": "www.example.com"}  what was learned from DNS answers
//! {"request": "legend"}                       rules and the objects they come from
//! {"request": "flush"}                        remove the table, stay up
//! {"request": "undo-flush"}                   enforce again
//! ```
//!
//! Requests, connections and waiting times are bounded; what passes a bound is refused and counted.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use fw_ruleset::Ruleset;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::explain::explain;
use crate::ids;
use crate::names;
use crate::packet_text;
use crate::problems::Problems;
use crate::published::Key;
use crate::reconcile::View;
use crate::reconcile::worker::Job;
use crate::status::{self, Identification};

pub mod client;

/// Longest request, in bytes.
const MAX_REQUEST: u64 = 4096;
/// Connections at one time.
const MAX_CONNECTIONS: usize = 32;
/// For a request to arrive, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the kernel to be read before the last known figures are shown.
const COUNTERS: Duration = Duration::from_secs(2);
/// For the table to be removed or made again.
const FLUSH: Duration = Duration::from_secs(60);
/// Pause after an accept that failed, for want of descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// The status.
    Status,
    /// What is wrong.
    Findings,
    /// What would happen to a packet.
    Explain {
        /// As [`packet_text::parse`] takes it.
        packet: String,
    },
    /// What was learned from DNS answers, and the figures of the proxy.
    Dns {
        /// Names that contain this; all of them when missing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Rules and the objects they come from.
    Legend,
    /// Remove the table.
    Flush,
    /// Enforce again.
    UndoFlush,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// What was asked for.
    Result(Value),
    /// Why not.
    Error(String),
}

/// One line of the legend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegendEntry {
    /// The chain.
    pub chain: String,
    /// Comments of its rules, the keys of their counters.
    pub comments: Vec<String>,
    /// The object, and the field where it is known.
    pub origin: String,
}

/// Which object each chain belongs to.
pub fn legend(ruleset: &Ruleset) -> Vec<LegendEntry> {
    let entry = |(name, chain): (&String, &fw_ruleset::ir::Chain)| {
        let mut comments: Vec<String> = chain.rules.iter().filter_map(|rule| rule.comment.clone()).collect();
        comments.dedup();
        Some(LegendEntry { chain: name.clone(), comments, origin: chain.origin.as_ref()?.to_string() })
    };
    ruleset.chains.iter().filter_map(entry).collect()
}

/// Answers requests.
pub struct Server {
    /// The latest state.
    pub view: watch::Receiver<Arc<View>>,
    /// The reconciler.
    pub jobs: Sender<Job>,
    /// The thread of names.
    pub names: names::Handle,
    /// Intrusion detection.
    pub ids: ids::Handle,
    /// Who we are.
    pub identification: Identification,
    /// Problems of other parts than the reconciler.
    pub problems: Problems,
    /// Figures.
    pub counters: Counters,
}

/// What the socket counts.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    /// Requests that were not understood, too long or too slow.
    bad_requests: AtomicU64,
    /// Connections beyond the bound.
    refused_connections: AtomicU64,
    /// Connections that could not be accepted.
    accept_errors: AtomicU64,
}

impl Counters {
    fn value(&self) -> Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "requests": read(&self.requests),
            "badRequests": read(&self.bad_requests),
            "refusedConnections": read(&self.refused_connections),
            "acceptErrors": read(&self.accept_errors),
        })
    }
}

/// A bound socket; the file goes when this does.
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listening {
    /// Binds the socket in place of one that nobody answers on. It is bound beside and renamed, so that it never has
    /// wider permissions than it should.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another controller answers on it"));
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        std::fs::remove_file(&beside).ok();
        let listener = UnixListener::bind(&beside)?;
        let placed = std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o660))
            .and_then(|()| std::fs::rename(&beside, path));
        if let Err(error) = placed {
            std::fs::remove_file(&beside).ok();
            return Err(error);
        }
        Ok(Self { listener, path: path.to_owned(), inode: std::fs::symlink_metadata(path)?.ino() })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Another controller may have put its own there meanwhile.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

/// Serves until the task is dropped.
pub async fn serve(socket: &Listening, server: Arc<Server>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match socket.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                server.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                warn!("control socket: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            server.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            if let Err(error) = server.converse(stream).await {
                debug!("control socket: {error}");
            }
            drop(place);
        });
    }
}

impl Server {
    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.split();
        let mut reader = BufReader::new(reader.take(MAX_REQUEST));
        loop {
            let mut line = Vec::new();
            let read = timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await;
            let Ok(read) = read else {
                self.counters.bad_requests.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            };
            if read? == 0 {
                return Ok(());
            }
            let complete = line.ends_with(b"\n");
            let response = if complete || reader.get_ref().limit() > 0 {
                self.respond(&line).await
            } else {
                self.bad_request(format!("a request has at most {MAX_REQUEST} bytes"))
            };
            let mut answer = serde_json::to_vec(&response)?;
            answer.push(b'\n');
            timeout(PATIENCE, writer.write_all(&answer)).await??;
            if !complete {
                return Ok(());
            }
            reader.get_mut().set_limit(MAX_REQUEST);
        }
    }

    fn bad_request(&self, error: String) -> Response {
        self.counters.bad_requests.fetch_add(1, Ordering::Relaxed);
        Response::Error(error)
    }

    async fn respond(&self, line: &[u8]) -> Response {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(error) => return self.bad_request(format!("the request was not understood: {error}")),
        };
        let result = match request {
            Request::Status => Ok(self.status().await),
            Request::Findings => {
                let view = self.latest();
                Ok(view.findings.iter().map(ToString::to_string).collect())
            }
            Request::Explain { packet } => self.explain(&packet).await,
            Request::Dns { name } => self.dns(name).await,
            Request::Legend => {
                let view = self.latest();
                to_value(&view.enforced.as_ref().map(|judged| legend(&judged.ruleset)).unwrap_or_default())
            }
            Request::Flush => self.flush().await,
            Request::UndoFlush => self.ask(FLUSH, Job::UndoFlush).await.map(|()| Value::Null),
        };
        result.map_or_else(Response::Error, Response::Result)
    }

    fn latest(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// With counters of this moment; with the last known ones when the kernel is busy.
    pub(crate) async fn status(&self) -> Value {
        if let Err(error) = self.ask(COUNTERS, Job::Counters).await {
            debug!("status with older counters: {error}");
        }
        let mut view = View::clone(&self.latest());
        view.problems.extend(self.problems.lines());
        let names = self.names.show(names::Question::Summary).await.unwrap_or(Value::Null);
        let mut status =
            status::status(&view, &self.identification, self.counters.value(), SystemTime::now());
        status::add_names(&mut status, names);
        self.ids.add_to_status(&mut status);
        serde_json::to_value(status).unwrap_or(Value::Null)
    }

    async fn dns(&self, name: Option<String>) -> Result<Value, String> {
        let slow = || "the thread of names does not answer".to_owned();
        let summary = self.names.show(names::Question::Summary).await.ok_or_else(slow)?;
        let mut listed = self.names.show(names::Question::Names(name)).await.ok_or_else(slow)?;
        self.ask(COUNTERS, Job::Counters).await.ok();
        add_hits(&mut listed, &self.latest());
        Ok(json!({"figures": summary, "learned": listed}))
    }

    async fn explain(&self, packet: &str) -> Result<Value, String> {
        let packet = packet_text::parse(packet).map_err(|error| error.to_string())?;
        let view = self.latest();
        let Some(judged) = view.enforced.as_ref().or(view.wanted.as_ref()) else {
            return Err("no objects have been read yet".to_owned());
        };
        let known = self.names.known(&packet).await;
        let mut answer = explain(&judged.set, &judged.ruleset, &packet, &known);
        if view.enforced.is_none() {
            answer.reason.push_str("; these rules are not in force: ");
            answer.reason.push_str(&status::headline(&view));
        }
        to_value(&answer)
    }

    async fn flush(&self) -> Result<Value, String> {
        self.ask(FLUSH, Job::Flush).await?.map(|()| Value::Null)
    }

    async fn ask<T>(
        &self,
        patience: Duration,
        job: impl FnOnce(oneshot::Sender<T>) -> Job,
    ) -> Result<T, String> {
        let (done, answer) = oneshot::channel();
        let gone = || "the reconciler has stopped".to_owned();
        self.jobs.send(job(done)).map_err(|_| gone())?;
        match timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|_| gone()),
            Err(_) => Err(format!("the kernel was busy for more than {} s", patience.as_secs())),
        }
    }
}

/// Adds to each name how many connections its entries have let through: counters stand with policy and selector, so
/// that names of one pattern share theirs.
fn add_hits(listed: &mut Value, view: &View) {
    let Some(judged) = view.enforced.as_ref() else { return };
    let mut hits: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in judged.names.indexes.keys() {
        let comment = fw_policy::comment::name(&entry.policy, &entry.selector, entry.protocol);
        let key = Key::Rule { chain: fw_ruleset::name_chain(entry), comment };
        let packets = view.published.get(&key).unwrap_or_default().packets;
        let sum = hits.entry(entry.selector.text()).or_default();
        *sum = sum.saturating_add(packets);
    }
    for name in listed["names"].as_array_mut().into_iter().flatten() {
        let selectors = name["selectors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let total: u64 = selectors.filter_map(|selector| hits.get(selector)).sum();
        name["hits"] = json!(total);
    }
}

fn to_value<T: Serialize>(value: &T) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

/// What the kernel can do, for the status.
pub fn kernel_lines(features: &fw_nft::Features) -> BTreeMap<String, String> {
    let line = |feature: fw_nft::Feature| {
        let text = if feature.available {
            "yes".to_owned()
        } else {
            format!("no (since {}): {}", feature.since, feature.otherwise)
        };
        (feature.name.to_owned(), text)
    };
    features.table().into_iter().map(line).collect()
}

#[cfg(test)]
mod tests;
