//! The body of an answer, which a rule or a test can end early.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Call, Ending, Shared, Stream};

/// An ERROR event as the API server sends it when a watch is older than what it remembers.
const GONE: &[u8] = br#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (2)","reason":"Expired","code":410}}
"#;
const HALF: &[u8] = br#"{"type":"MODIFIED","object":{"apiVersion":"metal-stack.io/v1","kind":"#;

/// What the client is sent.
#[derive(Debug)]
pub(super) enum Answer {
    /// Of this proxy itself.
    Own(Option<Bytes>),
    /// Of the API server.
    Passed(Box<Passed>),
}

#[derive(Debug)]
pub(super) struct Passed {
    body: Incoming,
    shared: Arc<Shared>,
    call: u64,
    endings: UnboundedReceiver<Ending>,
    planned: Option<(usize, Ending)>,
    then: Then,
}

/// What the next poll does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Pass,
    Corrupt,
    End,
    Flush,
    Break,
}

impl Answer {
    pub(super) fn passed(
        body: Incoming,
        shared: &Arc<Shared>,
        call: &Call,
        planned: Option<(usize, Ending)>,
    ) -> Self {
        let (end, endings) = unbounded_channel();
        shared.lock().streams.push(Stream { call: call.clone(), end });
        let shared = Arc::clone(shared);
        Self::Passed(Box::new(Passed { body, shared, call: call.id, endings, planned, then: Then::Pass }))
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        self.shared.lock().streams.retain(|stream| stream.call.id != self.call);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Passed(passed) => passed.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Passed(passed) => passed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Passed(passed) if passed.planned.is_none() => passed.body.size_hint(),
            Self::Passed(_) => SizeHint::default(),
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>>;

impl Passed {
    fn poll(&mut self, context: &mut Context<'_>) -> Polled {
        match self.then {
            Then::End => return Poll::Ready(None),
            Then::Flush => {
                // What was written before an error is lost unless it is flushed, which happens when nothing more is there.
                self.then = Then::Break;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Then::Break => return broken(),
            Then::Pass | Then::Corrupt => {}
        }
        if let Some((0, ending)) = self.planned {
            self.planned = None;
            if let Some(frame) = self.end(ending) {
                return frame;
            }
        }
        if let Poll::Ready(Some(ending)) = self.endings.poll_recv(context)
            && let Some(frame) = self.end(ending)
        {
            return frame;
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let Some(Ok(frame)) = frame else {
            return Poll::Ready(frame.map(|result| result.map_err(Into::into)));
        };
        if let Some((after, _)) = &mut self.planned {
            *after -= 1;
        }
        match frame.into_data() {
            Ok(data) => Poll::Ready(Some(Ok(Frame::data(self.touch(data))))),
            Err(trailers) => Poll::Ready(Some(Ok(trailers))),
        }
    }

    /// Begins an ending; none when the next piece of the body is what changes.
    fn end(&mut self, ending: Ending) -> Option<Polled> {
        let last = |bytes| Some(Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(bytes))))));
        match ending {
            Ending::Gone => {
                self.then = Then::End;
                last(GONE)
            }
            Ending::Truncated => {
                self.then = Then::Flush;
                last(HALF)
            }
            Ending::Closed => {
                self.then = Then::End;
                Some(Poll::Ready(None))
            }
            Ending::Corrupted => {
                self.then = Then::Corrupt;
                None
            }
        }
    }

    fn touch(&mut self, data: Bytes) -> Bytes {
        if self.then != Then::Corrupt || data.is_empty() {
            return data;
        }
        self.then = Then::Pass;
        let mut bytes = data.to_vec();
        let middle = bytes.len() / 2;
        // No byte of UTF-8.
        bytes[middle] = 0xff;
        bytes.into()
    }
}

fn broken() -> Polled {
    Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::ConnectionReset).into())))
}
