//! Writing what the report says: one task for each kind of thing, none of which waits for another one.
//!
//! Each compares what is wanted with what the watch shows, and writes the difference. What cannot be written is tried again
//! with growing pauses for as long as it is wanted; a slow or failing object holds up no other one.

mod events;
mod figures;
mod firewall;
mod policies;
mod queue;
mod request;

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;

pub use figures::{Tally, WriteFigures};

use crate::cluster::Cluster;
use crate::report::Report;

/// Writes statuses and events until the report has no sender any more.
pub async fn report(
    client: Client,
    cluster: watch::Receiver<Arc<Cluster>>,
    report: watch::Receiver<Arc<Report>>,
    figures: Arc<WriteFigures>,
) {
    let (voice, voices) = watch::channel(None);
    let (standby, standbys) = watch::channel(None);
    let tell = firewall::Tell { voice, standby };
    tokio::join!(
        firewall::keep(client.clone(), cluster.clone(), report.clone(), tell, &figures),
        policies::keep(client.clone(), cluster, report.clone(), voices, &figures),
        events::keep(client, report, standbys, &figures),
    );
}

#[cfg(test)]
mod tests;
