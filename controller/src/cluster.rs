//! The thread of everything that talks to an API server.
//!
//! It has a runtime of its own: thousands of objects to parse, or an API server that is slow, delay neither a rule nor
//! an answer on the control socket.

use std::sync::Arc;

use fw_kube::{Cluster, Connection, Credentials};
use tokio::sync::{Notify, watch};
use tracing::error;

/// The ends of the thread's channels.
pub(crate) struct Handle {
    /// All watched objects.
    pub(crate) cluster: watch::Receiver<Arc<Cluster>>,
    /// Begins every watch anew.
    pub(crate) relist: Arc<Notify>,
    /// The way to the API server, for its problem and figures.
    pub(crate) connection: Connection,
}

/// Starts the thread; it ends with the process.
pub(crate) fn start(credentials: Credentials) -> Handle {
    let (objects, cluster) = watch::channel(Arc::default());
    let relist = Arc::new(Notify::new());
    let connection = Connection::new(credentials);
    let parts = (connection.clone(), objects, Arc::clone(&relist));
    std::thread::spawn(move || {
        let (connection, objects, relist) = parts;
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(async {
                tokio::spawn(connection.clone().follow());
                fw_kube::watch(connection.client(), objects, relist).await;
            }),
            Err(error) => error!("no runtime for the API server, nothing of it is followed: {error}"),
        }
    });
    Handle { cluster, relist, connection }
}
