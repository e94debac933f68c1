//! Machines that watch and write, with reports that the test makes up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_crds::FirewallStatus;
use fw_intake::Id;
use fw_kube::{
    Complaint, Connection, Credentials, FirewallReport, PolicyReport, PolicyState, Report, WriteFigures,
};
use fw_policy::ObjectKind;
use fw_testkit::WorkDir;
use fw_testkit::cluster::Cluster;
use serde_json::Value;
use tokio::sync::{Notify, oneshot, watch};

/// One machine; it stops when this is dropped.
pub(crate) struct Machine {
    pub(crate) report: watch::Sender<Arc<Report>>,
    pub(crate) figures: Arc<WriteFigures>,
    _stop: oneshot::Sender<()>,
    _directory: WorkDir,
}

impl Machine {
    pub(crate) fn start(cluster: &Cluster, name: &str) -> Result<Self> {
        let directory = WorkDir::new(name)?;
        let kubeconfig = directory.path().join("kubeconfig");
        std::fs::write(&kubeconfig, cluster.kubeconfig_of_user("admin", &["system:masters"])?)?;
        let (report, reports) =
            watch::channel(Arc::new(Report { firewall: name.to_owned(), ..Report::default() }));
        let (stop, stopped) = oneshot::channel::<()>();
        let figures = Arc::new(WriteFigures::default());
        let counted = Arc::clone(&figures);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let connection = Connection::new(Credentials::Kubeconfig(kubeconfig));
                let (objects, cluster) = watch::channel(Arc::default());
                tokio::spawn(connection.clone().follow());
                tokio::spawn(fw_kube::watch(connection.client(), objects, Arc::new(Notify::new())));
                tokio::spawn(fw_kube::report(connection.client(), cluster, reports, counted));
                stopped.await.ok();
            });
        });
        Ok(Self { report, figures, _stop: stop, _directory: directory })
    }

    /// Says something else from now on.
    pub(crate) fn say(&self, change: impl FnOnce(&mut Report)) {
        self.report.send_modify(|report| change(Arc::make_mut(report)));
    }

    /// As after judging the object: with its uid and generation of now.
    pub(crate) fn judge(
        &self,
        cluster: &Cluster,
        name: &str,
        state: PolicyState,
        message: &str,
    ) -> Result<()> {
        let id = id(ObjectKind::ClusterwideNetworkPolicy, name);
        let object = cluster.get_json(&["-n", "firewall", "cwnp", name])?;
        let report = PolicyReport {
            generation: object["metadata"]["generation"].as_i64().unwrap_or_default(),
            uid: object["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
            state,
            message: message.to_owned(),
            fqdn_state: Arc::new(BTreeMap::new()),
        };
        self.say(|all| {
            all.policies.insert(id, Arc::new(report));
        });
        Ok(())
    }

    /// Takes its settings from a Firewall, and says this about it.
    pub(crate) fn own(&self, cluster: &Cluster, firewall: &str, status: FirewallStatus) -> Result<()> {
        let object = cluster.get_json(&["-n", "firewall", "firewall", firewall])?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let id = id(ObjectKind::Firewall, firewall);
        let own = FirewallReport { id, uid, status: Arc::new(status), interval_ms: 1000 };
        self.say(|all| all.own = Some(own));
        Ok(())
    }

    pub(crate) fn complain(&self, kind: ObjectKind, name: &str, uid: &str, reason: &str, note: &str) {
        let complaint = Complaint {
            about: id(kind, name),
            uid: uid.to_owned(),
            reason: reason.to_owned(),
            warning: true,
            note: note.to_owned(),
        };
        self.say(|all| {
            all.complaints.insert(complaint);
        });
    }
}

pub(crate) fn id(kind: ObjectKind, name: &str) -> Id {
    Id { kind, namespace: "firewall".to_owned(), name: name.to_owned() }
}

/// The status of an object.
pub(crate) fn status(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    Ok(cluster.get_json(&["-n", "firewall", kind, name])?["status"].clone())
}

/// Waits until a test holds; shows what there is if it never does.
pub(crate) fn until(
    what: &str,
    mut see: impl FnMut() -> Result<Value>,
    holds: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = see()?;
        if holds(&seen) {
            return Ok(seen);
        }
        ensure!(Instant::now() < end, "never: {what}; there is {seen:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
