//! What the droptailer client of this machine needs of the cluster: where its server is, and its certificate.
//!
//! The address of the Pod goes into the hosts file as `droptailer`, the Secret into a directory of files.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fw_kube::{Cluster, Watched};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use crate::problems::Problems;
use crate::telemetry::chain;
use certificate::Certificate;

pub mod certificate;
pub mod hosts;

/// Parts of the status.
const HOSTS: &str = "hosts file";
const FILES: &str = "droptailer's certificate";
/// Between two attempts to write what could not be written, and two looks whether others have changed it.
const PAUSE: Duration = Duration::from_secs(30);

/// Where things go.
#[derive(Clone, Debug)]
pub struct Places {
    /// The hosts file; `None`: it is not touched.
    pub hosts: Option<PathBuf>,
    /// The directory of the certificate.
    pub directory: PathBuf,
}

/// Keeps both for as long as the cluster is followed.
pub async fn keep(places: Places, mut cluster: watch::Receiver<Arc<Cluster>>, problems: Problems) {
    let mut current = None;
    loop {
        let seen = Arc::clone(&cluster.borrow_and_update());
        let wanted = Wanted::of(&seen, current);
        current = wanted.address.flatten();
        let (places, told) = (places.clone(), problems.clone());
        // Disks can be slow; watches are not to wait for them.
        tokio::task::spawn_blocking(move || wanted.write(&places, &told)).await.ok();
        if let Ok(Err(_)) = timeout(PAUSE, cluster.changed()).await {
            return;
        }
    }
}

/// What is to be there; `None`: unknown, it stays as it is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    address: Option<Option<IpAddr>>,
    certificate: Option<Result<Certificate, certificate::Refused>>,
}

impl Wanted {
    fn of(cluster: &Cluster, current: Option<IpAddr>) -> Self {
        let pods = cluster.of(Watched::DroptailerPods).filter(|listed| listed.complete);
        let address = pods.map(|pods| {
            let addresses: Vec<IpAddr> =
                pods.objects.values().filter_map(|pod| address_of(&pod.body())).collect();
            // Of several Pods the one that was known already: connections to it go on.
            current.filter(|current| addresses.contains(current)).or_else(|| addresses.first().copied())
        });
        let secrets = cluster.of(Watched::DroptailerSecret).filter(|listed| listed.complete);
        let secret = secrets.and_then(|secrets| secrets.objects.values().next());
        Self { address, certificate: secret.map(|secret| Certificate::read(&secret.body()["data"])) }
    }

    fn write(self, places: &Places, problems: &Problems) {
        if let (Some(path), Some(address)) = (&places.hosts, self.address) {
            let written = hosts::set(path, address);
            if matches!(written, Ok(true)) {
                info!(file = %path.display(), ?address, "the droptailer server's address is written");
            }
            let lines = written.err().map(|error| format!("{}: {error}", path.display()));
            problems.set(HOSTS, lines.into_iter().collect());
        }
        let Some(certificate) = self.certificate else { return };
        let place = places.directory.display();
        let line = match certificate {
            Err(why) => {
                Some(format!("Secret firewall/droptailer-client: {}; {place} stays as it is", chain(&why)))
            }
            Ok(certificate) => match certificate.write(&places.directory) {
                Ok(is_new) => {
                    if is_new {
                        info!(directory = %place, "the droptailer client's certificate is written");
                    }
                    None
                }
                Err(error) => Some(format!("{place}: {error}")),
            },
        };
        problems.set(FILES, line.into_iter().collect());
    }
}

/// The address of a running Pod, if one can connect to it.
fn address_of(pod: &Value) -> Option<IpAddr> {
    let status = &pod["status"];
    let address: IpAddr = status["podIP"].as_str()?.parse().ok()?;
    let is_strange = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    let is_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    (status["phase"] == "Running" && !is_strange && !is_local).then_some(address)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_running_pods_with_addresses_one_can_connect_to_count() {
        let pod = |phase: &str, address: &str| json!({"status": {"phase": phase, "podIP": address}});
        assert_eq!(address_of(&pod("Running", "10.0.0.7")), "10.0.0.7".parse().ok());
        assert_eq!(address_of(&pod("Running", "2001:db8::7")), "2001:db8::7".parse().ok());
        for (phase, address) in [
            ("Pending", "10.0.0.7"),
            ("Running", ""),
            ("Running", "127.0.0.1"),
            ("Running", "0.0.0.0"),
            ("Running", "224.0.0.1"),
            ("Running", "169.254.0.1"),
            ("Running", "fe80::1"),
            ("Running", "::ffff:10.0.0.7"),
            ("Running", "10.0.0.7 evil\n6.6.6.6 api"),
        ] {
            assert_eq!(address_of(&pod(phase, address)), None, "{phase} {address}");
        }
        assert_eq!(address_of(&json!({})), None);
    }
}
