//! A name server that does what a script says, by UDP and TCP on one port.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::running::framed;

/// A question that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) message: Vec<u8>,
    pub(crate) tcp: bool,
    pub(crate) from: SocketAddr,
}

/// Sends datagrams from the server's own port.
#[derive(Clone)]
pub(crate) struct Voice(Arc<UdpSocket>);

impl Voice {
    pub(crate) fn say(&self, message: &[u8], to: SocketAddr) {
        self.0.send_to(message, to).unwrap();
    }
}

type Script = dyn Fn(&Asked, &Voice) -> Vec<Vec<u8>> + Send + Sync;

/// The server; ends with this value.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    /// What the script gives goes back to whoever asked, in order; it may also say more by the voice.
    pub(crate) fn new(script: impl Fn(&Asked, &Voice) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (udp, tcp) = open();
        let address = udp.local_addr().unwrap();
        let (log, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let script: Arc<Script> = Arc::new(script);
        let state =
            State { script, voice: Voice(Arc::new(udp)), log: Arc::clone(&log), stop: Arc::clone(&stop) };
        let (for_udp, for_tcp) = (state.clone(), state);
        let threads =
            vec![std::thread::spawn(move || for_udp.udp()), std::thread::spawn(move || for_tcp.tcp(&tcp))];
        Self { address, log, stop, threads }
    }

    /// Answers every question by one function of it, by both transports.
    pub(crate) fn answering(answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::new(move |asked, _| vec![answer(&asked.message)])
    }

    /// Never answers.
    pub(crate) fn silent() -> Self {
        Self::new(|_, _| Vec::new())
    }

    /// All questions so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

/// A port free for both.
fn open() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
    panic!("no port is free for UDP and TCP");
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let result = thread.join();
            assert!(result.is_ok() || std::thread::panicking(), "the scripted server panicked");
        }
    }
}

#[derive(Clone)]
struct State {
    script: Arc<Script>,
    voice: Voice,
    log: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
}

impl State {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn replies(&self, asked: Asked) -> Vec<Vec<u8>> {
        self.log.lock().unwrap().push(asked.clone());
        (self.script)(&asked, &self.voice)
    }

    fn udp(&self) {
        let socket = &self.voice.0;
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut buffer = vec![0; 65_535];
        while !self.stopped() {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            for reply in self.replies(Asked { message: buffer[..length].to_vec(), tcp: false, from }) {
                let _ = socket.send_to(&reply, from);
            }
        }
    }

    fn tcp(&self, listener: &TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let mut connections = Vec::new();
        while !self.stopped() {
            match listener.accept() {
                Ok((stream, from)) => {
                    let state = self.clone();
                    connections.push(std::thread::spawn(move || state.connection(stream, from)));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        connections.into_iter().for_each(|connection| connection.join().unwrap());
    }

    fn connection(&self, mut stream: TcpStream, from: SocketAddr) {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut buffer = Vec::new();
        let mut chunk = vec![0; 65_535];
        while !self.stopped() {
            match stream.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => buffer.extend(&chunk[..length]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => continue,
                Err(_) => return,
            }
            while buffer.len() >= 2 {
                let end = 2 + usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
                if buffer.len() < end {
                    break;
                }
                let message = buffer[2..end].to_vec();
                buffer.drain(..end);
                for reply in self.replies(Asked { message, tcp: true, from }) {
                    if stream.write_all(&framed(&reply)).is_err() {
                        return;
                    }
                }
            }
        }
    }
}
