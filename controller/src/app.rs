//! `run`: the data path, in reading order.
//!
//! ```text
//! manifests ─source─▶ Snapshot ─intake─▶ PolicySet ─compile─▶ Ruleset ─plan─▶ Plan ─kernel─▶ View ─▶ status, explain
//!                                 └─────────────── reconcile (its own thread) ───────────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context;
use fw_edge::socket::Listening;
use fw_kube::{Credentials, Report};
use fw_netlink::socket::SocketError;
use fw_nft::{Drift, Monitor, NetlinkKernel, Step};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::{interval, sleep, timeout};
use tracing::{info, warn};

use crate::cluster::Handle;
use crate::config::RunArgs;
use crate::control::{self, Counters, Server};
use crate::host::ThisMachine;
use crate::notify::{ServiceManager, Told};
use crate::persist::{self, AddressRecord};
use crate::problems::Problems;
use crate::reconcile::worker::{self, Job, Outputs};
use crate::reconcile::{Reconciler, View};
use crate::source::cluster::ApiServer;
use crate::source::manifests::ManifestDirectory;
use crate::source::{Groups, Source, files};
use crate::state::Identity;
use crate::status::Identification;
use crate::telemetry::chain;
use crate::{addresses, cluster, droptailer, fault, ids, metrics, names, report};

/// How long the reconciler may take to put its pen down.
const STOP: Duration = Duration::from_secs(10);
/// Between two attempts to bind the control socket or to listen for changes of others.
const PAUSE: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT; the rules stay.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    say_what_is_ignored(&args);
    fault::check().map_err(anyhow::Error::msg)?;
    if let Some(manifests) = &args.manifests {
        anyhow::ensure!(
            !files::covers(manifests, &args.state_dir),
            "the state directory {} lies in the manifest directory {}, where its files would be read as \
             manifests; give another --state-dir",
            args.state_dir.display(),
            manifests.display()
        );
    }
    let state = persist::open(&args.state_dir)?;
    let identity = Identity::of_this_process().inspect_err(|error| warn!("no boot id: {error}")).ok();
    let remembered =
        state.as_ref().map(|state| persist::recall(state, identity.as_ref())).unwrap_or_default();
    let kept = remembered.snapshot.as_ref().map(persist::groups).unwrap_or_default();
    let record = AddressRecord { state: state.as_ref().ok().cloned(), identity: identity.clone() };
    let (memory, persister) = persist::start(state, identity);

    // The rules come first; nothing below may delay them.
    let kernel = open_kernel().context("the firewall cannot work here")?;
    let (port, features) = (kernel.port(), control::kernel_lines(kernel.features()));
    let host = Box::new(ThisMachine::new(args.firewall_name.clone()));
    let problems = Problems::default();
    let options = names::Options {
        bpf_dir: args.bpf_dir.clone(),
        state_dir: record.state.is_some().then(|| args.state_dir.clone()),
    };
    let followers = names::Followers::default();
    let is_first_start = names::is_first_start(&options);
    let (names, path) = names::start(options, problems.clone(), followers.clone());
    let reconciler =
        Reconciler::start(Box::new(kernel), host, Box::new(memory), path, remembered, Instant::now());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let parts =
        Parts { reconciler, names, followers, is_first_start, problems, port, features, kept, record };
    let result = runtime.block_on(serve(&args, parts));
    runtime.shutdown_background();
    persister.stop();
    result
}

/// What was made before the runtime.
struct Parts {
    reconciler: Reconciler,
    names: names::Handle,
    followers: names::Followers,
    is_first_start: bool,
    problems: Problems,
    port: u32,
    features: BTreeMap<String, String>,
    kept: Groups,
    record: AddressRecord,
}

