//! The forwarders, each on one thread of one core. Every function gives answered questions per second of that core.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fw_dns::{Ask, Config, Decision, NoOriginal, Proxy, Question, Release, Settings};
use fw_policy::Upstream;
use nix::time::{ClockId, clock_gettime};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use crate::load::{FORWARDER, pin};

/// Allows everything at once, as the learner does for names that no policy has.
struct Open;

impl Decision for Open {
    fn ask(&self, _: &Question<'_>) -> Ask {
        Ask::Forward
    }

    async fn release(&self, _: &[u8], _: u32) -> Release {
        Release::Send { ttl_max: Some(3600) }
    }
}

/// Runs a forwarder on its core while `load` asks it; the future is dropped then.
fn on_core<F: Future<Output = ()>>(
    make: impl FnOnce() -> F + Send,
    address: SocketAddr,
    load: impl FnOnce(SocketAddr) -> u32,
) -> f64 {
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let forwarder = scope.spawn(move || {
            pin(FORWARDER);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let before = thread_time();
            runtime.block_on(async {
                tokio::select! {
                    () = make() => {}
                    _ = stopped => {}
                }
            });
            thread_time() - before
        });
        let answered = load(address);
        drop(stop);
        f64::from(answered) / forwarder.join().unwrap().as_secs_f64()
    })
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// This crate's proxy.
pub(crate) fn ours(upstream: SocketAddr, load: impl FnOnce(SocketAddr) -> u32) -> f64 {
    let upstreams = vec![Upstream { address: upstream, tls_name: None }];
    let settings = Settings { upstreams, ..Settings::default() };
    let config = Config { port: 0, addresses: vec![Ipv4Addr::LOCALHOST.into()], settings };
    let proxy = Proxy::bind(&config).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port()));
    let run = || async { proxy.run(Rc::new(Open), Rc::new(NoOriginal)).await.unwrap() };
    on_core(run, address, load)
}

/// The least a forwarder must do: one socket each side, another id, and a table of who asked.
pub(crate) fn bare(upstream: SocketAddr, load: impl FnOnce(SocketAddr) -> u32) -> f64 {
    let socket = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    on_core(move || forward(socket, upstream), address, load)
}

async fn forward(front: StdSocket, upstream: SocketAddr) {
    let front = UdpSocket::from_std(front).unwrap();
    let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    back.connect(upstream).await.unwrap();
    let waiting = RefCell::new(vec![None; 65_536]);
    let questions = async {
        let (mut buffer, mut next) = ([0; 4096], 0_u16);
        loop {
            let Ok((length, client)) = front.recv_from(&mut buffer).await else { continue };
            waiting.borrow_mut()[usize::from(next)] = Some((client, [buffer[0], buffer[1]]));
            buffer[..2].copy_from_slice(&next.to_be_bytes());
            next = next.wrapping_add(1);
            let _ = back.send(&buffer[..length]).await;
        }
    };
    let answers = async {
        let mut buffer = [0; 4096];
        loop {
            let Ok(length) = back.recv(&mut buffer).await else { continue };
            let id = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
            let Some((client, id)) = waiting.borrow_mut()[id].take() else { continue };
            buffer[..2].copy_from_slice(&id);
            let _ = front.send_to(&buffer[..length], client).await;
        }
    };
    let ((), ()) = tokio::join!(questions, answers);
}

/// Debian's unbound with one thread and no cache hits, if it is installed.
pub(crate) fn unbound(upstream: SocketAddr, load: impl FnOnce(SocketAddr) -> u32) -> Option<f64> {
    let port = free_port();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "server:\n num-threads: 1\n interface: 127.0.0.1\n port: {port}\n chroot: \"\"\n username: \"\"\n \
         directory: \"\"\n pidfile: \"\"\n use-syslog: no\n do-daemonize: no\n do-not-query-localhost: no\n \
         module-config: \"iterator\"\n outgoing-range: 4096\n num-queries-per-thread: 2048\n\
         remote-control:\n control-enable: no\n\
         forward-zone:\n name: \".\"\n forward-addr: 127.0.0.1@{}",
        upstream.port()
    );
    let file = std::env::temp_dir().join(format!("fw-dns-bench-{}-unbound.conf", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let rate = daemon(Command::new("unbound").arg("-c").arg(&file), port, load);
    let _ = std::fs::remove_file(file);
    rate
}

/// Debian's dnsmasq without a cache, if it is installed.
pub(crate) fn dnsmasq(upstream: SocketAddr, load: impl FnOnce(SocketAddr) -> u32) -> Option<f64> {
    let port = free_port();
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--listen-address=127.0.0.1"]);
    command.args(["--bind-interfaces", "--no-resolv", "--no-hosts", "--cache-size=0", "--user=root"]);
    command.args(["--pid-file=", "--dns-forward-max=4096"]);
    command.arg(format!("--port={port}")).arg(format!("--server=127.0.0.1#{}", upstream.port()));
    daemon(&mut command, port, load)
}

fn free_port() -> u16 {
    StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A child that is killed and reaped with this value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn daemon(command: &mut Command, port: u16, load: impl FnOnce(SocketAddr) -> u32) -> Option<f64> {
    let mut pinned = Command::new("taskset");
    pinned.arg("-c").arg(FORWARDER.to_string()).arg(command.get_program()).args(command.get_args());
    pinned.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = Daemon(pinned.spawn().ok()?);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let deadline = Instant::now() + Duration::from_secs(5);
    while crate::load::ask(address, 1, 1) == 0 {
        if Instant::now() > deadline || matches!(child.0.try_wait(), Ok(Some(_))) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = process_time(child.0.id())?;
    let answered = load(address);
    let spent = process_time(child.0.id())?.saturating_sub(before);
    Some(f64::from(answered) / spent.as_secs_f64())
}

/// Time on a core, by the scheduler's own count (Documentation/scheduler/sched-stats.rst).
fn process_time(pid: u32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}
