//! What a kubelet is asked about a log (k8s.io/api, core/v1, PodLogOptions), and which lines that are.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;

use crate::process::Line;

/// What is wanted of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Goes on until the container ends.
    pub(super) follow: bool,
    /// Each line begins with its time.
    timestamps: bool,
    /// The last lines only, of those that are there.
    tail: Option<usize>,
    /// Nothing that is older.
    since: Option<Timestamp>,
}

impl Wanted {
    /// Reads a query; what this kubelet cannot do is an error.
    pub(super) fn new(query: &str, now: SystemTime) -> Result<Self> {
        let mut wanted = Self::default();
        for (key, value) in query.split('&').filter_map(|part| part.split_once('=')) {
            match (key, value) {
                ("follow", _) => wanted.follow = value.parse()?,
                ("timestamps", _) => wanted.timestamps = value.parse()?,
                ("tailLines", _) => wanted.tail = Some(value.parse()?),
                ("sinceSeconds", _) => {
                    let begin =
                        now.checked_sub(Duration::from_secs(value.parse()?)).context("too long ago")?;
                    wanted.since = Some(timestamp(begin));
                }
                // Of a time, Go escapes these.
                ("sinceTime", _) => {
                    wanted.since = Some(value.replace("%3A", ":").replace("%2B", "+").parse()?);
                }
                // Kubernetes 1.36 says so whatever was asked.
                ("stream", "All") => {}
                _ => bail!("{key}={value} is nothing that this kubelet can do"),
            }
        }
        Ok(wanted)
    }

    /// The first line to look at, when there are `count`.
    pub(super) fn first(&self, count: usize) -> usize {
        self.tail.map_or(0, |tail| count.saturating_sub(tail))
    }

    /// A line as it is sent; none if it is too old.
    pub(super) fn show(&self, line: &Line) -> Option<String> {
        let at = timestamp(line.at);
        if self.since.is_some_and(|since| at < since) {
            return None;
        }
        let text = &line.text;
        Some(if self.timestamps { format!("{at:.9} {text}\n") } else { format!("{text}\n") })
    }
}

/// A time for people and programs; that of a clock beyond all bounds is 1970.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since_1970.as_nanos())
        .ok()
        .and_then(|nanoseconds| Timestamp::from_nanosecond(nanoseconds).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "2020-06-17 13:23:27 +0000 UTC {}";

    fn line(seconds: u64) -> Line {
        let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, 5);
        Line { at, text: LINE.to_owned() }
    }

    fn wanted(query: &str) -> Wanted {
        Wanted::new(query, SystemTime::UNIX_EPOCH + Duration::from_secs(1_592_400_300)).unwrap()
    }

    #[test]
    fn a_line_is_shown_with_its_time_when_that_is_asked_for() {
        let line = line(1_592_400_207);
        assert_eq!(wanted("follow=true").show(&line), Some(format!("{LINE}\n")));
        let with_time = format!("2020-06-17T13:23:27.000000005Z {LINE}\n");
        assert_eq!(wanted("timestamps=true&stream=All").show(&line), Some(with_time));
    }

    #[test]
    fn what_is_older_than_asked_for_is_left_out() {
        for query in [
            "sinceSeconds=93",
            "sinceTime=2020-06-17T13%3A23%3A27Z",
            "sinceTime=2020-06-17T15%3A23%3A27%2B02%3A00",
        ] {
            let shown: Vec<bool> =
                [206, 207].map(|second| wanted(query).show(&line(1_592_400_000 + second)).is_some()).into();
            assert_eq!(shown, [false, true], "{query}");
        }
    }

    #[test]
    fn the_last_lines_are_those_that_are_there() {
        assert_eq!([0, 2, 3, 10].map(|count| wanted("tailLines=3").first(count)), [0, 0, 0, 7]);
        assert_eq!(wanted("").first(10), 0);
    }

    #[test]
    fn what_a_kubelet_of_the_tests_cannot_do_it_refuses() {
        for query in [
            "previous=true",
            "limitBytes=10",
            "follow=perhaps",
            "tailLines=-1",
            "stream=Stdout",
            "sinceTime=now",
        ] {
            assert!(Wanted::new(query, SystemTime::now()).is_err(), "{query}");
        }
    }
}
