//! The dropped packets, as a listener of the NFLOG group gets them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use fw_droptailer::{DropRecord, Source};
use fw_testkit::Netns;

/// The group that the controller logs to when nobody says otherwise.
pub(crate) const GROUP: u16 = 1;

/// Collects records until it is told to stop.
pub(crate) struct Listener {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Result<Vec<DropRecord>>>>,
}

impl Listener {
    /// Listens in the firewall from now on.
    pub(crate) fn start(firewall: &Netns) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = mpsc::channel();
        let its_stop = Arc::clone(&stop);
        let thread = firewall.spawn(move || collect(&its_stop, &ready))?;
        // An error is in the thread's result, which `stop` gives.
        let _ = is_ready.recv();
        Ok(Self { stop, thread })
    }

    /// All records, in order.
    pub(crate) fn stop(self) -> Result<Vec<DropRecord>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?
    }
}

fn collect(stop: &AtomicBool, ready: &mpsc::Sender<()>) -> Result<Vec<DropRecord>> {
    let mut source = Source::open(GROUP)?;
    ready.send(()).context("the lab is gone")?;
    let mut records = Vec::new();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        // Twice the time that the kernel collects before it sends.
        let read = source.read(Duration::from_millis(200), SystemTime::now, |record| records.push(record))?;
        if stopping && read == 0 {
            break;
        }
    }
    let loss = source.loss();
    ensure!(loss == fw_netlink::nflog::Loss::default(), "lost on the way from the kernel: {loss:?}");
    ensure!(source.strangers() == 0, "{} packets with a strange prefix", source.strangers());
    Ok(records)
}

/// `  1.203 s  vrf104009 -> vlan179    TCP  10.0.16.2:4711 -> 1.2.3.4:80`
pub(crate) fn describe(record: &DropRecord, begin: SystemTime) -> String {
    let fields = record.fields();
    let field = |key: &str| fields.get(key).map_or("", String::as_str);
    let (seconds, microseconds) = record.time;
    let at =
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(microseconds.into());
    let after = at.duration_since(begin).unwrap_or_default().as_secs_f64();
    let (source, destination) = match record.header.addresses {
        Some((source, destination)) => (end(source, field("SPT")), end(destination, field("DPT"))),
        None => ("?".to_owned(), "?".to_owned()),
    };
    // The kernel's LOG line names a few protocols and numbers the others.
    let protocol = if field("PROTO") == "47" { "GRE" } else { field("PROTO") };
    let way = format!("{} -> {}", field("IN"), field("OUT"));
    format!("{after:>7.3} s   {way:<22} {protocol:<6} {source} -> {destination}")
}

/// An address with its port, if it has one.
fn end(address: IpAddr, port: &str) -> String {
    match port.parse() {
        Ok(port) => SocketAddr::new(address, port).to_string(),
        Err(_) => address.to_string(),
    }
}
