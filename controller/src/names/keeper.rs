//! What goes on by itself: forgetting, refreshing, looking at live connections, and keeping the redirect armed.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fw_dns::health::{self, Armed};
use fw_names::change::Nanos;
use fw_names::learner::Family as AddressFamily;
use fw_netlink::ctnetlink::{Conntrack, Entry, Transport};
use fw_policy::Protocol;
use fw_ruleset::ir::Family;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::clock::monotonic;
use super::site::Site;
use crate::reconcile::ARMED_MS;
use crate::reconcile::worker::Job;
use crate::telemetry::chain;

/// QTYPEs.
const A: u16 = 1;
const AAAA: u16 = 28;
/// Port of DNS.
const DNS: u16 = 53;
/// How often the redirect is renewed (semantics.md section 6).
const RENEWAL: Duration = Duration::from_millis(500);
/// How often time is looked at at most.
const TICK: Duration = Duration::from_millis(250);
/// Live connections are looked at whenever something is about to end, so that who has just connected is seen; but a
/// dump costs about 1 µs each, and all of them no more than this part of the time …
const LOOK_SHARE: Nanos = 20;
/// … as long as the pause between two is no longer than this.
const LONGEST_PAUSE: Nanos = 5_000_000_000;

/// Forgets what is over and refreshes what is used, until it is dropped.
pub(super) async fn keep(site: Rc<Site>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_look = 0;
    loop {
        ticks.tick().await;
        let now = monotonic();
        let is_due = site.learner.borrow().due().is_some_and(|due| due <= now);
        if is_due {
            if now >= next_look {
                look_at_connections(&site).await;
                let cost = monotonic().saturating_sub(now);
                next_look = now.saturating_add(cost.saturating_mul(LOOK_SHARE).min(LONGEST_PAUSE));
            }
            site.collect().await;
        }
    }
}

/// Which destinations have live connections. The dump runs on a thread of its own: answers do not wait for it.
async fn look_at_connections(site: &Rc<Site>) {
    let looked = tokio::task::spawn_blocking(|| Conntrack::open()?.live_destinations()).await;
    match looked {
        Ok(Ok(addresses)) => {
            site.problems.clear("conntrack");
            *site.in_use.borrow_mut() = Arc::new(addresses);
        }
        // Those known last are kept: nothing in use is forgotten by mistake.
        Ok(Err(error)) => site.problems.set(
            "conntrack",
            vec![format!("live connections are unknown, names in use may end: {}", chain(&error))],
        ),
        Err(error) => warn!("looking at live connections failed: {error}"),
    }
}

/// Asks again for names before their answers are over.
pub(super) async fn refresh(site: Rc<Site>, proxy: fw_dns::Handle) {
    loop {
        let at = site.learner.borrow().refresh_at();
        let wait = at.map_or(TICK, |at| Duration::from_nanos(at.saturating_sub(monotonic())));
        sleep(wait.clamp(Duration::from_millis(10), TICK)).await;
        let due = site.learner.borrow_mut().refresh_due(monotonic());
        for (name, family) in due {
            let kind = match family {
                AddressFamily::V4 => A,
                AddressFamily::V6 => AAAA,
            };
            let proxy = proxy.clone();
            tokio::task::spawn_local(async move {
                if let Err(error) = proxy.lookup(&name.to_wire(), kind).await {
                    debug!("{name} was not refreshed: {error}");
                }
            });
        }
    }
}

/// Keeps the redirect armed while the proxy answers itself.
pub(super) async fn arm(site: Rc<Site>, port: u16) {
    let mut ticks = interval(RENEWAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = BTreeSet::new();
    let mut renewed = monotonic();
    loop {
        ticks.tick().await;
        let ways = ways(health::probe(port).await);
        if ways != before {
            info!(by = %describe(&ways), "the DNS proxy answers");
            let lost = before.difference(&ways).next().is_some();
            site.problems
                .set("dns proxy", if lost || ways.is_empty() { complaint(&ways) } else { Vec::new() });
        }
        let armed_anew = ways.difference(&before).next().is_some();
        let asked = monotonic();
        site.send(Job::Arm(ways.clone()));
        // The element is in the kernel by the time the reconciler answers.
        let (done, answered) = tokio::sync::oneshot::channel();
        if site.send(Job::Ping(done)) {
            answered.await.ok();
        }
        // Whoever stops us, or keeps the reconciler busy, lets the element expire though the proxy answers as before.
        let lapsed = monotonic().saturating_sub(renewed) >= ARMED_MS * 1_000_000;
        (before, renewed) = (ways, asked);
        if armed_anew || lapsed {
            forget_direct_questions(&site, port).await;
        }
    }
}

fn ways(armed: Armed) -> BTreeSet<(Family, Protocol)> {
    let all = [
        (armed.udp4, Family::V4, Protocol::Udp),
        (armed.tcp4, Family::V4, Protocol::Tcp),
        (armed.udp6, Family::V6, Protocol::Udp),
        (armed.tcp6, Family::V6, Protocol::Tcp),
    ];
    all.into_iter().filter(|(answers, ..)| *answers).map(|(_, family, protocol)| (family, protocol)).collect()
}

fn describe(ways: &BTreeSet<(Family, Protocol)>) -> String {
    let name = |(family, protocol): &(Family, Protocol)| {
        format!("{protocol} over IPv{}", if *family == Family::V4 { 4 } else { 6 })
    };
    if ways.is_empty() { "nothing".to_owned() } else { ways.iter().map(name).collect::<Vec<_>>().join(", ") }
}

fn complaint(ways: &BTreeSet<(Family, Protocol)>) -> Vec<String> {
    vec![format!(
        "the DNS proxy answers itself by {} only; DNS by other ways is not redirected and opens nothing",
        describe(ways)
    )]
}

/// The redirect is per conntrack entry: what was opened while it was disarmed would go on past the proxy
/// (semantics.md section 6).
async fn forget_direct_questions(site: &Rc<Site>, port: u16) {
    let installed = site.installed.borrow().clone();
    let Some(installed) = installed else { return };
    let (prefixes, own) = (installed.table.cluster_prefixes.clone(), installed.table.own_addresses.clone());
    let is_direct = move |entry: &Entry| {
        let source = entry.original.source;
        let from_inside = prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.contains(&source));
        let by_proxy = matches!(entry.reply.transport, Transport::Ports { source, .. } if source == port);
        from_inside && !own.contains(&source) && !by_proxy && entry.original.destination_port() == Some(DNS)
    };
    let forgotten = tokio::task::spawn_blocking(move || {
        let mut conntrack = Conntrack::open()?;
        conntrack.delete_where(is_direct)
    })
    .await;
    match forgotten {
        Ok(Ok(0)) => {}
        Ok(Ok(number)) => info!(number, "forgot DNS connections that were opened past the proxy"),
        Ok(Err(error)) => warn!("DNS connections opened past the proxy go on: {}", chain(&error)),
        Err(error) => warn!("DNS connections opened past the proxy go on: {error}"),
    }
}
