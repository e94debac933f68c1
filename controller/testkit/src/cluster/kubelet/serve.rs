//! Connections of the API server, and the logs that it asks for.

use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use super::logs::Wanted;
use super::{Shared, lock};
use crate::process::Output;

/// Where a container's log is.
pub(super) fn path(namespace: &str, pod: &str, container: &str) -> String {
    format!("/containerLogs/{namespace}/{pod}/{container}")
}

/// Serves until it is stopped; what it has spawned ends with its runtime.
pub(super) async fn run(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    mut stop: oneshot::Receiver<()>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stop => return,
        };
        let Ok((stream, _)) = stream else { continue };
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        // A connection's errors are its client's to see.
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await.ok()?;
            let service = service_fn(move |request| {
                let response = answer(&request, &shared);
                async { response }
            });
            let http = hyper::server::conn::http1::Builder::new();
            http.serve_connection(TokioIo::new(stream), service).await.ok()
        });
    }
}

fn answer(request: &Request<Incoming>, shared: &Shared) -> Result<Response<Answer>, hyper::http::Error> {
    let uri = request.uri();
    lock(&shared.asked).push(format!("{} {uri}", request.method()));
    let refuse = |code: StatusCode, why: String| {
        Response::builder().status(code).body(Answer::Whole(Some(Bytes::from(why))))
    };
    if request.method() != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET".to_owned());
    }
    let Some(log) = lock(&shared.containers).get(uri.path()).cloned() else {
        return refuse(StatusCode::NOT_FOUND, format!("{} is nothing on this node", uri.path()));
    };
    match Wanted::new(uri.query().unwrap_or_default(), SystemTime::now()) {
        Ok(wanted) => {
            // The API server takes each piece before the next one is made.
            let (pieces, body) = mpsc::channel(1);
            tokio::spawn(send(log, wanted, pieces));
            Response::builder().header(CONTENT_TYPE, "text/plain").body(Answer::Live(body))
        }
        Err(error) => refuse(StatusCode::BAD_REQUEST, format!("{error:#}")),
    }
}

/// Sends what is there and, to who follows, what comes, until the container ends or nobody reads on.
async fn send(log: Output, wanted: Wanted, pieces: mpsc::Sender<Bytes>) {
    let mut changes = log.changes();
    let (there, _) = log.since(0);
    let mut next = wanted.first(there.len());
    loop {
        let (lines, ended) = log.since(next);
        next += lines.len();
        let text: String = lines.iter().filter_map(|line| wanted.show(line)).collect();
        if !text.is_empty() && pieces.send(text.into()).await.is_err() {
            return;
        }
        if ended || !wanted.follow {
            return;
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = pieces.closed() => return,
        }
    }
}

/// What the API server is sent.
enum Answer {
    Whole(Option<Bytes>),
    Live(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut *self {
            Self::Whole(bytes) => bytes.take(),
            Self::Live(pieces) => std::task::ready!(pieces.poll_recv(context)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
