//! Questions by TCP (RFC 7766): any number on a connection, answered as answers come.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::config::Limits;
use crate::decision::Decision;
use crate::engine::{Asker, Engine};
use crate::flight::To;
use crate::metrics::{Bound, Metrics, Transport};
use crate::upstream::tcp::frame;

/// Answers not yet taken after which a connection is not read.
const UNTAKEN: usize = 256 << 10;
/// How long `accept` rests when the kernel has no descriptor left.
const REST: Duration = Duration::from_millis(50);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Connections {
    metrics: Arc<Metrics>,
    open: Cell<usize>,
    by_client: RefCell<BTreeMap<IpAddr, usize>>,
    bytes: Cell<usize>,
}

impl Connections {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, open: Cell::new(0), by_client: RefCell::default(), bytes: Cell::new(0) }
    }

    fn set_open(&self, open: usize) {
        self.open.set(open);
        self.metrics.connections.set(open);
    }

    fn enter(self: &Rc<Self>, client: IpAddr, limits: &Limits) -> Option<Place> {
        let mut by_client = self.by_client.borrow_mut();
        let of_client = by_client.get(&client).copied().unwrap_or(0);
        if self.open.get() >= limits.connections || of_client >= limits.connections_per_client {
            return None;
        }
        by_client.insert(client, of_client + 1);
        self.set_open(self.open.get() + 1);
        Some(Place { connections: Rc::clone(self), client })
    }
}

/// A connection's place among the others; free again with this value.
#[derive(Debug)]
struct Place {
    connections: Rc<Connections>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.set_open(self.connections.open.get().saturating_sub(1));
        let mut by_client = self.connections.by_client.borrow_mut();
        match by_client.get_mut(&self.client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(by_client.remove(&self.client)),
        }
    }
}

/// One connection.
#[derive(Debug)]
struct Connection {
    place: Place,
    client: SocketAddr,
    local: SocketAddr,
    resolver: OnceCell<Option<SocketAddr>>,
    bytes_max: usize,
    /// Questions without an answer.
    open: Cell<usize>,
    answers: RefCell<VecDeque<Vec<u8>>>,
    untaken: Cell<usize>,
    /// The client asks no more.
    finished: Cell<bool>,
    /// Too much is untaken, or it is gone.
    broken: Cell<bool>,
    /// There is something to write.
    to_write: Notify,
    /// There is room for another question.
    room: Notify,
}

impl Connection {
    fn bytes(&self, add: usize, remove: usize) {
        let connections = &self.place.connections;
        connections.bytes.set((connections.bytes.get() + add).saturating_sub(remove));
        self.untaken.set((self.untaken.get() + add).saturating_sub(remove));
        connections.metrics.connection_bytes.set(connections.bytes.get());
    }

    fn answer(&self, message: &[u8]) -> io::Result<()> {
        let frame = frame(message)?;
        if !self.broken.get() && self.place.connections.bytes.get() + frame.len() > self.bytes_max {
            self.place.connections.metrics.bound_met(Bound::ConnectionBytes);
            self.broken.set(true);
            self.to_write.notify_one();
        }
        if self.broken.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.bytes(frame.len(), 0);
        self.answers.borrow_mut().push_back(frame);
        self.to_write.notify_one();
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.bytes(0, self.untaken.get());
    }
}

/// One question of a connection; without an answer when this value goes, it will have none.
#[derive(Debug)]
pub(crate) struct Ticket(Rc<Connection>);

impl Ticket {
    fn new(connection: &Rc<Connection>) -> Self {
        connection.open.set(connection.open.get() + 1);
        Self(Rc::clone(connection))
    }

    /// Hands the answer to the connection.
    pub(crate) fn answer(&self, message: &[u8]) -> io::Result<()> {
        self.0.answer(message)
    }

