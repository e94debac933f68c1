//! Connections of the proxy, and what becomes of each request.

use std::future::Future;
use std::io;
use std::sync::Arc;

use anyhow::Result;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING,
};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::body::Answer;
use super::gate::Gate;
use super::{Call, Control, Ending, Fault, Mode, Shared, tls};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The other side, and what every connection needs.
#[derive(Clone)]
pub(super) struct Upstream {
    pub(super) connector: TlsConnector,
    pub(super) acceptor: TlsAcceptor,
    pub(super) port: u16,
    pub(super) shared: Arc<Shared>,
}

/// Runs until the orders end, in a `LocalSet`; what it has spawned ends with that.
pub(super) async fn run(upstream: Upstream, mut orders: UnboundedReceiver<Control>) {
    let mut listener: Option<TcpListener> = None;
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Control::Listen(socket)) => listener = TcpListener::from_std(socket).ok(),
                Some(Control::Refuse(done)) => {
                    listener = None;
                    // Nobody waits for it any more: it is done all the same.
                    let _ = done.send(());
                }
                None => return,
            },
            Some(stream) = accept(listener.as_ref()) => {
                let upstream = upstream.clone();
                tokio::task::spawn_local(upstream.until_cut(stream));
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

impl Upstream {
    async fn until_cut(self, stream: TcpStream) {
        let mut cuts = self.shared.cuts.subscribe();
        tokio::select! {
            // A connection's errors are its client's to see.
            _ = self.connection(stream) => {}
            _ = cuts.changed() => {}
        }
    }

    async fn connection(&self, stream: TcpStream) -> Result<(), Error> {
        stream.set_nodelay(true)?;
        self.shared.hole.is_over().await;
        let mode = self.shared.lock().mode;
        if mode == Mode::Passthrough {
            let mut client = Gate::new(stream, Arc::clone(&self.shared.hole));
            let mut server = TcpStream::connect(("127.0.0.1", self.port)).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            return Ok(());
        }
        // The first byte of a TLS record of kind handshake (RFC 8446 section 5.1); no method of HTTP begins with it.
        let mut first = [0];
        let read = stream.peek(&mut first).await?;
        let client = Gate::new(stream, Arc::clone(&self.shared.hole));
        if read == 1 && first[0] == 0x16 {
            let client = self.acceptor.accept(client).await?;
            self.serve(client).await
        } else {
            self.serve(client).await
        }
    }

    async fn serve(&self, client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), Error> {
        // One connection of ours for each of theirs: a watch has it to itself, as it has theirs.
        let server = Arc::new(Mutex::new(None));
        let service = service_fn(|request| {
            let server = Arc::clone(&server);
            async move { self.answer(request, &server).await }
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await?;
        Ok(())
    }

    /// An error closes the client's connection.
    async fn answer(&self, request: Request<Incoming>, server: &Server) -> Result<Response<Answer>, Error> {
        let (call, fault) = self.shared.arrived(&request);
        let mut planned = None;
        match fault {
            None => {}
            Some(Fault::Status(code)) => return self.own(&call, code, None),
            Some(Fault::TooManyRequests(seconds)) => return self.own(&call, 429, Some(seconds)),
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::Hang) => return hang().await,
            Some(Fault::LoseAnswer) => {
                self.pass(request, server).await?;
                return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
            }
            Some(Fault::Stream { after, ending }) => planned = Some((after, ending)),
        }
        let mut response = self.pass(request, server).await?;
        self.shared.answered(&call, response.status().as_u16(), false);
        response.headers_mut().remove(CONNECTION);
        response.headers_mut().remove(TRANSFER_ENCODING);
        if matches!(planned, Some((_, Ending::Gone | Ending::Truncated | Ending::Closed))) {
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        Ok(response.map(|body| Answer::passed(body, &self.shared, &call, planned)))
    }

    async fn pass(
        &self,
        mut request: Request<Incoming>,
        server: &Server,
    ) -> Result<Response<Incoming>, Error> {
        request.headers_mut().remove(CONNECTION);
        request.headers_mut().insert(HOST, HeaderValue::from_static(tls::SERVER_NAME));
        let mut server = server.lock().await;
        let alive = match &mut *server {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !alive {
            *server = Some(self.connect().await?);
        }
        let Some(sender) = &mut *server else { return Err("no connection".into()) };
        Ok(sender.send_request(request).await?)
    }

    async fn connect(&self) -> Result<SendRequest<Incoming>, Error> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(tls::server_name()?, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with its sender, and its own end is seen by the sender.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// A Status as the API server words it.
    fn own(&self, call: &Call, code: u16, retry_after: Option<u32>) -> Result<Response<Answer>, Error> {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden by the test"),
            404 => ("NotFound", "not found, says the test"),
            409 => {
                ("Conflict", "the object has been modified; please apply your changes to the latest version")
            }
            410 => ("Expired", "The provided continue parameter is too old, or the resource version is"),
            429 => ("TooManyRequests", "too many requests, please try again later"),
            503 => ("ServiceUnavailable", "apiserver is shutting down"),
            504 => ("Timeout", "request timed out"),
            _ => ("InternalError", "an error on the server, says the test"),
        };
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        });
        self.shared.answered(call, code, true);
        let mut response = Response::builder().status(code).header(CONTENT_TYPE, "application/json");
        if let Some(seconds) = retry_after {
            response = response.header(RETRY_AFTER, seconds);
        }
        Ok(response.body(Answer::Own(Some(Bytes::from(body.to_string()))))?)
    }
}

type Server = Mutex<Option<SendRequest<Incoming>>>;

fn hang<T>() -> impl Future<Output = T> {
    std::future::pending()
}

impl Shared {
    fn arrived(&self, request: &Request<Incoming>) -> (Call, Option<Fault>) {
        let mut call = Call::new(request.method(), request.uri(), request.headers());
        let mut state = self.lock();
        state.next_call += 1;
        call.id = state.next_call;
        state.calls.push(call.clone());
        let rule = state.rules.iter_mut().find(|rule| rule.hits < rule.times && (rule.applies)(&call));
        let fault = rule.map(|rule| {
            rule.hits += 1;
            rule.fault
        });
        (call, fault)
    }

    fn answered(&self, call: &Call, code: u16, injected: bool) {
        if let Some(logged) = self.lock().calls.iter_mut().rev().find(|logged| logged.id == call.id) {
            logged.code = Some(code);
            logged.injected = injected;
        }
    }
}
