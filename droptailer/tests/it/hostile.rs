//! Clients that are no clients, and certificates that change.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fw_droptailer::tls::Files;
use fw_droptailer::wire::Batch;
use fw_testkit::WorkDir;
use hyper::body::{Body, Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::rig::{PATIENCE, Server, certificates, connect, line, record, runtime};
use crate::server::Call;

const CONNECTIONS: &str = "droptailer_server_connections_total";

/// Whether a TLS client gets so far that the server answers a request.
async fn is_served(server: &Server, tls: ClientConfig) -> bool {
    match server.client_with(tls).await {
        Ok(mut client) => client.push(record(1)).await.is_ok(),
        Err(_) => false,
    }
}

#[test]
fn without_a_certificate_of_the_authority_nobody_is_served() {
    let server = Server::start("strangers", &[]);
    let own = server.client_files();
    let others = WorkDir::new("other-authority").unwrap();
    certificates(others.path());
    let others = Files::of(&others.path().join("client"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&fs::read(&own.authority).unwrap()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let none = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let of_other = Files { authority: own.authority.clone(), ..others }.client().unwrap();
    // A certificate for servers is none for clients.
    let of_server = Files::of(&server.directory.path().join("server")).client().unwrap();
    runtime().block_on(async {
        for tls in [none, of_other, of_server] {
            assert!(!is_served(&server, tls).await);
        }
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 255, 255, 0, 0, 0], &[0; 70_000]] {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // It may be refused before all of it is sent.
            let _ = stream.write_all(garbage);
            let _ = stream.read_to_end(&mut Vec::new());
        }
        server.metric_reaches(&format!("{CONNECTIONS}{{outcome=\"tls\"}}"), 5);
        // The client, for its part, talks to no server of another authority.
        let distrusting =
            Files { authority: Files::of(own.authority.parent().unwrap()).certificate, ..own.clone() };
        assert!(connect(Arc::new(distrusting.client().unwrap()), server.address).await.is_err());
        assert!(is_served(&server, own.client().unwrap()).await);
    });
    assert_eq!(server.lines(1), [line(1)]);
}

#[test]
fn who_is_slow_is_let_go_and_who_comes_too_often_waits() {
    let server = Server::start("slow", &["--connections-per-address", "4"]);
    let silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    server.metric_reaches("droptailer_server_connections", 4);
    for _ in 0..20 {
        let mut refused = TcpStream::connect(server.address).unwrap();
        refused.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0);
    }
    server.metric_reaches(&format!("{CONNECTIONS}{{outcome=\"address-bound\"}}"), 20);
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
    assert_eq!(server.metric(&format!("{CONNECTIONS}{{outcome=\"slow\"}}")), 4);
    runtime().block_on(async {
        // After the handshake nothing.
        let mut stream = server.tls().await;
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();
        // Half a request: the others of the same connection go on.
        let (mut half, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(server.tls().await))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::post("http://droptailer/proto.Droptailer/Push")
            .header("content-type", "application/grpc")
            .body(Half(true))
            .unwrap();
        let response = timeout(PATIENCE, half.send_request(request)).await.unwrap().unwrap();
        // DEADLINE_EXCEEDED.
        assert_eq!(response.headers()["grpc-status"], "4");
        let mut client = server.client().await;
        client.push(record(1)).await.unwrap();
    });
    assert_eq!(server.lines(1), [line(1)]);
}

/// A body that begins and never ends.
struct Half(bool);

impl Body for Half {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match std::mem::take(&mut self.0) {
            true => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]))))),
            false => Poll::Pending,
        }
    }
}

#[test]
fn who_reads_no_acknowledgements_is_read_no_more_and_the_others_are() {
    let server = Server::start("deaf", &[]);
    runtime().block_on(async {
        let mut client = server.client().await;
        let call = Call::open(&mut client).await;
        let mut number = 1;
        // Until the windows of both sides are full, or one of them has enough of unread frames.
        loop {
            let batch = Batch { session: vec![1; 16], first: number, drops: vec![record(number)] };
            match timeout(Duration::from_secs(2), call.batches.send(batch)).await {
                Ok(Ok(())) => number += 1,
                Ok(Err(_)) | Err(_) => break,
            }
            assert!(number < 1_000_000, "somebody has no bound");
        }
        let mut other = server.client().await;
        timeout(PATIENCE, other.push(record(0))).await.unwrap().unwrap();
    });
    server.metric_reaches("droptailer_server_printed_lines_total", 2);
}

#[test]
fn certificates_are_used_as_they_change_and_broken_ones_never() {
    let mut server = Server::start("renewed", &[]);
    let directory = server.directory.path().to_owned();
    let old = server.client_files().client().unwrap();
    let reloads =
        |outcome: &str| format!("droptailer_server_certificate_reloads_total{{outcome=\"{outcome}\"}}");
    let runtime = runtime();
    runtime.block_on(async {
        let mut client = server.client().await;
        let mut call = Call::open(&mut client).await;
        call.send(1, 1, vec![record(1)]).await;
        assert_eq!((call.next().await.unwrap(), call.next().await.unwrap()), (Some(0), Some(2)));

        // Half a file, as an editor leaves it: nothing changes.
        let certificate = directory.join("server/tls.crt");
        let whole = fs::read(&certificate).unwrap();
        fs::write(&certificate, &whole[..whole.len() / 2]).unwrap();
        server.metric_reaches(&reloads("failed"), 1);
        assert!(is_served(&server, old.clone()).await);
        fs::write(&certificate, &whole).unwrap();
        server.metric_reaches(&reloads("loaded"), 1);
        // Those who are connected are asked to come again: what let them in may be gone.
        assert_eq!(call.next().await.unwrap(), None);

        // Another authority.
        for file in ["ca.crt", "ca.key"] {
            fs::remove_file(directory.join(file)).unwrap();
        }
        let output =
            crate::rig::droptailer(&["certs", "--renew", "--directory", directory.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        let new = server.client_files();
        let mut tries = 0;
        while !is_served(&server, new.client().unwrap()).await {
            tries += 1;
            assert!(tries < 600);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(!is_served(&server, old).await);
    });
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait().success());
}
