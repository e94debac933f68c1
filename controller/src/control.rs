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
//! {"request": "metrics"}                      what `/metrics` shows, as text
//! {"request": "enrich", "packets": […]}       which rule decided on packets, and why ([`fw_droptailer::control`])
//! {"request": "nflog-group"}                  the NFLOG group that the rules in force log to
//! {"request": "follow-early-drops"}           packets that eBPF programs drop, from now on, a line each
//! ```
//!
//! Requests, connections and waiting times are bounded; what passes a bound is refused and counted.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use fw_droptailer::control::{MOST_PACKETS, Question};
use fw_edge::socket::Listening;
use fw_ruleset::Ruleset;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cluster::Api;
use crate::enrich::{self, Enricher};
use crate::explain::explain;
use crate::ids;
use crate::packet_text;
use crate::problems::Problems;
use crate::published::Key;
use crate::reconcile::worker::Job;
use crate::reconcile::{Judged, View};
use crate::status::{self, Identification};
use crate::{metrics, names};

use lines::{Line, Lines, MAX_PACKETS, MAX_REQUEST};

pub mod client;
mod lines;

/// Connections at one time.
const MAX_CONNECTIONS: usize = 32;
/// For a request to arrive, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the kernel to be read before the last known figures are shown.
const COUNTERS: Duration = Duration::from_secs(2);
/// For the table to be removed or made again.
const FLUSH: Duration = Duration::from_secs(60);
/// For the packets of others to be looked at.
const ENRICH: Duration = Duration::from_secs(5);
/// How often a follower is told what it has lost, when nothing else comes.
const LOSSES: Duration = Duration::from_secs(1);
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
    /// The metrics, as text.
    Metrics,
    /// Why packets were dropped or accepted.
    Enrich {
        /// At most [`MOST_PACKETS`].
        packets: Vec<Question>,
    },
    /// The NFLOG group that the rules in force log to.
    NflogGroup,
    /// Packets that eBPF programs drop, from now on: the connection becomes a stream of
    /// [`fw_droptailer::control::Followed`].
    FollowEarlyDrops,
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
    /// What an API server is asked and told, where objects come from one.
    pub api: Option<Api>,
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
    /// Who is told of early drops.
    pub followers: names::Followers,
    /// Answers what droptailer asks.
    pub enricher: Arc<Enricher>,
    /// Held by who computes answers to it: one at a time, off this thread.
    pub enriching: Arc<Semaphore>,
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
    /// Connections there are.
    connections: AtomicU64,
    /// Followers beyond the bound.
    refused_followers: AtomicU64,
}

impl Counters {
    fn value(&self) -> Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "requests": read(&self.requests),
            "badRequests": read(&self.bad_requests),
            "refusedConnections": read(&self.refused_connections),
            "acceptErrors": read(&self.accept_errors),
            "connections": read(&self.connections), "maxConnections": MAX_CONNECTIONS,
            "refusedFollowers": read(&self.refused_followers),
        })
    }
}

/// Serves until the task is dropped.
pub async fn serve(socket: &Listening, server: Arc<Server>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match socket.accept().await {
            Ok(stream) => stream,
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
        server.counters.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            if let Err(error) = server.converse(stream).await {
                debug!("control socket: {error}");
            }
            server.counters.connections.fetch_sub(1, Ordering::Relaxed);
            drop(place);
        });
    }
}

