//! The proxy as the controller sees it.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::{Config, OriginalDestination, Settings};
use crate::decision::Decision;
use crate::handle::{Handle, ORDERS, Order};
use crate::metrics::Metrics;
use crate::sockets::{UdpListener, tcp_listener};

/// How often a free port is looked for when any will do.
const PORT_ATTEMPTS: usize = 64;

/// A bound proxy that does not answer yet. It can be made on any thread.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    settings: Settings,
    metrics: Arc<Metrics>,
    handle: Handle,
    orders: mpsc::Receiver<Order>,
}

impl Proxy {
    /// Opens the sockets, UDP and TCP on one port for each address.
    ///
    /// # Errors
    /// Those of the kernel, as when the port is taken.
    pub fn bind(config: &Config) -> io::Result<Self> {
        let (port, udp, tcp) = open(config)?;
        let (sender, orders) = mpsc::channel(ORDERS);
        Ok(Self {
            port,
            udp,
            tcp,
            settings: config.settings.clone(),
            metrics: Arc::default(),
            handle: Handle { orders: sender },
            orders,
        })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Changes its settings and asks through it, from any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Answers until the future is dropped; everything it started ends with it. To be run by a current-thread tokio
    /// runtime with I/O and time.
    ///
    /// # Errors
    /// A socket that cannot be registered with the runtime, or that fails for good.
    pub async fn run<D: Decision>(
        self,
        decision: Rc<D>,
        original: Rc<dyn OriginalDestination>,
    ) -> io::Result<()> {
        let _ = (self.udp, self.tcp, self.settings, self.orders, decision, original);
        std::future::pending().await
    }
}

fn open(config: &Config) -> io::Result<(u16, Vec<UdpSocket>, Vec<TcpListener>)> {
    let mut result = open_at(config, config.port);
    if config.port == 0 {
        // The kernel picks a port that is free for the first socket; the others may find it taken.
        for _ in 1..PORT_ATTEMPTS {
            match &result {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => result = open_at(config, 0),
                _ => break,
            }
        }
    }
    result
}

fn open_at(config: &Config, mut port: u16) -> io::Result<(u16, Vec<UdpSocket>, Vec<TcpListener>)> {
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for ip in &config.addresses {
        let socket = UdpListener::bind(SocketAddr::new(*ip, port))?;
        port = socket.local_addr()?.port();
        udp.push(socket);
        tcp.push(tcp_listener(SocketAddr::new(*ip, port))?);
    }
    Ok((port, udp, tcp))
}
