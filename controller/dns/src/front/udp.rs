//! Questions by UDP: received and handed on in one loop, without a task for each.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::decision::Decision;
use crate::engine::{Asker, Engine};
use crate::flight::To;
use crate::metrics::{Outcome, Transport};
use crate::sockets::{Arrivals, Path, UdpListener};

/// Longer datagrams are cut; no question is as long.
const BUFFER: usize = 8192;
/// `lo` in every network namespace.
const LOOPBACK_INTERFACE: u32 = 1;

/// Serves the listener with this number; ends when its socket fails for good.
pub(crate) async fn serve<D: Decision>(engine: Rc<Engine<D>>, listener: usize) -> io::Result<()> {
    let Some(socket) = engine.listeners.get(listener) else { return Ok(()) };
    let mut inbox = UdpListener::inbox(BUFFER);
    loop {
        socket.readable().await?;
        // An error is one that a past answer met on its way (the socket is as good as before), or there is nothing.
        if socket.receive(&mut inbox).is_ok() {
            engine.together(|| questions(&engine, listener, &mut inbox));
        }
        // Others get their turn: answers that wait in upstream sockets above all.
        tokio::task::yield_now().await;
    }
}

fn questions<D: Decision>(engine: &Rc<Engine<D>>, listener: usize, inbox: &mut Arrivals) {
    let mut lost = false;
    for (message, path) in inbox.datagrams() {
        if let Some(path) = path {
            question(engine, listener, message, *path);
        } else {
            engine.metrics.count(Transport::Udp, Outcome::DroppedInterface);
            lost = true;
        }
    }
    if lost {
        inbox.renew();
    }
}

fn question<D: Decision>(engine: &Rc<Engine<D>>, listener: usize, message: &[u8], path: Path) {
    let Some(interface) = way_back(engine, path.interface) else {
        return engine.metrics.count(Transport::Udp, Outcome::DroppedInterface);
    };
    let path = Path { interface, ..path };
    let asker = Asker {
        transport: Transport::Udp,
        client: Some(path.client),
        local: Some(SocketAddr::new(path.local, engine.port)),
        to: To::Udp { listener, path, size: 512 },
    };
    engine.ask(message, asker);
}

/// The interface that the answer is bound to (0: none); `None`: no questions from there.
fn way_back<D: Decision>(engine: &Rc<Engine<D>>, interface: u32) -> Option<u32> {
    let settings = engine.settings();
    let Some(interfaces) = &settings.interfaces else { return Some(0) };
    if interface == LOOPBACK_INTERFACE {
        return Some(0);
    }
    interfaces.0.get(&interface).map(|interface| interface.vrf.unwrap_or(0))
}
