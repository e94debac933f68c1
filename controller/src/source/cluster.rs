//! A cluster as a source.
//!
//! Its watches are run elsewhere ([`crate::cluster`]); here all objects at one moment become a snapshot. Until policies,
//! Firewalls and Services have each listed once, what was known before the restart stays; after that a watch that
//! fails keeps what it had. So neither an API server that is away nor a whole relist opens or closes anything.

use std::sync::Arc;

use fw_kube::{Cluster, Watched};
use tokio::sync::{Notify, watch};

use super::{Groups, Running, Snapshot, Source, SourceCounters};
use crate::problems::Problems;

/// Part of the status.
const PROBLEMS: &str = "API server";

/// The source of a firewall in front of a cluster.
pub struct ApiServer {
    description: String,
    cluster: watch::Receiver<Arc<Cluster>>,
    relist: Arc<Notify>,
    kept: Groups,
    problems: Problems,
}

impl ApiServer {
    /// `kept` is what was known before the last restart; `relist` begins every watch anew.
    pub fn new(
        description: String,
        cluster: watch::Receiver<Arc<Cluster>>,
        relist: Arc<Notify>,
        kept: Groups,
        problems: Problems,
    ) -> Self {
        Self { description, cluster, relist, kept, problems }
    }
}

impl Source for ApiServer {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn run(self: Box<Self>, output: watch::Sender<Option<Arc<Snapshot>>>, rescan: Arc<Notify>) -> Running {
        Box::pin(async move {
            self.follow(output, rescan).await;
            Ok(())
        })
    }
}

impl ApiServer {
    async fn follow(mut self, output: watch::Sender<Option<Arc<Snapshot>>>, rescan: Arc<Notify>) {
        let mut last: Option<(u64, Arc<Snapshot>)> = None;
        loop {
            let cluster = Arc::clone(&self.cluster.borrow_and_update());
            // Most changes are of statuses, and there are thousands of objects to look at.
            if last.as_ref().is_none_or(|(version, _)| *version != cluster.version) {
                self.problems.set(PROBLEMS, cluster.problems());
                let next = snapshot(&cluster, &self.kept);
                let before = last.take().filter(|(_, before)| !differs(before, &next));
                let next = before.map_or_else(
                    || {
                        let next = Arc::new(next);
                        output.send_replace(Some(Arc::clone(&next)));
                        next
                    },
                    |(_, before)| before,
                );
                if next.fresh {
                    // It is never asked for again, and holds as many objects as the cluster.
                    self.kept.clear();
                }
                last = Some((cluster.version, next));
            }
            tokio::select! {
                () = output.closed() => return,
                () = rescan.notified() => self.relist.notify_one(),
                changed = self.cluster.changed() => if changed.is_err() {
                    // The thread of the cluster is gone: nothing comes any more, and what is enforced stays.
                    output.closed().await;
                    return;
                },
            }
        }
    }
}

fn snapshot(cluster: &Cluster, kept: &Groups) -> Snapshot {
    let fresh = cluster.is_complete();
    Snapshot {
        groups: if fresh { groups(cluster) } else { kept.clone() },
        findings: Vec::new(),
        fresh,
        note: if fresh { String::new() } else { note(cluster) },
        counters: counters(cluster),
    }
}

fn groups(cluster: &Cluster) -> Groups {
    let kinds = cluster.listed.iter().filter_map(|(watched, listed)| Some((watched.kind()?, listed)));
    kinds
        .flat_map(|(kind, listed)| {
            let named = listed.objects.iter();
            named.map(move |((namespace, name), object)| {
                (format!("{kind} {namespace}/{name}"), Arc::clone(&object.group))
            })
        })
        .collect()
}

/// Which lists are missing.
fn note(cluster: &Cluster) -> String {
    let missing = Watched::ESSENTIAL.iter().filter(|watched| {
        let listed = cluster.of(**watched);
        !listed.is_some_and(|listed| listed.complete)
    });
    let missing: Vec<String> = missing
        .map(|watched| {
            let problem = cluster.of(*watched).and_then(|listed| listed.problem.as_ref());
            problem.map_or_else(|| watched.name().to_owned(), |why| format!("{} ({why})", watched.name()))
        })
        .collect();
    format!("waiting for API server to list {}", missing.join(", "))
}

fn counters(cluster: &Cluster) -> SourceCounters {
    let mut counters = SourceCounters::default();
    for listed in cluster.listed.values() {
        counters.scans += listed.figures.lists;
        counters.events += listed.figures.events;
        counters.read_errors += listed.figures.errors;
    }
    counters
}

/// Whether the rules have to be looked at again: groups are the same `Arc` as long as their objects are the same.
fn differs(before: &Snapshot, after: &Snapshot) -> bool {
    let same = |(a, b): ((&String, _), (&String, _))| a.0 == b.0 && Arc::ptr_eq(a.1, b.1);
    before.fresh != after.fresh
        || before.note != after.note
        || before.groups.len() != after.groups.len()
        || !before.groups.iter().zip(&after.groups).all(same)
}
