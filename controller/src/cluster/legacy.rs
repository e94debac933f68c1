//! What the controller written in Go has learned of names, so that a cluster that comes from it loses none.

use std::sync::Arc;
use std::time::Duration;

use fw_intake::{FqdnState, KnownAddress, read_fqdn_state};
use fw_kube::legacy::{FQDN_STATE, fqdn_state};
use fw_kube::{Cluster, chain};
use fw_names::Name;
use kube::Client;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::names::clock::wall;
use crate::names::{Handle, Inherited};

/// How often it is asked for.
const ATTEMPTS: u32 = 4;
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(2);
const SECOND: u64 = 1_000_000_000;

/// Reads it once and hands it on. Everything that goes wrong is a line of the log: its names are learned again when
/// somebody asks for them.
pub(super) async fn pass_on(client: Client, mut cluster: watch::Receiver<Arc<Cluster>>, heir: Handle) {
    // The API server may be away for hours; there is no use in asking before it answers.
    if cluster.wait_for(|cluster| cluster.is_complete()).await.is_err() {
        return;
    }
    for attempt in 1..=ATTEMPTS {
        match fqdn_state(client.clone()).await {
            Ok(None) => return,
            Ok(Some(text)) => return hand_on(&text, &heir),
            Err(error) if attempt == ATTEMPTS => {
                warn!("the names in ConfigMap {FQDN_STATE} are not taken over: {}", chain(&error));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

fn hand_on(text: &str, heir: &Handle) {
    match read_fqdn_state(text, wall() / SECOND) {
        Ok(state) => heir.inherit(inherited(state)),
        Err(error) => warn!("the names in ConfigMap {FQDN_STATE} are not taken over: {error}"),
    }
}

fn inherited(state: FqdnState) -> Vec<Inherited> {
    let FqdnState { known, over, left_out } = state;
    let addresses = known.len();
    let named = known.into_iter().filter_map(|KnownAddress { name, address, until }| {
        Some(Inherited { name: Name::from_text(&name).ok()?, address, until })
    });
    let inherited: Vec<Inherited> = named.collect();
    let misnamed = addresses - inherited.len();
    info!(
        addresses = inherited.len(),
        over, left_out, misnamed, "taking over what ConfigMap {FQDN_STATE} says of names"
    );
    inherited
}
