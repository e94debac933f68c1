//! The way to the API server: a client whose credentials change under it.
//!
//! A kubeconfig, its token file or its certificates may be replaced at any time (tokens of a machine live for hours).
//! [`Connection::client`] is one client for life: each request goes to the newest usable configuration, and a
//! configuration that cannot be used leaves the one before in use.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tower::{BoxError, Service};
use tracing::info;

use crate::chain;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long the API server may take to accept a connection. Longer waits end with an error and are tried again.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may be silent: longer than the minute between two bookmarks of a watch, so that a server that
/// went away without a word is noticed.
const SILENCE: Duration = Duration::from_secs(150);

/// Where the address of the API server and what to show it come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A kubeconfig file; it need not exist yet.
    Kubeconfig(PathBuf),
    /// The service account of the pod this runs in.
    Pod,
}

impl Credentials {
    /// By the flag, `$KUBECONFIG` (its first file), the pod's service account, or `~/.kube/config`.
    #[must_use]
    pub fn find(flag: Option<&Path>) -> Self {
        if let Some(path) = flag {
            return Self::Kubeconfig(path.to_owned());
        }
        let listed = std::env::var_os("KUBECONFIG");
        let first = listed.iter().flat_map(std::env::split_paths).find(|path| !path.as_os_str().is_empty());
        if let Some(path) = first {
            return Self::Kubeconfig(path);
        }
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Self::Pod;
        }
        Self::Kubeconfig(std::env::home_dir().unwrap_or_default().join(".kube/config"))
    }

    /// For the status: `kubeconfig /etc/firewall-controller/kubeconfig`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Kubeconfig(path) => format!("kubeconfig {}", path.display()),
            Self::Pod => "service account of the pod".to_owned(),
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error("cannot be read")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("cannot be used")]
    Pod(#[from] kube::config::InClusterError),
    #[error("gives no client")]
    Client(#[from] kube::Error),
}

/// The way to the API server.
#[derive(Clone, Debug)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    credentials: Credentials,
    slot: Mutex<Slot>,
    /// A request was refused as unauthorized.
    refused: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never what the files say.
        f.debug_struct("Shared").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Slot {
    client: Option<Client>,
    files: Files,
    problem: Option<String>,
    reloads: u64,
}

/// Files and which version of each: device, inode, size, last change.
type Files = BTreeMap<PathBuf, Option<(u64, u64, u64, i64, i64)>>;

impl Connection {
    /// Never fails: what cannot be used yet is a problem, and looked at again.
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        let shared = Shared { credentials, slot: Mutex::default(), refused: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// A client for life.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(Newest { shared: Arc::clone(&self.shared) }, crate::NAMESPACE)
    }

    /// Why the newest configuration cannot be used.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.shared.slot().problem.clone()
    }

    /// How many configurations have been taken.
    #[must_use]
    pub fn reloads(&self) -> u64 {
        self.shared.slot().reloads
    }

    /// Follows the files; ends never.
    pub async fn follow(self) {
        self.follow_and_tell(drop).await;
    }

    /// As [`Self::follow`]; tells after each look why the newest configuration cannot be used, if so.
    pub async fn follow_and_tell(self, mut tell: impl FnMut(Option<String>)) {
        loop {
            self.look().await;
            tell(self.problem());
            // A refused token means that a new one is there already, or soon.
            timeout(LOOK, self.shared.refused.notified()).await.ok();
            // Not at once: somebody writes the files one after the other.
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn look(&self) {
        let before = self.shared.slot().files.clone();
        let known = !before.is_empty();
        if known && versions(before.keys()) == before && self.shared.slot().client.is_some() {
            return;
        }
        // Versions first: a file that changes while it is read is read again.
        let files = versions(&files_of(&self.shared.credentials));
        let opened = open(&self.shared.credentials).await;
        let mut slot = self.shared.slot();
        match opened {
            Ok(client) => {
                if known {
                    info!("the API server is asked with new credentials");
                }
                *slot = Slot { client: Some(client), files, problem: None, reloads: slot.reloads + 1 };
            }
            Err(error) => {
                slot.problem = Some(format!("{} {}", self.shared.credentials.describe(), chain(&error)));
                slot.files = files;
            }
        }
    }
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        // A panic while it was held cannot leave it half changed.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open(credentials: &Credentials) -> Result<Client, ConfigError> {
    let mut config = match credentials {
        Credentials::Kubeconfig(path) => {
            let kubeconfig = Kubeconfig::read_from(path)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        Credentials::Pod => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(SILENCE);
    Ok(Client::try_from(config)?)
}

/// The files whose change means new credentials. Those of a pod are followed by the client itself.
fn files_of(credentials: &Credentials) -> Vec<PathBuf> {
    let Credentials::Kubeconfig(path) = credentials else { return Vec::new() };
    let mut files = vec![path.clone()];
    let Ok(kubeconfig) = Kubeconfig::read_from(path) else { return files };
    let clusters = kubeconfig.clusters.iter().filter_map(|cluster| cluster.cluster.as_ref());
    let users = kubeconfig.auth_infos.iter().filter_map(|user| user.auth_info.as_ref());
    files.extend(clusters.filter_map(|cluster| cluster.certificate_authority.clone()).map(PathBuf::from));
    for user in users {
        let named = [&user.token_file, &user.client_certificate, &user.client_key];
        files.extend(named.into_iter().flatten().map(PathBuf::from));
    }
    files
}

fn versions<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Files {
    let version = |path: &Path| -> io::Result<_> {
        let meta = path.metadata()?;
        Ok((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    };
    paths.into_iter().map(|path| (path.clone(), version(path).ok())).collect()
}

/// Sends each request by the newest client.
#[derive(Clone)]
struct Newest {
    shared: Arc<Shared>,
}

impl Service<Request<Body>> for Newest {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let (client, problem) = {
                let slot = shared.slot();
                (slot.client.clone(), slot.problem.clone())
            };
            let Some(client) = client else {
                return Err(problem.unwrap_or_else(|| "credentials were not read yet".to_owned()).into());
            };
            let response = client.send(request).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                shared.refused.notify_one();
            }
            Ok(response)
        })
    }
}