async fn serve(args: &RunArgs, parts: Parts) -> anyhow::Result<()> {
    let Parts {
        reconciler,
        names,
        followers,
        is_first_start,
        problems,
        port,
        features: kernel,
        kept,
        record,
    } = parts;
    let (view, mut views) = watch::channel(Arc::new(View::default()));
    let (addresses, wanted_addresses) = watch::channel(None);
    let counter_interval = Duration::from_secs(args.counter_interval.into());
    let jobs = worker::start(reconciler, Outputs { view, addresses }, counter_interval);
    names.set_jobs(jobs.clone());
    watch_table(port, jobs.clone());

    let heir = is_first_start.then(|| names.clone());
    let (source, reports, api) = source(args, kept, heir, &problems);
    let firewall = args.firewall_name.clone().unwrap_or_else(host_name);
    let identification = Identification { firewall, source: source.describe(), kernel };
    let rescan = Arc::new(Notify::new());
    let (snapshots, mut latest) = watch::channel(None);
    let mut source = tokio::spawn(source.run(snapshots, Arc::clone(&rescan)));
    let ids = if args.enable_ids == Some(true) {
        let options = ids::Options {
            socket: args.suricata_socket.clone(),
            log: args.suricata_log.clone(),
            interval: counter_interval,
            state: record.state.clone(),
        };
        ids::start(options, problems.clone())
    } else {
        ids::Handle::default()
    };
    let server = Server {
        api,
        view: views.clone(),
        jobs: jobs.clone(),
        names,
        ids: ids.clone(),
        identification,
        problems: problems.clone(),
        counters: Counters::default(),
        followers,
        enricher: Arc::default(),
        enriching: Arc::new(Semaphore::new(1)),
    };
    let server = Arc::new(server);
    if let Some(address) = args.metrics_addr {
        tokio::spawn(metrics::serve(address, Arc::clone(&server), problems.clone()));
    }
    if let Some(reports) = reports {
        tokio::spawn(report::keep(Arc::clone(&server), reports));
    }
    let control = serve_control(args.control_socket.clone(), server, problems.clone());
    let mut control = std::pin::pin!(control);
    tokio::spawn(addresses::keep(wanted_addresses, Box::new(record), problems));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let manager = ServiceManager::start();
    let mut watchdog = std::pin::pin!(keep_watchdog(jobs.clone(), manager.clone()));
    let mut told = Told::default();
    loop {
        tokio::select! {
            changed = latest.changed() => {
                // The source ends only with an error, which its own arm shows.
                if changed.is_ok() && let Some(snapshot) = latest.borrow_and_update().clone() {
                    jobs.send(Job::Objects(snapshot, Instant::now())).context("the reconciler has stopped")?;
                }
            }
            ended = &mut source => {
                ended.context("the source of objects has failed")??;
                anyhow::bail!("the source of objects has ended");
            }
            changed = views.changed() => {
                changed.context("the reconciler has failed; the rules stay as they are")?;
                manager.tell(&views.borrow_and_update(), &mut told);
            }
            () = &mut control => {}
            () = &mut watchdog => {}
            _ = hang_up.recv() => {
                info!("SIGHUP: reading everything again");
                rescan.notify_one();
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    info!("stopping; the rules stay in the kernel");
    manager.stopping();
    let (done, stopped) = oneshot::channel();
    if jobs.send(Job::Stop(done)).is_err() || timeout(STOP, stopped).await.is_err() {
        warn!("the reconciler did not finish in time");
    }
    ids.stop();
    Ok(())
}

/// Whom to tell what became of objects, if anybody.
type ReportSender = Option<watch::Sender<Arc<Report>>>;

/// Where objects come from, and whom to tell what became of them. `heir` learns what a controller before ours has learned.
fn source(
    args: &RunArgs,
    kept: Groups,
    heir: Option<names::Handle>,
    problems: &Problems,
) -> (Box<dyn Source>, ReportSender, Option<cluster::Api>) {
    if let Some(manifests) = &args.manifests {
        return (Box::new(ManifestDirectory::new(manifests.clone(), &kept)), None, None);
    }
    let credentials = Credentials::find(args.kubeconfig.as_deref());
    let description = format!("API server of {}", credentials.describe());
    let Handle { cluster, relist, report, figures } = cluster::start(credentials, heir, problems.clone());
    let places =
        droptailer::Places { hosts: args.hosts_file.clone(), directory: args.droptailer_dir.clone() };
    tokio::spawn(droptailer::keep(places, cluster.clone(), problems.clone()));
    let api = cluster::Api { cluster: cluster.clone(), figures };
    (Box::new(ApiServer::new(description, cluster, relist, kept, problems.clone())), Some(report), Some(api))
}

fn say_what_is_ignored(args: &RunArgs) {
    if args.manifests.is_some() && args.hosts_file.is_some() {
        warn!("--hosts-file has no effect without an API server");
    }
}

/// Our one netlink socket. With fault injection a test can make it behave as an older kernel's.
fn open_kernel() -> Result<NetlinkKernel, fw_nft::Error> {
    let without_owner = cfg!(feature = "fault-injection") && std::env::var_os("FW_WITHOUT_OWNER").is_some();
    let mut kernel =
        if without_owner { NetlinkKernel::open_without_owner()? } else { NetlinkKernel::open()? };
    kernel.set_hook(|step| {
        fault::point(match step {
            Step::Build => "before-build",
            Step::Send => "before-send",
            Step::Sent => "after-send-before-ack",
            Step::Acknowledged => "after-ack",
        });
    });
    Ok(kernel)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| "firewall".to_owned(), |name| name.trim().to_owned())
}

/// Listens, on a thread of its own, for changes of our table by others.
fn watch_table(port: u32, jobs: Sender<Job>) {
    std::thread::spawn(move || {
        loop {
            let error = match Monitor::open(port) {
                // What happened before we listened is unknown.
                Ok(monitor) => match follow_table(monitor, &jobs) {
                    None => return,
                    Some(error) => error,
                },
                Err(error) => error,
            };
            warn!("changes of our table by others go unnoticed: {}", chain(&error));
            std::thread::sleep(PAUSE);
        }
    });
}

/// `None`: nobody wants to know any more.
fn follow_table(mut monitor: Monitor, jobs: &Sender<Job>) -> Option<SocketError> {
    let mut drift = Some(Drift { lost: true, ..Drift::default() });
    loop {
        if let Some(drift) = drift.take() {
            jobs.send(Job::Drift(drift)).ok()?;
        }
        match monitor.next(Duration::from_secs(3600)) {
            Ok(noticed) => drift = noticed,
            Err(error) => return Some(error),
        }
    }
}

/// Serves the control socket; a firewall without one still is one.
async fn serve_control(path: std::path::PathBuf, server: Arc<Server>, problems: Problems) {
    loop {
        match Listening::bind(&path) {
            Ok(listening) => {
                problems.set("control socket", Vec::new());
                control::serve(&listening, Arc::clone(&server)).await;
            }
            Err(error) => {
                problems.set(
                    "control socket",
                    vec![format!("the control socket {} cannot be bound: {error}", path.display())],
                );
                sleep(PAUSE).await;
            }
        }
    }
}

/// Tells systemd that we live as long as the reconciler answers.
async fn keep_watchdog(jobs: Sender<Job>, manager: ServiceManager) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut beat = interval(limit / 3);
    loop {
        beat.tick().await;
        let (done, answer) = oneshot::channel();
        if jobs.send(Job::Ping(done)).is_ok() && matches!(timeout(limit, answer).await, Ok(Ok(()))) {
            manager.beat();
        }
    }
}
