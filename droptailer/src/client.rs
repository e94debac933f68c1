//! `droptailer client`: drops from the kernel to the server, and to whoever looks on the box itself.
//!
//! ```text
//! NFLOG ──reader──▶ queue ──worker: record, enrich, aggregate──▶ spool ──sender──▶ server
//! eBPF ──follower──▶                                        └──▶ socket: tail, metrics
//! ```
//!
//! Nothing in front of the queue waits for anything behind it: the firewall is never slower because of logging. What
//! finds no room on the way is counted and said in-band ([`crate::loss`]).

mod aggregate;
mod counters;
mod early;
mod enrich;
mod figures;
mod group;
mod http;
mod past;
pub(crate) mod raw;
mod reader;
mod sender;
mod settle;
mod socket;
pub(crate) mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;
use tracing::{info, warn};

use crate::journal::{self, Journal};
use crate::loss::{Cause, Ledger};
use crate::spool::{Limits, Recovered, SESSION_BYTES, Spool};
use crate::tls::Files;
use enrich::Enricher;
use figures::{Figures, add};
use group::{Asker, Group};
use raw::Prefixes;
use sender::{Backoff, Sender};
use worker::{Item, Shared, Worker};

/// Where the client is asked and followed.
pub const DEFAULT_SOCKET: &str = "/run/droptailer/droptailer.sock";
/// Where the controller is asked.
const CONTROL_SOCKET: &str = "/run/firewall-controller/control.sock";

/// Packets between reader and worker: with 256 bytes of each, some ten MiB at most.
const QUEUE: usize = 32_768;
/// Records that a subscriber can be behind.
const SUBSCRIBER: usize = 4096;
const MIB: u64 = 1 << 20;
/// For the sender to end.
const LAST: Duration = Duration::from_secs(4);

/// What a client does.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Server that records go to; the name is looked up again for each connection
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "DROPTAILER_SERVER_ADDRESS",
        default_value = "droptailer:50051"
    )]
    pub server_address: String,
    /// Who may sign the server's certificate
    #[arg(
        long,
        value_name = "FILE",
        env = "DROPTAILER_CA_CERTIFICATE",
        default_value = "/etc/droptailer-client/ca.crt"
    )]
    pub ca_certificate: PathBuf,
    /// The certificate that the client shows
    #[arg(
        long,
        value_name = "FILE",
        env = "DROPTAILER_CLIENT_CERTIFICATE",
        default_value = "/etc/droptailer-client/tls.crt"
    )]
    pub client_certificate: PathBuf,
    /// Its key
    #[arg(
        long,
        value_name = "FILE",
        env = "DROPTAILER_CLIENT_KEY",
        default_value = "/etc/droptailer-client/tls.key"
    )]
    pub client_key: PathBuf,
    /// Log prefixes that mean a drop, separated by commas [default: those that end in "dropped:"]
    #[arg(long, value_name = "PREFIXES", env = "DROPTAILER_PREFIXES_OF_DROPS")]
    pub prefixes_of_drops: Option<String>,
    /// Log prefixes that mean an accept, separated by commas [default: those that end in "accepted:"]
    #[arg(long, value_name = "PREFIXES", env = "DROPTAILER_PREFIXES_OF_ACCEPTS")]
    pub prefixes_of_accepts: Option<String>,
    /// NFLOG group that the rules log to [default: nflogGroup of the Firewall, as the controller says; 1 until it does]
    #[arg(long, value_name = "GROUP")]
    pub nflog_group: Option<u16>,
    /// Read the kernel's log lines from the journal in place of NFLOG (dropLog.to: kernel)
    #[arg(long, conflicts_with = "journal_out")]
    pub journal: bool,
    /// Directory of the journal to read, if it is not the system's
    #[arg(long, value_name = "DIR", requires = "journal")]
    pub journal_directory: Option<PathBuf>,
    /// Also write the kernel's line of each packet to the journal
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = journal::SOCKET)]
    pub journal_out: Option<PathBuf>,
    /// Where the controller is asked about packets
    #[arg(long, value_name = "SOCKET", default_value = CONTROL_SOCKET)]
    pub control_socket: PathBuf,
    /// Records a second that the controller is asked about, at most
    #[arg(long, value_name = "RATE", default_value_t = 1000)]
    pub enrich_rate: u32,
    /// Where this client can be asked and followed
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Where Prometheus can ask
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_addr: Option<SocketAddr>,
    /// MiB of memory for records that wait for the server
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub spool_memory: u16,
    /// Directory that keeps these records over a restart [default: memory only]
    #[arg(long, value_name = "DIR")]
    pub spool_directory: Option<PathBuf>,
    /// MiB on disk for them
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub spool_disk: u32,
}

