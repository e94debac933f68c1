//! Talks to a running proxy from other threads.

use tokio::sync::{mpsc, oneshot};

use crate::config::Settings;

/// How many orders may wait for the proxy's thread.
pub(crate) const ORDERS: usize = 1024;

pub(crate) enum Order {
    Update(Box<Settings>),
    Lookup {
        name: Vec<u8>,
        kind: u16,
        reply: oneshot::Sender<Vec<u8>>,
    },
    /// A whole message from an encrypted listener.
    #[cfg(feature = "encrypted")]
    Ask {
        message: Vec<u8>,
        transport: crate::metrics::Transport,
        client: std::net::SocketAddr,
        reply: oneshot::Sender<Vec<u8>>,
    },
}

/// Why an order was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// It has ended.
    #[error("the DNS proxy does not run")]
    Gone,
    /// Too many orders wait.
    #[error("the DNS proxy is busy")]
    Busy,
    /// Not a name in wire format.
    #[error("not a DNS name in wire format")]
    Name,
    /// It had no room, or the decision forbade the question.
    #[error("the DNS proxy dropped the question")]
    Dropped,
}

/// Changes the settings of a running proxy and asks through it. The proxy ends when [`crate::Proxy::run`] is dropped.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) orders: mpsc::Sender<Order>,
    #[cfg(feature = "encrypted")]
    pub(crate) metrics: std::sync::Arc<crate::Metrics>,
}

impl Handle {
    /// Replaces the settings; waits for room in the queue, not until it has happened.
    pub async fn update(&self, settings: Settings) -> Result<(), HandleError> {
        let order = Order::Update(Box::new(settings));
        self.orders.send(order).await.map_err(|_| HandleError::Gone)
    }

    /// Asks as a client would, but not the cache; the answer has passed [`crate::Decision::release`] and is in the
    /// cache. `name` in wire format. The result is a whole message, SERVFAIL if nobody answered.
    ///
    /// Without configured upstreams it asks the resolver that answered the same question last, else the one that
    /// answered any.
    pub async fn lookup(&self, name: &[u8], kind: u16) -> Result<Vec<u8>, HandleError> {
        if crate::wire::name_end(name, 0) != Some(name.len()) {
            return Err(HandleError::Name);
        }
        let (reply, answer) = oneshot::channel();
        let order = Order::Lookup { name: name.to_vec(), kind, reply };
        self.orders.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => HandleError::Busy,
            mpsc::error::TrySendError::Closed(_) => HandleError::Gone,
        })?;
        answer.await.map_err(|_| HandleError::Dropped)
    }
}
