//! The thread of names: takes orders from the reconciler, runs the proxy and the keepers.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fw_dns::config::{Interface, Interfaces, Roots};
use fw_dns::{Config, Proxy, Settings};
use fw_names::journal::Fact;
use fw_policy::{Dns, FastpathMode, IfName};
use fw_ruleset::Stamp;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::clock::monotonic;
use super::decider::{Decider, Redirected};
use super::fastpath::{self, Choice, Port};
use super::journal::Journal;
use super::links::{self, Links};
use super::programs::Programs;
use super::site::{DataPath, Site};
use super::{Command, Followers, Known, Options, Wish, early, encrypted, keeper, show};
use crate::problems::Problems;
use crate::reconcile::worker::Job;
use crate::reconcile::{Installation, Prepared};
use crate::telemetry::chain;

/// How long one upstream may take, and all together: conntrack forgets a redirected question after 3 s (the `ct timeout`
/// of the redirection), and after that no answer would seem to come from the resolver the client asked.
const TRY: Duration = Duration::from_millis(1200);
const ALL_TRIES: Duration = Duration::from_millis(2700);
/// Between two attempts to open the proxy's port.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
/// Where the proxy and its encrypted listeners listen; nftables keeps everybody but the inside away.
pub(super) const ANY_ADDRESS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// Runs until nobody can ask any more.
pub(super) fn run(
    options: Options,
    orders: UnboundedReceiver<Command>,
    indexes: Arc<Mutex<BTreeSet<u32>>>,
    problems: Problems,
    followers: Followers,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error!("no runtime for names: {error}; names open nothing"),
    };
    let journal = open_journal(&options, &problems);
    let site = Site::new(Programs::new(options.bpf_dir, followers), journal, indexes, problems);
    let mut thread = Thread::new(site);
    LocalSet::new().block_on(&runtime, async move { thread.take_orders(orders).await });
}

fn open_journal(options: &Options, problems: &Problems) -> (Journal, Vec<Fact>) {
    let Some(directory) = &options.state_dir else { return (Journal::default(), Vec::new()) };
    match Journal::open(directory) {
        Ok((journal, decoded)) => {
            if decoded.broken > 0 {
                warn!(lines = decoded.broken, "the journal of names has lines that cannot be read");
            }
            (journal, decoded.facts)
        }
        Err(error) => {
            let line = format!(
                "the journal of names in {} cannot be used, a restart will forget them: {error}",
                directory.display()
            );
            problems.set("journal of names", vec![line]);
            (Journal::default(), Vec::new())
        }
    }
}

struct Thread {
    site: Rc<Site>,
    links: Option<Links>,
    wish: Option<Wish>,
    choice: Choice,
    proxy: Option<Running>,
    /// Brings nftables maps up to a table, beside everything else: it needs the thread that waits for us.
    installing: Option<JoinHandle<()>>,
}

/// What a proxy is to do, and the interfaces questions may come by.
pub(super) type Wanted = (Dns, Interfaces);