/// Runs until SIGTERM or SIGINT; what waits then is sent for two seconds, and kept where there is a directory.
pub fn run(options: Options) -> anyhow::Result<()> {
    let figures = Arc::new(Figures::default());
    let ledger = Arc::new(Ledger::default());
    let boot = boot_id();
    let (spool, recovered) = open_spool(&options, &boot)?;
    ledger.lose(Cause::Spool, recovered.lost_weight);
    let shared = Arc::new(Shared::new(spool));
    let (subscribers, _) = broadcast::channel(SUBSCRIBER);
    let (queue, waiting) = sync_channel(QUEUE);
    // Readers end first, then the worker, then the sender: each one's queue is empty before the next is told.
    let [readers_stop, worker_stop, sender_stop] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));

    let enricher = Enricher::new(
        options.control_socket.clone(),
        options.enrich_rate,
        Arc::clone(&figures),
        Instant::now(),
    );
    let journal = options.journal_out.clone().map(Journal::new).transpose();
    let worker = Worker {
        queue: waiting,
        shared: Arc::clone(&shared),
        subscribers: subscribers.clone(),
        enricher,
        journal: journal.context("cannot write to the journal")?,
        figures: Arc::clone(&figures),
        ledger: Arc::clone(&ledger),
        stop: Arc::clone(&worker_stop),
    };
    let past = past::Past::new(Arc::clone(&shared), boot, recovered.lost_weight);
    let reader = start_reader(&options, queue.clone(), &figures, &ledger, &readers_stop, past)?;
    let follower = early::Follower {
        path: options.control_socket.clone(),
        queue,
        figures: Arc::clone(&figures),
        ledger: Arc::clone(&ledger),
        stop: Arc::clone(&readers_stop),
    };
    // Never waited for: it may be asleep.
    thread("early", || follower.run())?;
    let worker = thread("worker", || worker.run())?;

    let server = Arc::new(socket::Server {
        subscribers,
        shared: Arc::clone(&shared),
        figures: Arc::clone(&figures),
        ledger: Arc::clone(&ledger),
    });
    let sender = Sender {
        address: options.server_address.clone(),
        files: Files {
            authority: options.ca_certificate.clone(),
            certificate: options.client_certificate.clone(),
            key: options.client_key.clone(),
        },
        shared: Arc::clone(&shared),
        figures,
        ledger: Arc::clone(&ledger),
        stop: Arc::clone(&sender_stop),
        backoff: Backoff::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(Arc::clone(&server).serve(options.socket.clone()));
        if let Some(address) = options.metrics_addr {
            tokio::spawn(http::serve(address, server));
        }
        let sender = tokio::spawn(sender.run());
        until_told_to_end().await?;
        info!("stopping");
        let ended = tokio::task::spawn_blocking(move || {
            readers_stop.store(true, Ordering::Release);
            join(reader);
            worker_stop.store(true, Ordering::Release);
            join(worker);
        });
        ended.await?;
        sender_stop.store(true, Ordering::Release);
        shared.filled.notify_one();
        // It may be in the middle of connecting.
        if tokio::time::timeout(LAST, sender).await.is_err() {
            warn!("the server does not answer");
        }
        anyhow::Ok(())
    })?;
    runtime.shutdown_background();
    std::fs::remove_file(&options.socket).ok();
    say_what_is_left(&shared, &ledger, options.spool_directory.is_some());
    Ok(())
}

fn open_spool(options: &Options, boot: &str) -> anyhow::Result<(Spool, Recovered)> {
    let mut session = [0; SESSION_BYTES];
    getrandom::fill(&mut session).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let limits = Limits {
        memory: usize::try_from(u64::from(options.spool_memory) * MIB)?,
        disk: u64::from(options.spool_disk) * MIB,
    };
    let Some(directory) = &options.spool_directory else {
        return Ok((Spool::in_memory(limits, session), Recovered::default()));
    };
    let (mut spool, recovered) = Spool::on_disk(limits, session, directory)
        .with_context(|| format!("cannot keep records in {}", directory.display()))?;
    if past::is_another_boot(spool.remembered().as_deref(), boot) {
        spool.rename(session);
    }
    if recovered.records > 0 {
        info!("{} records wait from before", recovered.records);
    }
    if recovered.lost_records > 0 {
        warn!("{} records could not be read from disk any more", recovered.lost_records);
    }
    Ok((spool, recovered))
}

fn start_reader(
    options: &Options,
    queue: SyncSender<Item>,
    figures: &Arc<Figures>,
    ledger: &Arc<Ledger>,
    stop: &Arc<AtomicBool>,
    past: past::Past,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let prefixes =
        Prefixes::new(options.prefixes_of_drops.as_deref(), options.prefixes_of_accepts.as_deref());
    if options.journal {
        let figures = Arc::clone(figures);
        let source = journal::Source {
            cursor_file: options.spool_directory.as_ref().map(|directory| directory.join("cursor")),
            directory: options.journal_directory.clone(),
            prefixes,
            queue,
            queued: Box::new(move || {
                add(&figures.logged, 1);
                add(&figures.queue, 1);
            }),
            stop: Arc::clone(stop),
        };
        return thread("journal", || source.run());
    }
    let group = match options.nflog_group {
        Some(group) => Group::fixed(group),
        None => {
            let directory = options.spool_directory.as_deref();
            let asker = Asker::new(options.control_socket.clone(), directory, Arc::clone(stop));
            let group = asker.group.clone();
            // Never waited for: it may be asleep.
            thread("group", || asker.run())?;
            group
        }
    };
    let listener = reader::Listener {
        group,
        prefixes,
        queue,
        figures: Arc::clone(figures),
        ledger: Arc::clone(ledger),
        stop: Arc::clone(stop),
        beginning: Box::new(past),
    };
    thread("nflog", || listener.run())
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).with_context(|| format!("cannot start the thread {name}"))
}

fn join(thread: std::thread::JoinHandle<()>) {
    if thread.join().is_err() {
        warn!("a thread has panicked");
    }
}

async fn until_told_to_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn say_what_is_left(shared: &Shared, ledger: &Ledger, is_kept: bool) {
    let mut spool = shared.lock();
    spool.sync();
    let waiting = spool.waiting();
    match (waiting, is_kept) {
        (0, _) => {}
        (_, true) => info!("{waiting} records wait on disk"),
        (_, false) => warn!("{waiting} records are lost: they waited in memory for a server that is away"),
    }
    if ledger.is_pending() {
        warn!("losses are not said: there was no room in the spool");
    }
}

fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
