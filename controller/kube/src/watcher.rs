//! Lists and watches; keeps [`Cluster`] as the API server has it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, SelectAll};
use futures::{FutureExt as _, StreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::cluster::{Cluster, Listed, Object, Watched, keep};
use crate::{NAMESPACE, chain};

/// Seconds after which the API server ends a watch and we resume it.
const WATCH_SECONDS: u32 = 290;
/// Objects of one page of a list.
const PAGE: u32 = 500;
/// Events that are taken together before others see the outcome; a burst is one change.
const BURST: usize = 4096;
/// Between two changes that rules are made from: the first of a burst is taken at once, those that follow together.
const RULES_GAP: Duration = Duration::from_millis(20);
/// The same for what only writers of statuses look at: most of it is what they wrote themselves.
const STATUSES_GAP: Duration = Duration::from_millis(250);
/// First and longest pause after an error.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// A watch without an error for this long is well again: a resumed one says nothing until something changes. Longer than
/// the longest pause and a failing connection together.
const WELL: Duration = Duration::from_secs(30);

type Item = (Watched, watcher::Result<Event<DynamicObject>>);

/// Follows the API server for as long as `output` has a reader. `relist` begins every watch anew.
pub async fn watch(client: Client, output: watch::Sender<Arc<Cluster>>, relist: Arc<Notify>) {
    let mut state = State::default();
    let mut pace = Pace::default();
    loop {
        let mut streams: SelectAll<BoxStream<'static, Item>> =
            Watched::ALL.into_iter().map(|watched| follow(&client, watched)).collect();
        loop {
            tokio::select! {
                () = output.closed() => return,
                () = relist.notified() => break,
                () = sleep_until(state.next_look()) => state.look(Instant::now()),
                () = pace.wait(state.news), if state.news.is_some() => {}
                next = streams.next() => {
                    let Some(item) = next else { break };
                    state.take(item);
                    for _ in 1..BURST {
                        let Some(Some(item)) = streams.next().now_or_never() else { break };
                        state.take(item);
                    }
                }
            }
            if pace.shows(&mut state.news, Instant::now()) {
                output.send_replace(Arc::new(state.cluster.clone()));
            }
        }
    }
}

fn follow(client: &Client, watched: Watched) -> BoxStream<'static, Item> {
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let ours = |kind, plural: &str| {
        let kind = GroupVersionKind::gvk(fw_crds::GROUP, fw_crds::VERSION, kind);
        ApiResource::from_gvk_with_plural(&kind, plural)
    };
    let core = |kind, plural: &str| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
    };
    let here = |resource: &ApiResource| Api::namespaced_with(client.clone(), NAMESPACE, resource);
    let everywhere = |resource: &ApiResource| Api::all_with(client.clone(), resource);
    let policies = ours("ClusterwideNetworkPolicy", "clusterwidenetworkpolicies");
    let (api, config): (Api<DynamicObject>, _) = match watched {
        Watched::Policies => (here(&policies), config),
        Watched::PoliciesElsewhere => {
            (everywhere(&policies), config.fields(&format!("metadata.namespace!={NAMESPACE}")))
        }
        Watched::Firewalls => (here(&ours("Firewall", "firewalls")), config),
        Watched::Services => (everywhere(&core("Service", "services")), config),
        Watched::DroptailerPods => (here(&core("Pod", "pods")), config.labels("app=droptailer")),
        Watched::DroptailerSecret => {
            (here(&core("Secret", "secrets")), config.fields("metadata.name=droptailer-client"))
        }
    };
    let from_start = move || watcher::watcher(api.clone(), config.clone()).boxed();
    let events = stream::unfold((from_start(), from_start), |(mut events, from_start)| async move {
        let event = events.next().await?;
        if is_gone(&event) {
            events = from_start();
        }
        Some((event, (events, from_start)))
    });
    events.backoff(Pauses::default()).map(move |event| (watched, event)).boxed()
}

/// The answer 410 to a watch: kube's watcher would ask for this version for ever. (As an event it knows it, and lists.)
fn is_gone(event: &watcher::Result<Event<DynamicObject>>) -> bool {
    matches!(event, Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if status.code == 410)
}

/// Pauses between attempts of one watch: they double, and begin anew with a success.
#[derive(Default)]
struct Pauses {
    last: Option<Duration>,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let next = self.last.map_or(FIRST_PAUSE, |last| (last * 2).min(MAX_PAUSE));
        self.last = Some(next);
        Some(next)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.last = None;
    }
}

/// What the readers of [`Cluster`] have not been shown yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    /// Nothing that rules are made from.
    Statuses,
    /// Something that they are made from.
    Rules,
}

/// When what was shown last. A copy of the lists costs milliseconds where there are thousands of objects.
#[derive(Default)]
struct Pace {
    rules: Option<Instant>,
    anything: Option<Instant>,
}