/// A proxy and what belongs to it; all of it ends with this.
struct Running {
    port: u16,
    wanted: watch::Sender<Wanted>,
    proxy: Rc<RefCell<Option<Parts>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What a proxy that answers offers.
pub(super) struct Parts {
    pub(super) handle: fw_dns::Handle,
    pub(super) metrics: Arc<fw_dns::Metrics>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Thread {
    fn new(site: Rc<Site>) -> Self {
        Self { site, links: None, wish: None, choice: Choice::default(), proxy: None, installing: None }
    }

    async fn take_orders(&mut self, mut orders: UnboundedReceiver<Command>) {
        let (sender, mut news) = unbounded_channel();
        spawn_local(links::follow(sender));
        // Who asks first needs to know what there is.
        if let Ok(links) = tokio::time::timeout(PAUSE, news.recv()).await {
            self.links = links;
        }
        spawn_local(keeper::keep(Rc::clone(&self.site)));
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.take(order).await,
                    None => return,
                },
                Some(links) = news.recv() => self.follow_links(links),
            }
        }
    }

    async fn take(&mut self, order: Command) {
        match order {
            Command::Prepare(wish, reply) => {
                reply.send(self.prepare(wish)).ok();
            }
            Command::Withdraw(indexes, reply) => {
                reply.send(self.withdraw(&indexes)).ok();
            }
            Command::StopOtherMarks(mask, reply) => {
                reply.send(self.site.programs.borrow_mut().stop_other_marks(mask)).ok();
            }
            Command::PassAll(reply) => {
                self.site.programs.borrow_mut().pass_all();
                reply.send(()).ok();
            }
            Command::Install(installation, reply) => {
                match installation {
                    Some(installation) => self.install(installation).await,
                    None => self.uninstall(),
                }
                reply.send(()).ok();
            }
            Command::Jobs(jobs) => self.site.set_jobs(jobs),
            Command::Known(packet, reply) => {
                let early = early::drop_of(&self.site.programs.borrow(), self.links.as_ref(), &packet);
                reply.send(Known { early, ..show::known(&self.site, packet.destination) }).ok();
            }
            Command::Tell(asked, reply) => {
                let now = monotonic();
                reply.send(asked.iter().map(|asked| show::told(&self.site, asked, now)).collect()).ok();
            }
            Command::Inherit(inherited) => self.site.inherit(&inherited),
            Command::Show(question, reply) => {
                self.site.note_refusals();
                let running = self.proxy.as_ref().map(|proxy| Rc::clone(&proxy.proxy));
                reply.send(show::show(&self.site, running, &self.choice, &question)).ok();
            }
        }
    }

    fn prepare(&mut self, wish: Wish) -> Prepared {
        let own_addresses = self.links.as_ref().map(|links| links.addresses.clone()).unwrap_or_default();
        self.wish = Some(wish);
        let stamp = self.choose();
        Prepared { stamp, own_addresses }
    }

    /// Chooses where programs go and attaches what is missing. What is not wanted any more goes with the next
    /// installation, when nothing relies on it.
    fn choose(&mut self) -> Stamp {
        let Some(wish) = self.wish.clone() else { return Stamp::default() };
        let mut modes = wish.inside.interfaces.iter().map(|name| wish.fastpath.mode_of(name));
        let wants_any = wish.programs && modes.any(|mode| mode != FastpathMode::Off);
        let unavailable = self.open_programs(wants_any);
        if !wish.programs {
            self.choice = Choice::default();
            return Stamp::default();
        }
        let mut programs = self.site.programs.borrow_mut();
        let ports = self.links.iter().flat_map(|links| &links.ports);
        let ports: Vec<Port> = ports.map(|(name, port)| programs.port(name, port)).collect();
        let choice = fastpath::choose(&wish.fastpath, &wish.inside, &ports, unavailable.as_deref());
        let failed = programs.attach(&choice.attach);
        self.site.problems.set("fastpath", failed);
        self.choice = choice;
        fastpath::stamp(&self.choice)
    }

    /// Opens the programs when they are wanted, or when a process before this one left some to be taken off. Gives why
    /// they cannot be used.
    fn open_programs(&self, wanted: bool) -> Option<String> {
        let mut programs = self.site.programs.borrow_mut();
        if programs.are_open() || !(wanted || programs.are_left()) {
            return None;
        }
        let unavailable = programs.open().err();
        let (_, classes) = programs.contents();
        let indexes = classes.values().flatten().map(|cell| cell.index).filter(|index| *index != 0);
        self.site.note_indexes(indexes.collect());
        unavailable
    }

    /// Out of the eBPF maps before nftables forgets them. nftables maps are changed by the thread that waits for this
    /// answer; there the index in nftables decides alone, and it is not used again before its elements are gone.
    fn withdraw(&mut self, indexes: &BTreeSet<u32>) -> Result<(), String> {
        if !matches!(*self.site.path.borrow(), DataPath::Programs) {
            return Ok(());
        }
        let changes = self.site.learner.borrow_mut().withdraw(indexes, monotonic());
        let settled = self.site.apply_to_programs(&changes).and_then(|()| self.site.settle_programs());
        settled.map_err(|error| chain(&error))?;
        let left = self.site.learner.borrow().installed_indexes();
        match left.intersection(indexes).count() {
            0 => Ok(()),
            number => Err(format!("{number} of them are still in eBPF maps")),
        }
    }

    async fn install(&mut self, installation: Arc<Installation>) {
        if let Some(installing) = self.installing.take() {
            installing.abort();
        }
        self.site.installed.replace(Some(Arc::clone(&installation)));
        self.site.other_names.set(installation.firewall.dns.other_names);
        match installation.stamp {
            Stamp::Program => self.install_programs(&installation),
            Stamp::Sets => self.install_sets(&installation),
        }
        self.run_proxy(&installation).await;
    }

    fn install_programs(&mut self, installation: &Installation) {
        if self.site.stamp() != Some(Stamp::Program) {
            let (allows, classes) = self.site.programs.borrow_mut().contents();
            self.site.learner.borrow_mut().install(allows, classes);
            *self.site.path.borrow_mut() = DataPath::Programs;
        }
        self.site.learner.borrow_mut().set_table(Arc::clone(&installation.table), monotonic());
        self.site.relearn(&installation.table);
        if self.choice.attach.is_empty() && !installation.intercepts {
            // Nothing is stamped: there need not be a program.
            let mut programs = self.site.programs.borrow_mut();
            programs.detach_all_but(&self.choice.attach);
            return programs.rest();
        }
        let settled = self.site.settle_programs();
        let mut problems = Vec::new();
        if let Err(error) = &settled {
            problems.push(format!("the eBPF maps do not hold all that was learned: {}", chain(error)));
            warn!("{}", problems.concat());
        }
        let mut programs = self.site.programs.borrow_mut();
        programs.detach_all_but(&self.choice.attach);
        crate::fault::point("before-marks");
        // Not before the classes are written: by the new mask the old ones would be marks of other entries.
        problems.extend(programs.install(installation, settled.is_ok()).err());
        self.site.problems.set("early drop", problems);
    }

    fn install_sets(&mut self, installation: &Arc<Installation>) {
        let mut programs = self.site.programs.borrow_mut();
        programs.detach_all_but(&self.choice.attach);
        programs.rest();
        drop(programs);
        let (site, installation) = (Rc::clone(&self.site), Arc::clone(installation));
        self.installing = Some(spawn_local(async move {
            while !site.has_jobs() {
                sleep(Duration::from_millis(5)).await;
            }
            let emptied = installation.emptied;
            if !matches!(*site.path.borrow(), DataPath::Sets { emptied: known, .. } if known == emptied) {
                site.take_sets_over(installation.firewall.fastpath.mark_mask, emptied).await;
            }
            site.learner.borrow_mut().set_table(Arc::clone(&installation.table), monotonic());
            site.relearn(&installation.table);
            if let Err(error) = site.push().await {
                warn!("the nftables maps do not hold all that was learned: {}", chain(&error));
            }
        }));
    }

    fn uninstall(&mut self) {
        if let Some(installing) = self.installing.take() {
            installing.abort();
        }
        self.proxy = None;
        *self.site.installed.borrow_mut() = None;
        *self.site.path.borrow_mut() = DataPath::None;
        *self.site.learner.borrow_mut() = fw_names::Learner::new();
        self.site.forget_facts();
        if let Err(error) = self.site.journal.borrow_mut().replace(&[]) {
            warn!("the journal of names stays: {error}");
        }
        self.site.programs.borrow_mut().unload();
        self.site.publish_indexes();
        self.choice = Choice::default();
    }

    /// Starts, changes or ends the proxy as the Firewall asks.
    async fn run_proxy(&mut self, installation: &Installation) {
        if !installation.intercepts {
            self.proxy = None;
            self.site.problems.clear("dns proxy");
            return;
        }
        let dns = installation.firewall.dns.clone();
        let interfaces = self.interfaces(installation);
        match &self.proxy {
            Some(running) if running.port == dns.port => {
                let wanted = (dns, interfaces);
                if *running.wanted.borrow() != wanted {
                    let parts = running.proxy.borrow().as_ref().map(|parts| parts.handle.clone());
                    if let Some(handle) = parts {
                        handle.update(settings(&wanted.0, &wanted.1)).await.ok();
                    }
                    running.wanted.send_replace(wanted);
                }
            }
            _ => {
                self.proxy = None;
                self.proxy = Some(self.start_proxy(dns, interfaces));
            }
        }
    }

    /// Indexes of the interfaces questions may come by.
    fn interfaces(&self, installation: &Installation) -> Interfaces {
        let inside = &installation.firewall.inside.interfaces;
        let ports = self.links.iter().flat_map(|links| &links.ports);
        let index_of = |name: &IfName| self.links.as_ref()?.ports.get(name).map(|port| port.index);
        let is_inside = |name: &IfName, vrf: &Option<IfName>| {
            inside.contains(name) || vrf.as_ref().is_some_and(|vrf| inside.contains(vrf))
        };
        let found = ports
            .filter(|(name, port)| is_inside(name, &port.vrf))
            .map(|(_, port)| (port.index, Interface { vrf: port.vrf.as_ref().and_then(index_of) }));
        Interfaces(found.collect())
    }

    fn start_proxy(&self, dns: Dns, interfaces: Interfaces) -> Running {
        let port = dns.port;
        let parts = Rc::new(RefCell::new(None));
        let (wanted, follow) = watch::channel((dns, interfaces));
        let running = Running {
            port,
            wanted,
            proxy: Rc::clone(&parts),
            tasks: vec![
                spawn_local(serve(Rc::clone(&self.site), follow, parts)),
                spawn_local(keeper::arm(Rc::clone(&self.site), port)),
            ],
        };
        info!(port, "starting the DNS proxy");
        running
    }

    fn follow_links(&mut self, links: Links) {
        self.links = Some(links);
        self.site.send(Job::Links);
    }
}

