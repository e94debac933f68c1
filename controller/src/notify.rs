//! The service manager is told on a thread of its own: its socket blocks when nobody reads it, and that must never
//! stop the firewall.

use std::sync::mpsc::{SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::{debug, info};

use crate::reconcile::View;
use crate::status;

/// Messages that may wait; more than that says that nobody reads.
const QUEUE: usize = 64;
/// How long the last message may take.
const LAST: Duration = Duration::from_secs(1);

enum Message {
    Ready,
    Status(String),
    Watchdog,
    /// The last one; answered when it was sent.
    Stopping(std::sync::mpsc::Sender<()>),
}

/// Sends to the service manager without waiting for it.
#[derive(Clone)]
pub struct ServiceManager {
    queue: SyncSender<Message>,
}

/// What the service manager was told of the firewall's state.
#[derive(Default)]
pub struct Told {
    ready: bool,
    headline: String,
}

impl ServiceManager {
    /// Starts the thread; it ends with the process.
    pub fn start() -> Self {
        let (queue, messages) = sync_channel(QUEUE);
        std::thread::spawn(move || {
            for message in messages {
                let sent = match &message {
                    Message::Ready => sd_notify::notify(&[NotifyState::Ready]),
                    Message::Status(text) => sd_notify::notify(&[NotifyState::Status(text)]),
                    Message::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
                    Message::Stopping(_) => sd_notify::notify(&[NotifyState::Stopping]),
                };
                if let Err(error) = sent {
                    debug!("the service manager was not told: {error}");
                }
                if let Message::Stopping(done) = message {
                    done.send(()).ok();
                }
            }
        });
        Self { queue }
    }

    /// Tells what changed. READY=1 follows the first committed ruleset of any kind, or the dry run that installs none.
    pub fn tell(&self, view: &View, told: &mut Told) {
        let headline = status::headline(view);
        if headline != told.headline {
            info!("{headline}");
            told.headline.clone_from(&headline);
            self.send(Message::Status(headline));
        }
        if !told.ready && (status::is_enforcing(view) || view.dry_run.is_some()) {
            told.ready = self.send(Message::Ready);
        }
    }

    /// A sign of life.
    pub fn beat(&self) {
        self.send(Message::Watchdog);
    }

    /// Says that we stop; waits a moment for it to be said.
    pub fn stopping(&self) {
        let (sent, done) = channel();
        if self.send(Message::Stopping(sent)) {
            done.recv_timeout(LAST).ok();
        }
    }

    fn send(&self, message: Message) -> bool {
        match self.queue.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                debug!("the service manager does not read what it is told");
                false
            }
        }
    }
}
