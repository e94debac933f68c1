//! An answer waits for the decision, and leaves.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::cache::Hit;
use crate::decision::{Decision, Release};
use crate::engine::Engine;
use crate::flight::{Identity, To, Waiters};
use crate::metrics::Outcome;
use crate::wire::{self, Answer};

/// An answer and those who wait for it.
#[derive(Debug)]
pub(crate) struct Ready {
    message: Vec<u8>,
    answer: Answer,
    age: u32,
    identity: Identity,
    question_end: usize,
    waiters: Waiters,
    outcome: Outcome,
}

impl Ready {
    pub(crate) fn new(
        (message, answer): (Vec<u8>, Answer),
        identity: Identity,
        question_end: usize,
        waiters: Waiters,
    ) -> Self {
        Self { message, answer, age: 0, identity, question_end, waiters, outcome: Outcome::Forwarded }
    }

    pub(crate) fn from_cache(hit: Hit, identity: Identity, question_end: usize, waiters: Waiters) -> Self {
        let mut message = hit.message;
        wire::adopt(&mut message, identity.question(question_end));
        let (answer, age) = (hit.answer, hit.age);
        Self { message, answer, age, identity, question_end, waiters, outcome: Outcome::Cached }
    }
}

impl<D: Decision> Engine<D> {
    /// Asks the decision for an answer that was there at `began`. One that is ready at once costs neither a task nor a timer.
    pub(crate) fn release(self: &Rc<Self>, ready: Ready, began: Instant) {
        let Ready { message, answer, age, identity, question_end, waiters, outcome } = ready;
        let decision = Rc::clone(&self.decision);
        let mut asking = Box::pin(async move {
            let release = decision.release(&message, age).await;
            (message, release)
        });
        let leaving = Leaving { answer, age, identity, question_end, waiters, outcome, began };
        match poll_once(asking.as_mut()) {
            Poll::Ready((message, release)) => self.leave(message, release, leaving),
            Poll::Pending => {
                let engine = Rc::clone(self);
                let deadline = self.settings().hold_deadline;
                tokio::task::spawn_local(async move {
                    match tokio::time::timeout(deadline, asking).await {
                        Ok((message, release)) => engine.leave(message, release, leaving),
                        Err(_) => {
                            engine.metrics.hold_latency.record(began.elapsed());
                            engine.settle_failed(&leaving.identity, leaving.waiters, Outcome::HoldDeadline);
                        }
                    }
                });
            }
        }
    }

    fn leave(&self, mut message: Vec<u8>, release: Release, leaving: Leaving) {
        self.metrics.hold_latency.record(leaving.began.elapsed());
        let Release::Send { ttl_max } = release else {
            return self.settle_failed(&leaving.identity, leaving.waiters, Outcome::Held);
        };
        // Neither fails: the records were walked when the answer came.
        if leaving.age > 0 {
            let _ = fw_names::ttl::age_ttls(&mut message, leaving.age);
        }
        if let Some(max) = ttl_max {
            let _ = fw_names::ttl::lower_ttls(&mut message, max);
        }
        wire::adopt(&mut message, leaving.identity.question(leaving.question_end));
        for waiter in leaving.waiters.more {
            let answer =
                self.fitting(&message, &leaving.answer, &waiter.to).unwrap_or_else(|| message.clone());
            self.settle(waiter, answer, Outcome::Joined);
        }
        let first = leaving.waiters.first;
        let answer = self.fitting(&message, &leaving.answer, &first.to).unwrap_or(message);
        self.settle(first, answer, leaving.outcome);
    }

    /// The answer cut short, if it must be.
    fn fitting(&self, message: &[u8], answer: &Answer, to: &To) -> Option<Vec<u8>> {
        let To::Udp { size, .. } = to else { return None };
        if message.len() <= *size {
            return None;
        }
        self.metrics.truncated.add();
        Some(answer.cut(message, *size))
    }
}

/// What waits beside the message while the decision has it.
struct Leaving {
    answer: Answer,
    age: u32,
    identity: Identity,
    question_end: usize,
    waiters: Waiters,
    outcome: Outcome,
    began: Instant,
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    // A future that is not ready is polled again, with a waker of its own, by the task it is then given.
    future.poll(&mut Context::from_waker(Waker::noop()))
}
