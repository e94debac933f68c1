//! Clients and the name server behind the forwarder, both off the forwarder's core.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// The forwarder's core.
pub(crate) const FORWARDER: usize = 0;
/// The core of everything else.
const OTHERS: usize = 1;

/// Binds the calling thread to a core; a machine that has none of that number shares.
pub(crate) fn pin(core: usize) {
    let mut set = CpuSet::new();
    if set.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// Answers every question with one address.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            pin(OTHERS);
            let mut buffer = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let length = answer(&mut buffer, length);
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Makes a question its answer: four bytes of address behind the question section, before any OPT.
fn answer(message: &mut [u8; 1500], length: usize) -> usize {
    let mut end = 12;
    while end < length && message[end] != 0 {
        end += 1 + usize::from(message[end]);
    }
    end += 5;
    message[2] |= 0x80;
    message[3] |= 0x80;
    message[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    message[end..end + 16].copy_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1]);
    end + 16
}

/// Asks so many questions, `window` at a time, and gives how many were answered.
pub(crate) fn ask(server: SocketAddr, questions: u32, window: u32) -> u32 {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    let client = std::thread::spawn(move || {
        pin(OTHERS);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut buffer = [0; 1500];
        let send = || {
            let number = NAMES.fetch_add(1, Ordering::Relaxed);
            let mut question = number.to_be_bytes()[2..].to_vec();
            question.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, b'n']);
            question.extend(format!("{number:08x}").as_bytes());
            question.extend(b"\x07example\x03com\0\0\x01\0\x01");
            let _ = socket.send(&question);
        };
        let (mut sent, mut answered, mut pending) = (0, 0, 0);
        while answered < questions {
            while pending < window && sent < questions {
                send();
                sent += 1;
                pending += 1;
            }
            if pending == 0 {
                break;
            }
            match socket.recv(&mut buffer) {
                Ok(_) => {
                    answered += 1;
                    pending -= 1;
                }
                // Lost: what is pending will not come.
                Err(_) => pending = 0,
            }
        }
        answered
    });
    client.join().unwrap()
}
