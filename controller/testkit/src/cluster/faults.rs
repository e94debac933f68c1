//! A reverse proxy before the API server that does to its clients what networks, load balancers and busy servers do.

mod body;
mod call;
mod gate;
mod serve;

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;

pub use call::Call;

use super::{Cluster, tls};
use crate::Netns;
use gate::Hole;

/// The proxy. Its socket is in the namespace it was started for, its own connections leave from the host's; clients speak
/// `https` to it (its certificate is the API server's own) or `http`, HTTP/1.1 in both. Who a client is must be in a
/// token: a client certificate does not get through, except in [`Mode::Passthrough`].
#[derive(Debug)]
pub struct Faults {
    address: SocketAddr,
    place: Place,
    shared: Arc<Shared>,
    control: UnboundedSender<Control>,
    thread: Option<JoinHandle<()>>,
}

/// How connections are treated as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Requests pass, by the rules.
    #[default]
    Open,
    /// New connections are bytes between client and API server, TLS and HTTP/2 included: no rules and no log.
    Passthrough,
    /// Connections stay, and no byte moves; new ones are accepted and never answered. With the next mode they go on.
    BlackHole,
    /// All connections are closed and new ones refused, as by a machine whose API server is down.
    Cut,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is answered here with a Status of this code: 401 as for an expired token, 403, 410 with reason `Expired`, 500...
    Status(u16),
    /// It is answered with 429 and a `Retry-After` of so many seconds.
    TooManyRequests(u32),
    /// It is passed on so much later.
    Delay(Duration),
    /// It is never answered, nor passed on.
    Hang,
    /// It is passed on, and the connection closes in place of the answer: done, but the client cannot know.
    LoseAnswer,
    /// Its answer ends thus after so many pieces of the body: of a watch about one event each.
    Stream {
        /// Pieces that still pass.
        after: usize,
        /// What comes then.
        ending: Ending,
    },
}

/// How the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An ERROR event with a Status of code 410, then the proper end: what a watch that is too old is told.
    Gone,
    /// Half of an event, then the connection closes.
    Truncated,
    /// The proper end, as when the API server's timeout of a watch is over.
    Closed,
    /// No end: one byte in the middle of the next piece is another, no UTF-8.
    Corrupted,
}

/// A rule of [`Faults::inject`], to see how often it was used. It goes on when this is dropped.
#[derive(Clone, Debug)]
pub struct Injected {
    shared: Arc<Shared>,
    rule: usize,
}

/// Where the socket belongs: a descriptor of the namespace, and the address in it.
#[derive(Debug)]
struct Place {
    namespace: Option<File>,
    address: SocketAddr,
}

enum Control {
    Listen(TcpListener),
    Refuse(oneshot::Sender<()>),
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    hole: Arc<Hole>,
    /// Counts the cuts; connections of before the last one end.
    cuts: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    rules: Vec<Rule>,
    calls: Vec<Call>,
    next_call: u64,
    streams: Vec<Stream>,
}

struct Rule {
    applies: Box<dyn Fn(&Call) -> bool + Send>,
    times: usize,
    hits: usize,
    fault: Fault,
}

