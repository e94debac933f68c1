//! `droptailer server`: takes records from firewalls and prints a line for each.
//!
//! One thread listens, speaks TLS and gRPC; another writes. A record is acknowledged when its line is written, so a
//! standard output that blocks holds up those who send and loses nothing.

mod connection;
mod door;
mod http;
pub mod metrics;
pub mod printer;
mod service;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::tls::{Files, Look, Reloading};
use crate::wire::PORT;
use connection::Shared;
use door::Door;
use metrics::Metrics;
use printer::Printer;

/// Between two looks at the certificates.
const LOOK: Duration = Duration::from_secs(2);
/// For connections to end, and then for lines to be written, when the server ends.
const GRACE: Duration = Duration::from_secs(10);

/// How the server is started. The environment is that of today's server.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Port to listen on, on all addresses
    #[arg(long, env = "SERVER_PORT", default_value_t = PORT)]
    pub port: u16,
    /// Address to listen on, in place of all
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
    /// The server's certificate
    #[arg(long, env = "SERVER_CERTIFICATE", value_name = "FILE", default_value = "tls.crt")]
    pub certificate: PathBuf,
    /// The server's key
    #[arg(long, env = "SERVER_KEY", value_name = "FILE", default_value = "tls.key")]
    pub key: PathBuf,
    /// Who signs the certificates of clients
    #[arg(long, env = "SERVER_CA_CERTIFICATE", value_name = "FILE", default_value = "ca.crt")]
    pub ca_certificate: PathBuf,
    /// Where /metrics and /healthz are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:8080")]
    pub metrics_addr: SocketAddr,
    /// Limits of what others can take
    #[command(flatten)]
    pub limits: Limits,
}

/// How much others can take.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Limits {
    /// Connections at one time
    #[arg(long, value_name = "COUNT", default_value_t = 512)]
    pub connections: usize,
    /// Connections of one address at one time
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    pub connections_per_address: usize,
    /// Seconds for a TLS handshake, and for a record to arrive that was begun
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub patience: u16,
    /// Clients whose last record is remembered, so that none is printed twice
    #[arg(long, value_name = "COUNT", default_value_t = 4096)]
    pub sessions: usize,
}

impl Limits {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience.into())
    }
}

/// Serves until SIGTERM or SIGINT.
pub fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(options));
    // What is left over waits for peers that were given their time already.
    runtime.shutdown_background();
    ended
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let mut stop = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let files =
        Files { authority: options.ca_certificate, certificate: options.certificate, key: options.key };
    let tls = Reloading::open(files, Files::server).context("cannot serve")?;
    let metrics = Arc::new(Metrics::new()?);
    // Not `io::stdout()`: that one has a buffer which it loses the end of when writing fails.
    let output = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let printer = Printer::start(output, options.limits.sessions, Arc::clone(&metrics))?;
    let listener = listen(options.address, options.port).await?;
    info!("listening on {}", listener.local_addr()?);
    let pages = http::listen(options.metrics_addr).await?;
    info!("metrics on {}", pages.local_addr()?);
    tokio::spawn(http::serve(pages, Arc::clone(&metrics)));

    let (closing, closed) = watch::channel(0_u64);
    let shared = Shared {
        metrics: Arc::clone(&metrics),
        printer: printer.handle(),
        patience: options.limits.patience(),
        closing: closed,
    };
    let mut door = Door::new(options.limits, Arc::clone(&metrics));
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if let Some(place) = door.enter(peer.ip().to_canonical()) {
                        tokio::spawn(connection::serve(stream, peer, tls.current(), shared.clone(), place));
                    }
                }
                // Out of files, above all; those who hold them end some time.
                Err(error) => {
                    warn!("cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = look.tick() => match tls.check() {
                Look::Same => {}
                Look::Loaded => {
                    metrics.reloads.with_label_values(&["loaded"]).inc();
                    info!("certificates are loaded again; clients are asked to connect again");
                    closing.send_modify(|generation| *generation += 1);
                }
                Look::Failed(error) => {
                    metrics.reloads.with_label_values(&["failed"]).inc();
                    warn!("certificates cannot be loaded, the former ones are used: {:#}", anyhow::Error::from(error));
                }
            },
            _ = stop.0.recv() => break,
            _ = stop.1.recv() => break,
        }
    }
    info!("ending");
    drop(listener);
    closing.send_modify(|generation| *generation += 1);
    drop(shared);
    if tokio::time::timeout(GRACE, door.empty()).await.is_err() {
        warn!("not all connections ended");
    }
    if !printer.end(GRACE / 2).await {
        warn!("standard output takes nothing; what is not written was not acknowledged");
    }
    Ok(())
}

async fn listen(address: Option<IpAddr>, port: u16) -> anyhow::Result<TcpListener> {
    if let Some(address) = address {
        return TcpListener::bind((address, port))
            .await
            .with_context(|| format!("cannot listen on {address}:{port}"));
    }
    // Linux takes IPv4 on it too (net.ipv6.bindv6only); where there is no IPv6 at all, IPv4 alone.
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("cannot listen on port {port}")),
    }
}