    /// The resolver that the client asked, found once per connection.
    pub(crate) fn resolver(&self, find: impl FnOnce() -> Option<SocketAddr>) -> Option<SocketAddr> {
        *self.0.resolver.get_or_init(find)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.room.notify_one();
        self.0.to_write.notify_one();
    }
}

/// Accepts connections; ends when the socket fails for good.
pub(crate) async fn serve<D: Decision>(
    engine: Rc<Engine<D>>,
    listener: TcpListener,
    connections: Rc<Connections>,
) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => enter(&engine, stream, client, &connections),
            Err(error) if gone_already(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Errors of the connection, not of the listener (accept(2)).
fn gone_already(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn enter<D: Decision>(
    engine: &Rc<Engine<D>>,
    stream: TcpStream,
    client: SocketAddr,
    connections: &Rc<Connections>,
) {
    let limits = engine.settings().limits;
    let Some(place) = connections.enter(client.ip(), &limits) else {
        return engine.metrics.bound_met(Bound::Connections);
    };
    let Ok(local) = stream.local_addr() else { return };
    let connection = Rc::new(Connection {
        place,
        client,
        local,
        resolver: OnceCell::new(),
        bytes_max: limits.connection_bytes,
        open: Cell::new(0),
        answers: RefCell::default(),
        untaken: Cell::new(0),
        finished: Cell::new(false),
        broken: Cell::new(false),
        to_write: Notify::new(),
        room: Notify::new(),
    });
    let engine = Rc::clone(engine);
    tokio::task::spawn_local(async move {
        // How a connection of a client ends is the client's business.
        let _ = converse(&engine, stream, &connection, &limits).await;
        connection.broken.set(true);
    });
}

async fn converse<D: Decision>(
    engine: &Rc<Engine<D>>,
    mut stream: TcpStream,
    connection: &Rc<Connection>,
    limits: &Limits,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.split();
    let read = async {
        let result = read(engine, reader, connection, limits).await;
        connection.finished.set(true);
        connection.to_write.notify_one();
        result
    };
    tokio::try_join!(read, write(writer, connection, limits.idle)).map(drop)
}

/// Takes questions until the client ends its side, or is silent for too long while nothing is owed to it.
async fn read<D: Decision>(
    engine: &Rc<Engine<D>>,
    mut stream: ReadHalf<'_>,
    connection: &Rc<Connection>,
    limits: &Limits,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        while connection.open.get() >= limits.questions_per_connection || connection.untaken.get() > UNTAKEN {
            connection.room.notified().await;
        }
        let message = match timeout(limits.idle, next(&mut stream, &mut buffer)).await {
            Ok(result) => result?,
            Err(_) if connection.open.get() > 0 || connection.untaken.get() > 0 => continue,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        let Some(end) = message else { return Ok(()) };
        let asker = Asker {
            transport: Transport::Tcp,
            client: Some(connection.client),
            local: Some(connection.local),
            to: To::Stream(Ticket::new(connection)),
        };
        engine.ask(buffer.get(2..end).unwrap_or_default(), asker);
        buffer.drain(..end);
    }
}

/// Reads until the buffer begins with a whole message; says where that ends. `None`: the client asks no more. Can be
/// cancelled without loss, as what has come is in the buffer.
async fn next(stream: &mut ReadHalf<'_>, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(length) = crate::wire::u16_at(buffer, 0) {
            let end = 2 + usize::from(length);
            if buffer.len() >= end {
                return Ok(Some(end));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Writes answers until the client asks no more and has them all.
async fn write(mut stream: WriteHalf<'_>, connection: &Rc<Connection>, patience: Duration) -> io::Result<()> {
    loop {
        if connection.broken.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let answer = connection.answers.borrow_mut().pop_front();
        let Some(answer) = answer else {
            if connection.finished.get() && connection.open.get() == 0 {
                return stream.shutdown().await;
            }
            connection.to_write.notified().await;
            continue;
        };
        let written = timeout(patience, stream.write_all(&answer)).await;
        connection.bytes(0, answer.len());
        connection.room.notify_one();
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    }
}
