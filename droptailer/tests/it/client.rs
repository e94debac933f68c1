//! `droptailer client` before servers that are not ours: one that knows no stream, and one that goes away.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fw_droptailer::tls::Files;
use fw_droptailer::wire::{Ack, Batch, Drop, Droptailer, DroptailerServer, Void};
use fw_testkit::topology::Lab;
use fw_testkit::traffic::craft::{Crafted, Tag};
use fw_testkit::traffic::inject::Injector;
use fw_testkit::{Process, WorkDir, nft};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::{Service as _, async_trait};
use tonic::{Request, Response, Status, Streaming};

const BINARY: &str = env!("CARGO_BIN_EXE_droptailer");
const PATIENCE: Duration = Duration::from_secs(20);

/// What today's server does: one call, and it dislikes some records.
#[derive(Clone, Default)]
struct Old {
    records: Arc<Mutex<Vec<BTreeMap<String, String>>>>,
}

#[async_trait]
impl Droptailer for Old {
    async fn push(&self, request: Request<Drop>) -> Result<Response<Void>, Status> {
        let fields = request.into_inner().fields;
        if fields.get("DPT").is_some_and(|port| port == "13") {
            return Err(Status::invalid_argument("an unlucky port"));
        }
        let mut records = self.records.lock().unwrap();
        // Once away, and back at the next attempt.
        if records.len() == 7 && !records.iter().any(|record| record.contains_key("away")) {
            records.last_mut().unwrap().insert("away".to_owned(), String::new());
            return Err(Status::unavailable("later"));
        }
        records.push(fields);
        Ok(Response::new(Void {}))
    }

    type StreamStream = tonic::codegen::tokio_stream::Empty<Result<Ack, Status>>;

    async fn stream(&self, _: Request<Streaming<Batch>>) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("unknown method Stream"))
    }
}

/// Serves in the namespace of the calling thread, on a thread of its own, for as long as the process lives.
fn serve(files: &Files, server: Old) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let tls = TlsAcceptor::from(Arc::new(files.server().unwrap()));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = tls.accept(stream).await else { continue };
                let service = DroptailerServer::new(server.clone());
                let answer = service_fn(move |request| {
                    let mut service = service.clone();
                    async move { Ok::<_, Infallible>(service.call(request).await.unwrap()) }
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), answer));
            }
        });
    });
    address
}

#[test]
fn a_server_without_the_stream_gets_each_record_once_and_in_order_and_what_it_refuses_is_counted() {
    let lab = Lab::standard("old-server").unwrap();
    nft::load(&lab.firewall, crate::rig::RULES).unwrap();
    let directory = WorkDir::new("old-server").unwrap();
    let made =
        std::process::Command::new(BINARY).args(["certs", "--directory"]).arg(directory.path()).output();
    assert!(made.unwrap().status.success());
    let server = Old::default();
    let files = Files::of(&directory.path().join("server"));
    let address = lab.firewall.run(|| serve(&files, server.clone())).unwrap();
    let mut command = lab.firewall.command(BINARY);
    command.args(["client", "--server-address", &address.to_string()]);
    for (flag, file) in
        [("--ca-certificate", "ca.crt"), ("--client-certificate", "tls.crt"), ("--client-key", "tls.key")]
    {
        command.arg(flag).arg(directory.path().join("client").join(file));
    }
    command.arg("--socket").arg(directory.path().join("socket"));
    command.arg("--control-socket").arg(directory.path().join("none"));
    let client = Process::spawn(command).unwrap();
    client.wait_for_line("listening to NFLOG", PATIENCE).unwrap();
    let mut injector = Injector::on(lab.cluster()).unwrap();
    for port in 1..=20 {
        let packet =
            Crafted::udp("10.0.16.2:5000".parse().unwrap(), SocketAddr::new([1, 2, 3, 4].into(), port));
        injector.send(&packet.encode(Tag { run: 0, id: 0 }).unwrap()).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let records = server.records.lock().unwrap().clone();
        let lost = records.iter().find(|record| record["ACTION"] == "lost");
        if let (20, Some(lost)) = (records.len(), lost) {
            assert_eq!((lost["CAUSE"].as_str(), lost["COUNT"].as_str()), ("refused", "1"));
            let ports: Vec<&str> =
                records.iter().filter_map(|record| Some(record.get("DPT")?.as_str())).collect();
            let expected: Vec<String> =
                (1..=20).filter(|port| *port != 13).map(|port: u16| port.to_string()).collect();
            assert_eq!(ports, expected);
            return;
        }
        assert!(Instant::now() < deadline, "{records:?}\n{}", client.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    }
}
