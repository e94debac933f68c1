//! A stream whose bytes stand still while the network is a black hole.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Whether bytes stand still, for all streams of a proxy.
#[derive(Debug, Default)]
pub(super) struct Hole {
    state: Mutex<(bool, Vec<Waker>)>,
}

impl Hole {
    pub(super) fn set(&self, still: bool) {
        let waiting = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = still;
            std::mem::take(&mut state.1)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.0 {
            return Poll::Ready(());
        }
        if !state.1.iter().any(|waker| waker.will_wake(context.waker())) {
            state.1.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Returns when bytes may move.
    pub(super) async fn is_over(&self) {
        std::future::poll_fn(|context| self.poll(context)).await;
    }
}

/// A stream behind the hole.
#[derive(Debug)]
pub(super) struct Gate<S> {
    stream: S,
    hole: Arc<Hole>,
}

impl<S> Gate<S> {
    pub(super) fn new(stream: S, hole: Arc<Hole>) -> Self {
        Self { stream, hole }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.hole.poll(context));
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.hole.poll(context));
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.hole.poll(context));
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.hole.poll(context));
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
