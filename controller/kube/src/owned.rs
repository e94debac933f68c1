//! Objects this program owns: what lets the cluster's Prometheus find the exporters of its firewalls.
//!
//! Headless Services, their Endpoints, and one EndpointSlice for each firewall. Several firewalls stand in front of one
//! cluster, start, stop and are replaced at any time, and nobody leads: a firewall writes its own slice, a new stamp in
//! it every [`HEARTBEAT`]; the shared Endpoints are what all slices of living firewalls say, and everybody computes the
//! same. Whoever shows no new stamp for [`GONE`] is taken out by whoever sees it first ([`Signs`]); should it live after
//! all, it is back with its next heartbeat.

mod life;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::jiff::{Timestamp, Unit};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams, Preconditions,
};
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

pub use life::{Signs, Time};
pub use plan::{EXPORTERS, Exporter, Kind, Observed, Own, Write, plan, usable};

use crate::{NAMESPACE, chain};

/// How often a firewall shows that it is alive, and looks at the objects. In between nothing is asked.
pub const HEARTBEAT: Duration = Duration::from_secs(300);
/// Firewalls that showed nothing for so long are gone.
pub const GONE: Duration = Duration::from_secs(1800);
/// Pause after a failed round; it doubles up to [`HEARTBEAT`].
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Rounds of one heartbeat. One is enough unless somebody else writes meanwhile; the last one finds nothing to do.
const ROUNDS: u32 = 8;

/// How fast all of this goes; only tests have it otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// [`HEARTBEAT`].
    pub heartbeat: Duration,
    /// [`GONE`]; several heartbeats.
    pub gone: Duration,
    /// Pause after a failed round.
    pub pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { heartbeat: HEARTBEAT, gone: GONE, pause: FIRST_PAUSE }
    }
}

/// What became of the objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Requests that changed something.
    pub written: u64,
    /// Requests that came too late, because somebody else wrote; tried again.
    pub conflicts: u64,
    /// Requests that failed; tried again.
    pub failed: u64,
    /// Why the objects are not as they should be, by what failed; empty: they are.
    pub problems: BTreeMap<String, String>,
}

/// Where the exporters of a firewall answer: the first address of its private primary network, of a Firewall object as
/// the API server has it.
#[must_use]
pub fn address(firewall: &Value) -> Option<IpAddr> {
    let networks = firewall["spec"]["firewallNetworks"].as_array()?.iter();
    let mut primary = networks.filter(|network| {
        let kind = network["networktype"].as_str().unwrap_or_default();
        matches!(kind, "privateprimaryunshared" | "privateprimaryshared")
    });
    let first = primary.find_map(|network| network["ips"].as_array()?.first()?.as_str());
    first?.trim().parse().ok().filter(|address| usable(*address))
}

/// Keeps the objects as they should be, for as long as `wanted` has a sender. While it is `None` nothing is written: what
/// is there stays.
pub async fn own(
    client: Client,
    mut wanted: watch::Receiver<Option<Own>>,
    told: watch::Sender<Owned>,
    pace: Pace,
) {
    let mut keeper =
        Keeper { apis: Apis::new(&client), signs: Signs::default(), pace, begun: Instant::now() };
    let mut pause = pace.pause;
    loop {
        let own = wanted.borrow_and_update().clone();
        let Some(now) = &own else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let well = keeper.beat(now, &told).await;
        let rest = if well { pace.heartbeat } else { pause };
        pause = if well { pace.pause } else { (pause * 2).min(pace.heartbeat) };
        let until = Instant::now() + rest;
        // A sender that sends the same again is no reason to ask the API server.
        while let Ok(changed) = timeout_at(until, wanted.changed()).await {
            if changed.is_err() {
                return;
            }
            if *wanted.borrow_and_update() != own {
                break;
            }
        }
    }
}

struct Keeper {
    apis: Apis,
    signs: Signs,
    pace: Pace,
    begun: Instant,
}

impl Keeper {
    /// One heartbeat; true when all is as it should be.
    async fn beat(&mut self, own: &Own, told: &watch::Sender<Owned>) -> bool {
        let now = Timestamp::now();
        let stamp = now.round(Unit::Millisecond).unwrap_or(now).to_string();
        let mut problems = BTreeMap::new();
        let mut settled = false;
        for round in 0..ROUNDS {
            let observed = match self.apis.observe().await {
                Ok(observed) => observed,
                Err(failure) => {
                    told.send_modify(|told| told.failed += 1);
                    problems = BTreeMap::from([failure.line()]);
                    break;
                }
            };
            self.signs.observe(&observed, millis(self.begun.elapsed()), millis(self.pace.heartbeat));
            let writes = plan(own, &stamp, &self.signs, millis(self.pace.gone), &observed);
            settled = writes.is_empty();
            problems.clear();
            // One object that cannot be written stops no other one.
            let mut conflict = false;
            for write in &writes {
                match self.apis.write(write).await {
                    Ok(()) => told.send_modify(|told| told.written += 1),
                    Err(failure) if failure.is_conflict() => {
                        conflict = true;
                        told.send_modify(|told| told.conflicts += 1);
                        problems.extend([failure.line()]);
                    }
                    Err(failure) => {
                        told.send_modify(|told| told.failed += 1);
                        problems.extend([failure.line()]);
                    }
                }
            }
            if settled || (!problems.is_empty() && !conflict) {
                break;
            }
            if conflict {
                // Two that write by turns must not do so for ever; names are different, so are these pauses.
                let own = u64::from(own.firewall.bytes().fold(0_u8, u8::wrapping_add));
                sleep(Duration::from_millis(20 * u64::from(round) + own)).await;
            }
        }
        if !settled && problems.is_empty() {
            problems.insert(
                "objects of the exporters".to_owned(),
                "somebody else keeps changing them".to_owned(),
            );
        }
        tell(told, problems);
        settled
    }
}

