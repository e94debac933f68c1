//! The files of `spec.dns`: DNS over TLS and HTTPS in front of the proxy, and the authorities of its upstreams.
//!
//! Listeners run on a thread of their own, where a handshake delays no answer. Files are looked at every few seconds: a
//! new certificate is taken without a connection lost, one that cannot be used leaves the old one in use.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;
use std::thread::JoinHandle;

use fw_dns::encrypted::{Encrypted, EncryptedConfig, EncryptedLimits, Papers};
use fw_policy::{Dns, DnsTls};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use super::site::Site;
use super::thread::{ANY_ADDRESS, PAUSE, Wanted, settings};
use crate::telemetry::chain;

/// Parts of the status.
const TLS: &str = "dns over tls";
const AUTHORITIES: &str = "authorities of dns upstreams";
/// Larger files are none of ours.
const MAX_FILE: u64 = 1 << 20;

/// Keeps the listeners as they are wanted, and the proxy's authorities as their file has them, until it is dropped.
pub(super) async fn keep(site: Rc<Site>, mut wanted: watch::Receiver<Wanted>, proxy: fw_dns::Handle) {
    let mut listeners = Slot { site: Rc::clone(&site), open: None };
    let mut authorities = None;
    loop {
        let (dns, interfaces) = wanted.borrow_and_update().clone();
        let problem = listeners.update(dns.tls.as_ref(), &proxy).err();
        site.problems.set(TLS, problem.into_iter().collect());
        let before = std::mem::replace(&mut authorities, look_at_authorities(&site, &dns));
        if before.is_some() && before != authorities {
            // It reads them again.
            proxy.update(settings(&dns, &interfaces)).await.ok();
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep(PAUSE) => {}
        }
    }
}

/// `None`: there is no file, or none that can be read.
fn look_at_authorities(site: &Site, dns: &Dns) -> Option<Version> {
    let looked = dns.ca_file.as_deref().map(|path| {
        version(path).map_err(|error| {
            format!("{} cannot be read, no upstream is asked over TLS: {error}", path.display())
        })
    });
    let (version, problem) = match looked {
        None => (None, None),
        Some(Ok(version)) => (Some(version), None),
        Some(Err(problem)) => (None, Some(problem)),
    };
    site.problems.set(AUTHORITIES, problem.into_iter().collect());
    version
}

/// The listeners, if there are any; their problems go with them.
struct Slot {
    site: Rc<Site>,
    open: Option<Listeners>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        for part in [TLS, AUTHORITIES] {
            self.site.problems.clear(part);
        }
    }
}

impl Slot {
    /// Opens, closes or refreshes them; says what cannot be done.
    fn update(&mut self, wanted: Option<&DnsTls>, proxy: &fw_dns::Handle) -> Result<(), String> {
        if self.open.as_ref().is_some_and(|open| Some(&open.tls) != wanted || open.has_ended()) {
            self.open = None;
        }
        let Some(tls) = wanted else { return Ok(()) };
        match &mut self.open {
            Some(open) => open.refresh(),
            None => {
                let opened = Listeners::open(tls, proxy.clone());
                let opened = opened.map_err(|why| format!("DNS over TLS and HTTPS is not served: {why}"))?;
                self.open = Some(opened);
                Ok(())
            }
        }
    }
}

/// Open sockets and the thread that serves them; both end with this.
struct Listeners {
    tls: DnsTls,
    files: [Version; 2],
    papers: Papers,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listeners {
    fn open(tls: &DnsTls, proxy: fw_dns::Handle) -> Result<Self, String> {
        // First: a file that changes while it is read is read again.
        let files = versions(tls)?;
        let config = EncryptedConfig {
            addresses: ANY_ADDRESS.into(),
            tls_port: tls.dot_port,
            https_port: tls.doh_port,
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            limits: EncryptedLimits::default(),
        };
        let encrypted = Encrypted::bind(&config).map_err(|error| chain(&error))?;
        let papers = encrypted.papers();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("dns-tls".to_owned())
            .spawn(move || serve(encrypted, proxy, stopped))
            .map_err(|error| format!("no thread: {error}"))?;
        info!(dot = tls.dot_port, doh = tls.doh_port, "serving DNS over TLS and HTTPS");
        Ok(Self { tls: tls.clone(), files, papers, stop: Some(stop), thread: Some(thread) })
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes a changed certificate.
    fn refresh(&mut self) -> Result<(), String> {
        let stays = |why| format!("DNS over TLS and HTTPS goes on with the certificate of before: {why}");
        let files = versions(&self.tls).map_err(stays)?;
        if files != self.files {
            self.papers
                .replace(&self.tls.certificate, &self.tls.key)
                .map_err(|error| stays(chain(&error)))?;
            self.files = files;
            info!("DNS over TLS and HTTPS has a new certificate");
        }
        Ok(())
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.stop.take();
        // Waits a moment, so that the ports are free after it.
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread of DNS over TLS has failed");
        }
    }
}

fn serve(encrypted: Encrypted, proxy: fw_dns::Handle, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return warn!("no runtime for DNS over TLS: {error}"),
    };
    runtime.block_on(async {
        tokio::select! {
            // The sender was dropped.
            _ = stopped => {}
            ended = encrypted.run(proxy) => if let Err(error) = ended {
                warn!("DNS over TLS and HTTPS has ended: {error}");
            },
        }
    });
}

/// Which file it is, and of when: device, inode, size, and the time of its last change.
type Version = (u64, u64, u64, i64, i64);

fn versions(tls: &DnsTls) -> Result<[Version; 2], String> {
    let of =
        |path: &Path| version(path).map_err(|error| format!("{} cannot be read: {error}", path.display()));
    Ok([of(&tls.certificate)?, of(&tls.key)?])
}

/// Pipes and devices, which could be read for ever, are refused.
fn version(path: &Path) -> io::Result<Version> {
    let file = path.metadata()?;
    if !file.is_file() || file.len() > MAX_FILE {
        return Err(io::Error::other("it is no file of at most 1 MiB"));
    }
    Ok((file.dev(), file.ino(), file.len(), file.ctime(), file.ctime_nsec()))
}