impl Server {
    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.split();
        let mut lines = Lines::new(reader);
        loop {
            let Ok(line) = timeout(PATIENCE, lines.next()).await else {
                self.counters.bad_requests.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            };
            let Some(line) = line? else { return Ok(()) };
            let response = match self.read(&line) {
                Ok(Request::FollowEarlyDrops) => match self.followers.join() {
                    Some(follower) => return self.follow(follower, lines, writer).await,
                    None => {
                        self.counters.refused_followers.fetch_add(1, Ordering::Relaxed);
                        Response::Error("there are too many followers".to_owned())
                    }
                },
                Ok(request) => self.respond(request).await,
                Err(error) => {
                    self.counters.bad_requests.fetch_add(1, Ordering::Relaxed);
                    Response::Error(error)
                }
            };
            write(&mut writer, &response).await?;
            if !line.is_complete {
                return Ok(());
            }
        }
    }

    /// Says what comes until either side ends.
    async fn follow(
        &self,
        mut follower: names::followers::Follower,
        mut lines: Lines<ReadHalf<'_>>,
        mut writer: WriteHalf<'_>,
    ) -> io::Result<()> {
        write(&mut writer, &Response::Result(Value::Null)).await?;
        let mut ended = std::pin::pin!(lines.ended());
        let mut losses = tokio::time::interval(LOSSES);
        loop {
            let next = tokio::select! {
                next = follower.next() => match next {
                    Some(next) => Some(next),
                    None => return Ok(()),
                },
                _ = losses.tick() => follower.take_lost(),
                () = &mut ended => return Ok(()),
            };
            if let Some(next) = next {
                write(&mut writer, &next).await?;
            }
        }
    }

    /// Only a request with packets may be longer than the others.
    fn read(&self, line: &Line) -> Result<Request, String> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        if line.is_too_long() {
            return Err(format!("a request has at most {MAX_REQUEST} bytes, one with packets {MAX_PACKETS}"));
        }
        let request = serde_json::from_slice(&line.bytes);
        if line.is_long() && !matches!(request, Ok(Request::Enrich { .. })) {
            return Err(format!("a request has at most {MAX_REQUEST} bytes, one with packets {MAX_PACKETS}"));
        }
        match request {
            Ok(Request::Enrich { packets }) if packets.len() > MOST_PACKETS => {
                Err(format!("a request has at most {MOST_PACKETS} packets"))
            }
            request => request.map_err(|error| format!("the request was not understood: {error}")),
        }
    }

    async fn respond(&self, request: Request) -> Response {
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
            Request::Metrics => self.metrics().await.map(Value::String),
            Request::Enrich { packets } => self.enrich(packets).await,
            Request::NflogGroup => self.enforced().map(|judged| json!(judged.set.firewall.drop_log.group)),
            // It takes the whole connection, which is not here.
            Request::FollowEarlyDrops => Err("it cannot be followed here".to_owned()),
        };
        result.map_or_else(Response::Error, Response::Result)
    }

    fn latest(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    fn enforced(&self) -> Result<Arc<Judged>, String> {
        self.latest().enforced.clone().ok_or_else(|| "what is in force was not compiled here yet".to_owned())
    }

    /// With counters of this moment; with the last known ones when the kernel is busy.
    pub(crate) async fn status(&self) -> Value {
        if let Err(error) = self.ask(COUNTERS, Job::Counters).await {
            debug!("status with older counters: {error}");
        }
        let mut view = View::clone(&self.latest());
        view.problems.extend(self.problems.lines());
        let names = self.names.show(names::Question::Summary).await.unwrap_or(Value::Null);
        let (of, socket) = (&self.identification, self.counters.value());
        let mut status = status::status(&view, of, names, socket, SystemTime::now());
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

    /// What `/metrics` shows.
    pub(crate) async fn metrics(&self) -> Result<String, String> {
        let status = self.status().await;
        let figures = metrics::Figures {
            status: &status,
            view: &self.latest(),
            problems: &self.problems,
            enricher: &self.enricher.figures(),
            api: self.api.as_ref(),
        };
        metrics::text(&figures).map_err(|error| error.to_string())
    }

    /// Computed on another thread, one request at a time: everything else on this one goes on meanwhile.
    async fn enrich(&self, packets: Vec<Question>) -> Result<Value, String> {
        let judged = self.enforced()?;
        let told = self.names.tell(packets.iter().map(enrich::asked).collect()).await;
        let busy = || "too many packets are asked about".to_owned();
        let place = timeout(ENRICH, Arc::clone(&self.enriching).acquire_owned()).await;
        let place = place.ok().and_then(Result::ok).ok_or_else(busy)?;
        let enricher = Arc::clone(&self.enricher);
        let work = tokio::task::spawn_blocking(move || {
            let answers = enricher.answer(&judged, &packets, &told);
            drop(place);
            answers
        });
        match timeout(ENRICH, work).await {
            Ok(Ok(answers)) => to_value(&answers),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(busy()),
        }
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

async fn write<T: Serialize>(writer: &mut WriteHalf<'_>, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    timeout(PATIENCE, writer.write_all(&line)).await?
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