fn tell(told: &watch::Sender<Owned>, problems: BTreeMap<String, String>) {
    told.send_if_modified(|told| {
        if told.problems == problems {
            return false;
        }
        for (what, problem) in &problems {
            warn!("{what}: {problem}; tried again");
        }
        if problems.is_empty() {
            info!("the Services of the exporters are as they should be");
        }
        told.problems = problems;
        true
    });
}

fn millis(time: Duration) -> Time {
    Time::try_from(time.as_millis()).unwrap_or(Time::MAX)
}

/// What failed, and how.
struct Failure {
    what: String,
    error: kube::Error,
}

impl Failure {
    /// Somebody else wrote, created or deleted it first.
    fn is_conflict(&self) -> bool {
        matches!(&self.error, kube::Error::Api(status) if status.code == 409)
    }

    fn line(&self) -> (String, String) {
        (self.what.clone(), chain(&self.error))
    }
}

struct Apis {
    services: Api<DynamicObject>,
    endpoints: Api<DynamicObject>,
    slices: Api<DynamicObject>,
}

impl Apis {
    fn new(client: &Client) -> Self {
        let api = |group, kind, plural| {
            let resource =
                ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
            Api::namespaced_with(client.clone(), NAMESPACE, &resource)
        };
        Self {
            services: api("", "Service", "services"),
            endpoints: api("", "Endpoints", "endpoints"),
            slices: api("discovery.k8s.io", "EndpointSlice", "endpointslices"),
        }
    }

    fn of(&self, kind: Kind) -> (&Api<DynamicObject>, &'static str) {
        match kind {
            Kind::Service => (&self.services, "services"),
            Kind::Endpoints => (&self.endpoints, "endpoints"),
            Kind::Slice => (&self.slices, "endpointslices"),
        }
    }

    /// The order matters: [`Observed`].
    async fn observe(&self) -> Result<Observed, Failure> {
        Ok(Observed {
            services: self.named(Kind::Service).await?,
            endpoints: self.named(Kind::Endpoints).await?,
            slices: self.list_slices().await?,
        })
    }

    async fn named(&self, kind: Kind) -> Result<BTreeMap<String, Value>, Failure> {
        let (api, plural) = self.of(kind);
        let mut found = BTreeMap::new();
        for exporter in EXPORTERS {
            let failure = |error| Failure { what: format!("{plural} {}", exporter.name), error };
            if let Some(object) = api.get_opt(exporter.name).await.map_err(failure)? {
                found.insert(exporter.name.to_owned(), value(&object));
            }
        }
        Ok(found)
    }

    /// All of the namespace and not those with our labels: a user may have taken the labels off.
    async fn list_slices(&self) -> Result<BTreeMap<String, Value>, Failure> {
        let failure = |error| Failure { what: "endpointslices".to_owned(), error };
        let listed = self.slices.list(&ListParams::default()).await.map_err(failure)?;
        // Items of a list come without kind.
        let whole = |object: DynamicObject| {
            let mut value = value(&object);
            value["apiVersion"] = "discovery.k8s.io/v1".into();
            value["kind"] = "EndpointSlice".into();
            (object.name_any(), value)
        };
        Ok(listed.items.into_iter().map(whole).collect())
    }

    async fn write(&self, write: &Write) -> Result<(), Failure> {
        let (kind, object) = write.object();
        let (api, plural) = self.of(kind);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let failure = |error| Failure { what: format!("{plural} {name}"), error };
        let typed = || {
            serde_json::from_value::<DynamicObject>(object.clone())
                .map_err(|error| failure(kube::Error::SerdeError(error)))
        };
        debug!("writing {plural} {name}");
        match write {
            Write::Create(..) => {
                api.create(&PostParams::default(), &typed()?).await.map_err(failure)?;
            }
            Write::Replace(..) => {
                api.replace(name, &PostParams::default(), &typed()?).await.map_err(failure)?;
            }
            Write::Delete(..) => {
                let part = |key: &str| object["metadata"][key].as_str().map(ToOwned::to_owned);
                let preconditions =
                    Preconditions { resource_version: part("resourceVersion"), uid: part("uid") };
                let exactly = DeleteParams::default().preconditions(preconditions);
                match api.delete(name, &exactly).await {
                    // Somebody else saw it too.
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    other => drop(other.map_err(failure)?),
                }
            }
        }
        Ok(())
    }
}

fn value(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}
