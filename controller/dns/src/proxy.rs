//! The proxy as the controller sees it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use crate::config::{Config, OriginalDestination, Settings};
use crate::decision::Decision;
use crate::engine::{Asker, Engine};
use crate::flight::To;
use crate::front;
use crate::front::tcp::Connections;
use crate::handle::{Handle, ORDERS, Order};
use crate::metrics::{Metrics, Transport};
use crate::sockets::{UdpListener, tcp_listener};
use crate::wire;

/// How often a free port is looked for when any will do.
const PORT_ATTEMPTS: usize = 64;

/// What the background refresh takes by UDP; longer answers are fetched by TCP.
const LOOKUP_SIZE: u16 = 1232;

/// A bound proxy that does not answer yet. It can be made on any thread.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    udp: Vec<UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
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
        let metrics = Arc::<Metrics>::default();
        let handle = Handle {
            orders: sender,
            #[cfg(feature = "encrypted")]
            metrics: Arc::clone(&metrics),
        };
        Ok(Self { port, udp, tcp, settings: config.settings.clone(), metrics, handle, orders })
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
        let local = LocalSet::new();
        local.run_until(self.serve(decision, original)).await
    }

    async fn serve<D: Decision>(
        self,
        decision: Rc<D>,
        original: Rc<dyn OriginalDestination>,
    ) -> io::Result<()> {
        let Self { port, udp, tcp, settings, metrics, handle, mut orders } = self;
        // Whoever holds a handle decides how long orders come; the proxy itself needs none.
        drop(handle);
        let udp = udp.into_iter().map(UdpListener::new).collect::<io::Result<Vec<_>>>()?;
        let count = udp.len();
        let engine = Engine::new(decision, original, metrics, (port, udp), settings);
        let connections = Rc::new(Connections::new(Arc::clone(&engine.metrics)));
        let mut tasks = JoinSet::new();
        for listener in 0..count {
            tasks.spawn_local(front::udp::serve(Rc::clone(&engine), listener));
        }
        for listener in tcp {
            let listener = TcpListener::from_std(listener)?;
            tasks.spawn_local(front::tcp::serve(Rc::clone(&engine), listener, Rc::clone(&connections)));
        }
        let clock = Rc::clone(&engine);
        tasks.spawn_local(async move {
            clock.clock().await;
            Ok(())
        });
        tasks.spawn_local(async move {
            while let Some(order) = orders.recv().await {
                obey(&engine, order);
            }
            // All handles are gone: nobody can give orders any more.
            std::future::pending().await
        });
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(io::Error::other(error)),
            None => Ok(()),
        }
    }
}

fn obey<D: Decision>(engine: &Rc<Engine<D>>, order: Order) {
    match order {
        Order::Update(settings) => engine.update(*settings),
        Order::Lookup { name, kind, reply } => {
            let question = wire::question(&name, kind, LOOKUP_SIZE);
            let to = To::Channel(reply);
            engine.ask(&question, Asker { transport: Transport::Lookup, client: None, local: None, to });
        }
        #[cfg(feature = "encrypted")]
        Order::Ask { message, transport, client, reply } => {
            let to = To::Channel(reply);
            engine.ask(&message, Asker { transport, client: Some(client), local: None, to });
        }
    }
}

type Sockets = (u16, Vec<UdpSocket>, Vec<std::net::TcpListener>);

fn open(config: &Config) -> io::Result<Sockets> {
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

fn open_at(config: &Config, mut port: u16) -> io::Result<Sockets> {
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for ip in &config.addresses {
        // TCP first: of two proxies the second must not get a single datagram before it finds the port taken.
        let listener = tcp_listener(SocketAddr::new(*ip, port))?;
        port = listener.local_addr()?.port();
        tcp.push(listener);
        udp.push(UdpListener::bind(SocketAddr::new(*ip, port))?);
    }
    Ok((port, udp, tcp))
}