#[derive(Debug)]
struct Stream {
    call: Call,
    end: UnboundedSender<Ending>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} times, {} hits", self.fault, self.times, self.hits)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Faults {
    /// Listens on an address of a lab's namespace, at a port that the kernel chooses.
    pub fn start(cluster: &Cluster, namespace: &Netns, address: IpAddr) -> Result<Self> {
        let file = File::open(namespace.path()).context("cannot open the namespace")?;
        Self::start_at(cluster, Place { namespace: Some(file), address: SocketAddr::new(address, 0) })
    }

    /// Listens on the host's 127.0.0.1.
    pub fn start_on_loopback(cluster: &Cluster) -> Result<Self> {
        Self::start_at(cluster, Place { namespace: None, address: SocketAddr::from(([127, 0, 0, 1], 0)) })
    }

    fn start_at(cluster: &Cluster, mut place: Place) -> Result<Self> {
        let listener = place.listen()?;
        let address = listener.local_addr()?;
        place.address = address;
        let shared =
            Arc::new(Shared { state: Mutex::default(), hole: Arc::default(), cuts: watch::Sender::new(0) });
        let upstream = serve::Upstream {
            connector: tls::connector(&cluster.directory, false)?,
            acceptor: tls::acceptor(&cluster.directory)?,
            port: cluster.port(),
            shared: Arc::clone(&shared),
        };
        let (control, orders) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("testkit-faults".to_owned())
            .spawn(move || runtime.block_on(LocalSet::new().run_until(serve::run(upstream, orders))))?;
        control.send(Control::Listen(listener)).map_err(|_| anyhow!("the proxy ended at once"))?;
        Ok(Self { address, place, shared, control, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For [`Cluster::kubeconfig_for`]: `https://ADDRESS:PORT`, as in life.
    pub fn server(&self) -> String {
        format!("https://{}", self.address)
    }

    /// `http://ADDRESS:PORT`. Not for kubectl: Go's client keeps its token to itself where there is no TLS.
    pub fn plain_server(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes how connections are treated; returns when it is so.
    pub fn set_mode(&self, mode: Mode) -> Result<()> {
        let before = std::mem::replace(&mut self.shared.lock().mode, mode);
        self.shared.hole.set(mode == Mode::BlackHole);
        if mode == Mode::Cut && before != Mode::Cut {
            let (closed, is_closed) = oneshot::channel();
            self.order(Control::Refuse(closed))?;
            self.close_connections();
            // Also from inside of a runtime, where blocking_recv would panic.
            wait_for(is_closed)?;
        }
        if mode != Mode::Cut && before == Mode::Cut {
            self.order(Control::Listen(self.place.listen()?))?;
        }
        Ok(())
    }

    /// Closes every connection once; new ones are welcome.
    pub fn close_connections(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on the next `times` requests for which `applies` holds get this fault. Earlier rules go first; a request
    /// gets one fault at most.
    pub fn inject(
        &self,
        times: usize,
        fault: Fault,
        applies: impl Fn(&Call) -> bool + Send + 'static,
    ) -> Injected {
        let mut state = self.shared.lock();
        state.rules.push(Rule { applies: Box::new(applies), times, hits: 0, fault });
        Injected { shared: Arc::clone(&self.shared), rule: state.rules.len() - 1 }
    }

    /// Rules have no effect from here on.
    pub fn heal(&self) {
        for rule in &mut self.shared.lock().rules {
            rule.times = rule.hits;
        }
    }

    /// Ends watches that are open now; gives how many.
    pub fn end_watches(&self, ending: Ending, applies: impl Fn(&Call) -> bool) -> usize {
        let state = self.shared.lock();
        let watches =
            state.streams.iter().filter(|stream| stream.call.verb == "watch" && applies(&stream.call));
        watches.filter(|stream| stream.end.send(ending).is_ok()).count()
    }

    /// Watches that are open now.
    pub fn watches(&self) -> Vec<Call> {
        self.shared.lock().streams.iter().filter(|s| s.call.verb == "watch").map(|s| s.call.clone()).collect()
    }

    /// Every request since the start or the last [`Faults::clear_calls`], in the order of their arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.lock().calls.clone()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.shared.lock().calls.clear();
    }

    /// Waits until so many calls, answered or not, fulfil a condition; an error has all calls.
    pub fn wait_for_calls(
        &self,
        count: usize,
        patience: Duration,
        fits: impl Fn(&Call) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let calls = self.calls();
            let found = calls.iter().filter(|call| fits(call)).count();
            if found >= count {
                return Ok(());
            }
            if Instant::now() > deadline {
                let calls: Vec<String> = calls.iter().map(ToString::to_string).collect();
                bail!("{found} of {count} calls after {patience:?}; all calls:\n{}", calls.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn order(&self, order: Control) -> Result<()> {
        self.control.send(order).map_err(|_| anyhow!("the proxy has ended"))
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // The end of the orders is the end of the thread, and of its runtime with every connection.
        let (control, _) = unbounded_channel();
        self.control = control;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Injected {
    /// How many requests got the fault.
    pub fn hits(&self) -> usize {
        self.shared.lock().rules.get(self.rule).map_or(0, |rule| rule.hits)
    }
}

impl Place {
    /// A socket stays in the namespace of the thread that made it, wherever it is used then.
    fn listen(&self) -> Result<TcpListener> {
        std::thread::scope(|scope| {
            let bind = || {
                if let Some(namespace) = &self.namespace {
                    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                }
                let listener = TcpListener::bind(self.address)
                    .with_context(|| format!("cannot listen on {}", self.address))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            scope.spawn(bind).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn wait_for(mut done: oneshot::Receiver<()>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match done.try_recv() {
            Ok(()) => return Ok(()),
            Err(oneshot::error::TryRecvError::Closed) => bail!("the proxy has ended"),
            Err(oneshot::error::TryRecvError::Empty) if Instant::now() > deadline => bail!("the proxy hangs"),
            Err(oneshot::error::TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
