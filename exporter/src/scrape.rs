//! One answer from the kernel, this process and the programs beside it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fw_edge::chain;
use tokio::sync::Mutex;
use tracing::{debug, warn};

use crate::config::Config;
use crate::families::{
    AGE, BUILD_INFO, LEFT_OUT, Page, READ_SECONDS, READS, REFUSED, RETRIES, SCRAPES, SHORTENED, SKIPPED,
    SOURCE_FAILURES, SOURCE_SECONDS, SOURCE_UP, Text, UNREADABLE, UP,
};
use crate::ruleset::{self, Figures, ReadError};
use crate::sources::{self, CAUSES, Source, SourceError};
use crate::{families, process};

/// How old figures may be that are shown when the ruleset changes too fast to be read.
const MAX_AGE: Duration = Duration::from_secs(120);

/// Makes answers. Scrapes that come while the kernel is read wait, and share the next read.
#[derive(Debug, Default)]
pub struct Scraper {
    state: Mutex<State>,
    scrapes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The last answer and when it was begun.
    last: Option<(Instant, Arc<Page>)>,
    /// The last figures and when they were read.
    figures: Option<(Instant, Arc<Figures>)>,
    reads: Reads,
    failures: BTreeMap<(&'static str, &'static str), u64>,
    /// Sources that failed the last time: each is complained about once.
    failing: BTreeMap<&'static str, &'static str>,
}

#[derive(Debug, Default)]
struct Reads {
    ok: u64,
    torn: u64,
    failed: u64,
    retries: u64,
}

/// How a source answered.
struct Answered {
    name: &'static str,
    took: Duration,
    text: Result<String, SourceError>,
}

impl Scraper {
    /// The metrics now: nothing in it was read before this call. `refused` connections were closed because too many
    /// were open.
    pub async fn scrape(&self, config: &Config, refused: u64) -> Arc<Page> {
        let asked = Instant::now();
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().await;
        if let Some((began, page)) = &state.last
            && *began >= asked
        {
            return Arc::clone(page);
        }
        // Not while the next one is made: two of them would be twice the memory.
        state.last = None;
        let began = Instant::now();
        let options = config.read_options();
        let reading = tokio::task::spawn_blocking(move || ruleset::read(options));
        let wanted = config.sources();
        let asking = ask_all(&wanted);
        let (figures, answers) = tokio::join!(reading, asking);
        let mut text = Text::default();
        let figures = match figures {
            Ok(figures) => state.take(figures, began),
            // The thread panicked, which says a bug of ours; the scrape says so.
            Err(_) => state.failed(),
        };
        self.write(&mut text, &state.reads, refused, figures.as_ref());
        let foreign = state.sources(&mut text, answers);
        process::write(&mut text);
        let figures = figures.map(|(figures, _)| figures);
        let page = Arc::new(Page { figures, text: text.into_string(), foreign });
        state.last = Some((began, Arc::clone(&page)));
        page
    }

    fn write(
        &self,
        text: &mut Text,
        reads: &Reads,
        refused: u64,
        figures: Option<&(Arc<Figures>, Duration)>,
    ) {
        text.one(&UP, u8::from(figures.is_some()));
        text.head(&BUILD_INFO);
        text.sample(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
        text.head(&READS);
        for (outcome, count) in [("failed", reads.failed), ("ok", reads.ok), ("torn", reads.torn)] {
            text.sample(&READS, &[outcome], count);
        }
        text.one(&RETRIES, reads.retries);
        text.one(&SCRAPES, self.scrapes.load(Ordering::Relaxed));
        text.one(&REFUSED, refused);
        let Some((figures, age)) = figures else { return };
        text.one(&READ_SECONDS, figures.took.as_secs_f64());
        text.one(&AGE, age.as_secs_f64());
        text.one(&SHORTENED, figures.shortened);
        text.one(&LEFT_OUT, figures.left_out());
        text.one(&UNREADABLE, figures.unreadable);
        if !figures.unread.is_empty() {
            text.head(&SKIPPED);
        }
        for (name, count) in &figures.unread {
            text.sample(&SKIPPED, &[name], count);
        }
    }
}

async fn ask_all(wanted: &[Source]) -> Vec<Answered> {
    let one = |source: Source| async move {
        let began = Instant::now();
        let text = sources::ask(&source).await;
        Answered { name: source.name, took: began.elapsed(), text }
    };
    let tasks: Vec<_> = wanted.iter().cloned().map(|source| tokio::spawn(one(source))).collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.extend(task.await);
    }
    answers
}

impl State {
    /// Figures to show, with their age.
    fn take(&mut self, read: Result<Figures, ReadError>, began: Instant) -> Option<(Arc<Figures>, Duration)> {
        match read {
            Ok(figures) => {
                self.reads.ok += 1;
                self.reads.retries += u64::from(figures.retries);
                let figures = Arc::new(figures);
                self.figures = Some((began, Arc::clone(&figures)));
                Some((figures, Duration::ZERO))
            }
            Err(ReadError::Torn(retries)) => {
                self.reads.torn += 1;
                self.reads.retries += u64::from(retries);
                warn!("the ruleset changed {retries} times while it was read; older figures are shown");
                let (read, figures) = self.figures.as_ref()?;
                let age = read.elapsed();
                (age <= MAX_AGE).then(|| (Arc::clone(figures), age))
            }
            Err(error) => {
                warn!("{}", chain(&error));
                self.failed()
            }
        }
    }

    fn failed<T>(&mut self) -> Option<T> {
        self.reads.failed += 1;
        self.figures = None;
        None
    }

    /// Writes how the sources answered, and gives their texts.
    fn sources(&mut self, text: &mut Text, answers: Vec<Answered>) -> Vec<String> {
        text.head(&SOURCE_UP);
        for answer in &answers {
            text.sample(&SOURCE_UP, &[answer.name], u8::from(answer.text.is_ok()));
        }
        text.head(&SOURCE_SECONDS);
        for answer in &answers {
            text.sample(&SOURCE_SECONDS, &[answer.name], answer.took.as_secs_f64());
        }
        let mut texts = Vec::new();
        let names: Vec<&str> = answers.iter().map(|answer| answer.name).collect();
        for answer in answers {
            match answer.text {
                Ok(text) => {
                    self.failing.remove(answer.name);
                    texts.push(text);
                }
                Err(error) => self.complain(answer.name, &error),
            }
        }
        text.head(&SOURCE_FAILURES);
        for cause in CAUSES {
            for name in &names {
                let count = self.failures.get(&(*name, cause)).copied().unwrap_or_default();
                text.sample(&SOURCE_FAILURES, &[cause, name], count);
            }
        }
        texts
    }

    fn complain(&mut self, name: &'static str, error: &SourceError) {
        let cause = error.cause();
        *self.failures.entry((name, cause)).or_default() += 1;
        if self.failing.insert(name, cause) == Some(cause) || cause == "absent" {
            debug!("no metrics of {name}: {}", chain(error));
        } else {
            warn!("no metrics of {name}: {}", chain(error));
        }
    }
}

/// The text of a page as a whole, for tests and for who wants it at once.
pub fn text(page: Arc<Page>) -> String {
    let pieces: families::Pieces = page.pieces();
    pieces.collect()
}
