//! Answers that leave together.

use std::cell::{Cell, RefCell};

use crate::inbox::BATCH;
use crate::sockets::{Path, UdpListener};

/// One answer and its way.
#[derive(Debug)]
pub(crate) struct Letter {
    /// Number of the listener.
    pub(crate) listener: usize,
    pub(crate) path: Path,
    pub(crate) message: Vec<u8>,
}

/// Answers that wait until the batch that they are part of is over; outside of a batch none does.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    letters: RefCell<Vec<Letter>>,
    open: Cell<bool>,
}

impl Outbox {
    /// Keeps what is sent from now on until [`Outbox::send`]. Nothing may be awaited in between.
    pub(crate) fn hold(&self) {
        self.open.set(true);
    }

    /// Whether what is to be sent waits.
    pub(crate) fn waits(&self) -> bool {
        self.open.get()
    }

    /// Takes one; whether it is time to send.
    pub(crate) fn put(&self, letter: Letter) -> bool {
        let mut letters = self.letters.borrow_mut();
        letters.push(letter);
        !self.open.get() || letters.len() >= BATCH
    }

    /// Sends all; says how many the kernel did not take.
    pub(crate) fn send(&self, listeners: &[UdpListener]) -> usize {
        self.letters
            .borrow_mut()
            .drain(..)
            .map(|letter| {
                listeners.get(letter.listener).map(|socket| socket.send(&letter.message, &letter.path))
            })
            .filter(|sent| matches!(sent, Some(Err(_))))
            .count()
    }

    /// Ends what [`Outbox::hold`] began.
    pub(crate) fn release(&self) {
        self.open.set(false);
    }
}