impl Pace {
    fn due(&self, news: News) -> Option<Instant> {
        match news {
            News::Rules => self.rules.map(|at| at + RULES_GAP),
            News::Statuses => self.anything.map(|at| at + STATUSES_GAP),
        }
    }

    async fn wait(&self, news: Option<News>) {
        if let Some(at) = news.and_then(|news| self.due(news)) {
            sleep_until(at).await;
        }
    }

    /// True when it is time to show the news; then they are none any more.
    fn shows(&mut self, news: &mut Option<News>, now: Instant) -> bool {
        let Some(kind) = news.filter(|news| self.due(*news).is_none_or(|at| at <= now)) else { return false };
        *news = None;
        self.anything = Some(now);
        if kind == News::Rules {
            self.rules = Some(now);
        }
        true
    }
}

/// What is known, and lists that are still arriving.
#[derive(Default)]
struct State {
    cluster: Cluster,
    arriving: BTreeMap<Watched, BTreeMap<(String, String), Arc<Object>>>,
    /// When each watch failed last, of those with a problem.
    failed: BTreeMap<Watched, Instant>,
    news: Option<News>,
}

impl State {
    fn next_look(&self) -> Instant {
        let first = self.failed.values().min();
        first.map_or_else(|| Instant::now() + Duration::from_secs(3600), |at| *at + WELL)
    }

    /// Forgets problems that have not come again.
    fn look(&mut self, now: Instant) {
        let well: Vec<Watched> =
            self.failed.iter().filter(|(_, at)| **at + WELL <= now).map(|(watched, _)| *watched).collect();
        for watched in well {
            self.change(watched, News::Rules);
        }
    }

    fn take(&mut self, (watched, event): Item) {
        match event {
            Ok(Event::Init) => {
                self.arriving.insert(watched, BTreeMap::new());
            }
            Ok(Event::InitApply(object)) => {
                let (key, kept) = self.kept(watched, object);
                self.arriving.entry(watched).or_default().insert(key, kept);
            }
            Ok(Event::InitDone) => self.listed(watched),
            Ok(Event::Apply(object)) => {
                let (key, kept) = self.kept(watched, object);
                let before = self.cluster.of(watched).and_then(|listed| listed.objects.get(&key));
                let is_same = before.is_some_and(|before| Arc::ptr_eq(&before.group, &kept.group));
                let listed = self.change(watched, if is_same { News::Statuses } else { News::Rules });
                listed.figures.events += 1;
                listed.objects.insert(key, kept);
            }
            Ok(Event::Delete(object)) => {
                let key = key_of(&object);
                let listed = self.change(watched, News::Rules);
                listed.figures.events += 1;
                listed.objects.remove(&key);
            }
            Err(error) => self.failed(watched, &error),
        }
    }

    /// The new list replaces the old one at once: what a relist does not name any more is gone, and nothing else changes.
    fn listed(&mut self, watched: Watched) {
        let objects = self.arriving.remove(&watched).unwrap_or_default();
        info!(watch = watched.name(), objects = objects.len(), "listed");
        let listed = self.change(watched, News::Rules);
        listed.objects = objects;
        listed.complete = true;
        listed.figures.lists += 1;
    }

    fn failed(&mut self, watched: Watched, error: &watcher::Error) {
        let problem = chain(error);
        self.failed.insert(watched, Instant::now());
        let listed = Arc::make_mut(self.cluster.listed.entry(watched).or_default());
        listed.figures.errors += 1;
        if listed.problem.as_ref() == Some(&problem) {
            debug!(watch = watched.name(), "{problem}");
        } else {
            warn!(watch = watched.name(), "{problem}; what is known stays in force");
            listed.problem = Some(problem);
        }
        self.note(News::Rules);
    }

    fn note(&mut self, news: News) {
        self.news = self.news.max(Some(news));
        self.cluster.version += u64::from(news == News::Rules);
    }

    /// A watch that has something to say is well.
    fn change(&mut self, watched: Watched, news: News) -> &mut Listed {
        self.note(news);
        self.failed.remove(&watched);
        let listed = Arc::make_mut(self.cluster.listed.entry(watched).or_default());
        if listed.problem.take().is_some() {
            info!(watch = watched.name(), "followed again");
        }
        listed
    }

    fn kept(&self, watched: Watched, object: DynamicObject) -> ((String, String), Arc<Object>) {
        let key = key_of(&object);
        let before = self.cluster.of(watched).and_then(|listed| listed.objects.get(&key));
        let raw = whole(object);
        let kept = keep(watched, &raw, before);
        (key, Arc::new(kept))
    }
}

/// The object as one tree. Not by serde: that would make another of what it has as a tree already, and the status of a
/// Firewall is megabytes.
fn whole(object: DynamicObject) -> Value {
    let DynamicObject { metadata, mut data, .. } = object;
    if let Value::Object(fields) = &mut data {
        fields.insert("metadata".to_owned(), serde_json::to_value(metadata).unwrap_or_default());
    }
    data
}

fn key_of(object: &DynamicObject) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}
