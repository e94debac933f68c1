//! How long a lesson and its changes take at the default bounds: `cargo run --release -p fw-names --example lessons`.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]
#![expect(clippy::expect_used, reason = "a measurement ends at the first thing that is not as it must be")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use fw_names::answer::{Address, Hop};
use fw_names::{Answer, Learner, Name, Table};
use fw_policy::{FqdnSelector, NameEntry, Protocol};

const SECOND: u64 = 1_000_000_000;
/// Patterns; each has its share of the names.
const PATTERNS: u32 = 8;

fn answer(number: u32) -> Answer {
    let name = Name::from_text(&format!("host-{number}.d{}.example", number % PATTERNS)).expect("a name");
    let address = |part: u32| Address {
        address: IpAddr::V4(Ipv4Addr::from(0x1400_0000 + (number % 30_000) * 4 + part)),
        hop: 0,
        ttl: 300,
    };
    Answer {
        id: 0,
        truncated: false,
        rcode: 0,
        kind: 1,
        class: 1,
        chain: vec![Hop { name, ttl: 300 }],
        addresses: (0..4).map(address).collect(),
        keep: Some(300),
    }
}

fn table() -> Table {
    let entry = |number: u32| {
        let selector = FqdnSelector::Pattern(format!("*.d{number}.example"));
        let entry = NameEntry { policy: format!("p{number}"), selector, protocol: Protocol::Tcp };
        (entry, (number + 1, vec![(443, 443)]))
    };
    Table { entries: (0..PATTERNS).map(entry).collect::<BTreeMap<_, _>>(), ..Table::default() }
}

/// Nanoseconds per answer, all of them and the slowest.
fn round(learner: &mut Learner, answers: &[Answer], start: u64, apart: u64) -> (u128, u128) {
    let mut slowest = 0;
    let begin = Instant::now();
    for (now, answer) in (start..).step_by(usize::try_from(apart).expect("64 bits")).zip(answers) {
        let one = Instant::now();
        learner.learn(now, answer);
        let changes = learner.changes(now);
        learner.confirm(&changes);
        slowest = slowest.max(one.elapsed().as_nanos());
    }
    (begin.elapsed().as_nanos() / answers.len() as u128, slowest)
}

fn main() {
    let mut learner = Learner::new();
    learner.set_table(Arc::new(table()), SECOND);
    let answers: Vec<Answer> = (0..65_536).map(answer).collect();
    for (what, start, apart) in [
        ("new names, empty", 2, 1_000),
        ("known names, a second later", 3, 1_000),
        ("known names, same second", 3, 1),
        ("known names, after the TTL", 400, 1_000),
    ] {
        let (each, slowest) = round(&mut learner, &answers, start * SECOND, apart);
        println!("{what}: {each} ns per answer of 4 addresses, slowest {slowest} ns");
    }
    let more: Vec<Answer> = (65_536..80_000).map(answer).collect();
    let (each, slowest) = round(&mut learner, &more, 900 * SECOND, 1_000);
    println!("new names, full: {each} ns per answer, slowest {slowest} ns; {:?}", learner.sizes());
    let begin = Instant::now();
    let mut changed = table();
    changed.entries.pop_first();
    learner.set_table(Arc::new(changed), 901 * SECOND);
    let changes = learner.changes(901 * SECOND);
    println!("a policy less: {} us, {} changes", begin.elapsed().as_micros(), changes.len());
}