/// Runs the proxy, and what goes with it; when it cannot, says so and tries again.
async fn serve(site: Rc<Site>, wanted: watch::Receiver<Wanted>, parts: Rc<RefCell<Option<Parts>>>) {
    loop {
        let (dns, interfaces) = wanted.borrow().clone();
        let settings = settings(&dns, &interfaces);
        let config = Config { port: dns.port, addresses: ANY_ADDRESS.into(), settings };
        let ended = match Proxy::bind(&config) {
            Ok(proxy) => {
                site.problems.clear("dns proxy port");
                let handle = proxy.handle();
                *parts.borrow_mut() = Some(Parts { handle: handle.clone(), metrics: proxy.metrics() });
                let decider = Rc::new(Decider::new(Rc::clone(&site)));
                tokio::select! {
                    result = proxy.run(decider, Rc::new(Redirected::new())) => result,
                    () = keeper::refresh(Rc::clone(&site), handle.clone()) => Ok(()),
                    () = encrypted::keep(Rc::clone(&site), wanted.clone(), handle) => Ok(()),
                }
            }
            Err(error) => Err(error),
        };
        *parts.borrow_mut() = None;
        let why = ended.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
        site.problems.set(
            "dns proxy port",
            vec![format!("the DNS proxy does not run on port {}: {why}; DNS is not redirected", dns.port)],
        );
        sleep(PAUSE).await;
    }
}

pub(super) fn settings(dns: &Dns, interfaces: &Interfaces) -> Settings {
    Settings {
        upstreams: dns.upstreams.clone(),
        roots: dns.ca_file.clone().map_or(Roots::System, Roots::File),
        interfaces: Some(interfaces.clone()),
        try_timeout: TRY,
        timeout: ALL_TRIES,
        ..Settings::default()
    }
}
