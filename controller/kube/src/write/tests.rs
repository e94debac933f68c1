#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fw_intake::Id;
use fw_policy::ObjectKind;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use tokio::time::Instant;

use super::events::event;
use super::firewall::gap;
use super::queue::{Bucket, Queue, pause};
use super::request::manager;
use crate::report::Complaint;
use crate::status::firewall::News;

#[test]
fn a_failing_object_waits_longer_each_time_and_holds_up_no_other() {
    let start = Instant::now();
    let mut queue = Queue::default();
    queue.push(&"bad", start);
    queue.push(&"good", start);
    assert_eq!((queue.pop(start), queue.pop(start), queue.pop(start)), (Some("bad"), Some("good"), None));
    queue.failed(&"bad", start);
    queue.push(&"good", start);
    queue.done(&"good", start);
    assert_eq!(queue.pop(start), Some("good"), "news that came while it was written are not lost");
    queue.done(&"good", start);
    // News do not shorten the pause.
    queue.push(&"bad", start);
    assert_eq!(queue.next(), Some(start + Duration::from_secs(1)));
    let later = start + Duration::from_secs(1);
    assert_eq!(queue.pop(later), Some("bad"));
    queue.failed(&"bad", later);
    assert_eq!(queue.next(), Some(later + Duration::from_secs(2)));
    assert_eq!(pause(Duration::from_secs(1), u32::MAX, Duration::from_secs(300)), Duration::from_secs(300));
}

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let start = Instant::now();
    let mut bucket = Bucket::new(3, 10, start);
    for _ in 0..3 {
        assert_eq!(bucket.next(start), start);
        bucket.take();
    }
    assert_eq!(bucket.next(start), start + Duration::from_millis(100));
    let soon = start + Duration::from_millis(100);
    assert_eq!(bucket.next(soon), soon);
}

#[test]
fn managers_fit_and_differ() {
    assert_eq!(manager("fw-1"), "firewall-controller/fw-1");
    let (one, other) = (manager(&"a".repeat(253)), manager(&format!("{}b", "a".repeat(252))));
    assert_eq!((one.len(), other.len()), (128, 128));
    assert_ne!(one, other);
}

#[test]
fn the_same_complaint_is_the_same_event_in_every_life_and_from_every_firewall() {
    let complaint = |note: &str| Complaint {
        about: Id {
            kind: ObjectKind::ClusterwideNetworkPolicy,
            namespace: "firewall".to_owned(),
            name: "allow-web".to_owned(),
        },
        uid: "u-1".to_owned(),
        reason: "ForbiddenCIDR".to_owned(),
        warning: true,
        note: note.to_owned(),
    };
    let first = event(&complaint("x"), "fw-a", Timestamp::from_second(1).unwrap());
    let second = event(&complaint("x"), "fw-b", Timestamp::from_second(2).unwrap());
    let other = event(&complaint("y"), "fw-a", Timestamp::from_second(1).unwrap());
    assert_eq!(first.metadata.name, second.metadata.name);
    assert_ne!(first.metadata.name, other.metadata.name);
    let regarding = first.regarding.unwrap();
    assert_eq!(regarding.uid.as_deref(), Some("u-1"));
    assert_eq!(regarding.kind.as_deref(), Some("ClusterwideNetworkPolicy"));
    assert_eq!(first.type_.as_deref(), Some("Warning"));
}

proptest! {
    /// Against a plain model: what waits, what is busy.
    #[test]
    fn a_queue_neither_loses_nor_repeats(steps in prop::collection::vec((0..4_u8, 0..5_u8), 0..200)) {
        let start = Instant::now();
        let mut now = start;
        let mut queue = Queue::default();
        let (mut waits, mut busy) = (BTreeSet::new(), BTreeMap::new());
        for (what, key) in steps {
            now += Duration::from_secs(400);
            match what {
                0 => {
                    queue.push(&key, now);
                    if let Some(again) = busy.get_mut(&key) {
                        *again = true;
                    } else {
                        waits.insert(key);
                    }
                }
                1 => match queue.pop(now) {
                    Some(popped) => {
                        prop_assert!(waits.remove(&popped));
                        prop_assert!(busy.insert(popped, false).is_none(), "written twice at one time");
                    }
                    None => prop_assert!(waits.is_empty(), "{waits:?}"),
                },
                2 => if let Some(again) = busy.remove(&key) {
                    queue.done(&key, now);
                    if again {
                        waits.insert(key);
                    }
                },
                _ => if busy.remove(&key).is_some() {
                    queue.failed(&key, now);
                    waits.insert(key);
                },
            }
            prop_assert_eq!(queue.len(), waits.len());
        }
    }
}

#[test]
fn news_of_how_many_policies_there_are_waits_the_longer_the_more_a_write_costs() {
    let interval = Duration::from_secs(10);
    let after = |news, took| gap(news, Duration::from_millis(took), interval).as_millis();
    assert_eq!(after(News::Number, 2), 1_000);
    assert_eq!(after(News::Number, 40), 4_000);
    assert_eq!(after(News::Number, 60_000), 10_000);
    assert_eq!(after(News::State, 60_000), 1_000);
    assert_eq!(after(News::None, 2), 10_000);
}
