//! The thread of everything that talks to an API server.
//!
//! It has a runtime of its own: thousands of objects to parse, or an API server that is slow, delay neither a rule nor
//! an answer on the control socket.

use std::sync::Arc;

use fw_kube::owned::{self, Own, Owned, Pace};
use fw_kube::{Cluster, Connection, Credentials, Report, WriteFigures};
use tokio::sync::{Notify, watch};
use tracing::error;

use crate::names;
use crate::problems::Problems;

mod legacy;

/// Part of the status: what keeps Prometheus from finding the exporters.
const EXPORTERS: &str = "Services of the exporters";
/// Part of the status: what cannot be read of the kubeconfig.
const CREDENTIALS: &str = "credentials";
/// Part of the status: another machine has our Firewall object.
const WRITER: &str = "status of the Firewall";

/// The ends of the thread's channels.
pub(crate) struct Handle {
    /// All watched objects.
    pub(crate) cluster: watch::Receiver<Arc<Cluster>>,
    /// Begins every watch anew.
    pub(crate) relist: Arc<Notify>,
    /// What there is to say.
    pub(crate) report: watch::Sender<Arc<Report>>,
    /// What writing counts.
    pub(crate) figures: Arc<WriteFigures>,
}

/// Figures of the conversation with the API server.
#[derive(Clone, Debug)]
pub struct Api {
    /// All watched objects, with what their watches counted.
    pub cluster: watch::Receiver<Arc<Cluster>>,
    /// What writing counts.
    pub figures: Arc<WriteFigures>,
}

/// Starts the thread; it ends with the process. `heir`: who learns what the controller written in Go has learned.
pub(crate) fn start(credentials: Credentials, heir: Option<names::Handle>, problems: Problems) -> Handle {
    let (objects, cluster) = watch::channel(Arc::default());
    let (report, reports) = watch::channel(Arc::default());
    let relist = Arc::new(Notify::new());
    let figures = Arc::new(WriteFigures::default());
    let parts =
        Parts { connection: Connection::new(credentials), reports, problems, figures: Arc::clone(&figures) };
    let (relisted, watched) = (Arc::clone(&relist), cluster.clone());
    std::thread::spawn(move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(async {
            let client = parts.connection.client();
            if let Some(heir) = heir {
                tokio::spawn(legacy::pass_on(client.clone(), watched.clone(), heir));
            }
            parts.start(watched);
            fw_kube::watch(client, objects, relisted).await;
        }),
        Err(error) => error!("no runtime for the API server, nothing of it is followed: {error}"),
    });
    Handle { cluster, relist, report, figures }
}

struct Parts {
    connection: Connection,
    reports: watch::Receiver<Arc<Report>>,
    problems: Problems,
    figures: Arc<WriteFigures>,
}

impl Parts {
    /// Everything beside the watches, each for itself.
    fn start(self, cluster: watch::Receiver<Arc<Cluster>>) {
        let Self { connection, reports, problems, figures } = self;
        let (own, wanted) = watch::channel(None);
        let (told, owned) = watch::channel(Owned::default());
        tokio::spawn(owned::own(connection.client(), wanted, told, Pace::default()));
        tokio::spawn(find_address(cluster.clone(), reports.clone(), own));
        tokio::spawn(tell(owned, reports.clone(), Arc::clone(&figures), problems.clone()));
        let client = connection.client();
        tokio::spawn(async move { fw_kube::report(client, cluster, reports, figures).await });
        let tell = move |problem: Option<String>| problems.set(CREDENTIALS, problem.into_iter().collect());
        tokio::spawn(connection.follow_and_tell(tell));
    }
}

/// Where the exporters of this machine answer, as its Firewall object says.
async fn find_address(
    mut cluster: watch::Receiver<Arc<Cluster>>,
    mut reports: watch::Receiver<Arc<Report>>,
    own: watch::Sender<Option<Own>>,
) {
    loop {
        let report = Arc::clone(&reports.borrow_and_update());
        let objects = Arc::clone(&cluster.borrow_and_update());
        let object = report.own.as_ref().and_then(|own| objects.by_id(&own.id));
        let address = object.and_then(|object| owned::address(&object.body()));
        let wanted = address.map(|address| Own { firewall: report.firewall.clone(), address });
        own.send_if_modified(|current| {
            // A Firewall object that is away for a moment takes no address away.
            let changes = wanted.is_some() && *current != wanted;
            if changes {
                current.clone_from(&wanted);
            }
            changes
        });
        tokio::select! {
            changed = cluster.changed() => if changed.is_err() { return },
            changed = reports.changed() => if changed.is_err() { return },
        }
    }
}

/// What goes wrong with writing, for the status.
async fn tell(
    mut owned: watch::Receiver<Owned>,
    mut reports: watch::Receiver<Arc<Report>>,
    figures: Arc<WriteFigures>,
    problems: Problems,
) {
    loop {
        problems.set(EXPORTERS, owned.borrow_and_update().problems.values().cloned().collect());
        reports.borrow_and_update();
        let standby = figures.standby().map(|writer| {
            format!(
                "the Firewall object's status is written by {writer}; give this machine an object of its own, \
                 named as --firewall-name"
            )
        });
        problems.set(WRITER, standby.into_iter().collect());
        tokio::select! {
            changed = owned.changed() => if changed.is_err() { return },
            changed = reports.changed() => if changed.is_err() { return },
        }
    }
}
