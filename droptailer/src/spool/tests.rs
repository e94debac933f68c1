use std::path::PathBuf;

use fw_testkit::WorkDir;
use proptest::prelude::*;

use super::*;

const SESSION: [u8; SESSION_BYTES] = [7; SESSION_BYTES];

fn limits(memory: usize, disk: u64) -> Limits {
    Limits { memory, disk }
}

fn open(directory: &Path, limits: Limits) -> (Spool, Recovered) {
    Spool::on_disk(limits, [9; SESSION_BYTES], directory).unwrap()
}

fn payload(number: u64) -> Vec<u8> {
    let length = usize::try_from(number * 7 % 90).unwrap();
    number.to_be_bytes().into_iter().chain(std::iter::repeat_n(0xaa, length)).collect()
}

/// Everything that waits, as a sender takes it.
fn all(spool: &mut Spool) -> Vec<Stored> {
    let (mut from, mut all) = (spool.oldest(), Vec::new());
    loop {
        let read = spool.read(from, 3, 300);
        let Some(last) = read.last() else { return all };
        from = last.number + 1;
        all.extend(read);
    }
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
    paths.sort();
    paths
}

#[test]
fn memory_that_is_full_takes_nothing_until_something_has_arrived() {
    let mut spool = Spool::in_memory(limits(3 * (8 + 64 + 90), 0), SESSION);
    let mut taken = 0;
    while spool.push(1, payload(taken)).is_ok() {
        taken += 1;
    }
    assert!(taken >= 3 && spool.waiting() == taken && spool.memory_bytes() <= 3 * (8 + 64 + 90));
    spool.acknowledge(2);
    assert!(spool.push(1, payload(0)).is_ok());
    assert_eq!(
        all(&mut spool).iter().map(|stored| stored.number).collect::<Vec<_>>(),
        (2..=taken + 1).collect::<Vec<_>>()
    );
    spool.acknowledge(1_000);
    assert_eq!(
        (spool.waiting(), spool.memory_bytes()),
        (0, 0),
        "an acknowledgement of the future is one of all"
    );
}

#[test]
fn a_disk_that_is_full_takes_nothing_until_a_segment_has_arrived() {
    let directory = WorkDir::new("spool-full").unwrap();
    let (mut spool, _) = open(directory.path(), limits(500, 8192));
    let mut taken = 0;
    while spool.push(1, payload(taken + 1)).is_ok() {
        taken += 1;
    }
    assert!(taken > 40 && spool.disk_bytes() <= 8192 && spool.memory_bytes() <= 500 && spool.is_pressed());
    assert_eq!(spool.push(1, payload(taken + 1)), Err(Full));
    spool.acknowledge(taken / 2);
    assert!(spool.disk_bytes() < 8192 && spool.push(1, payload(taken + 1)).is_ok());
    let expected: Vec<Vec<u8>> = (taken / 2..=taken + 1).map(payload).collect();
    assert_eq!(all(&mut spool).into_iter().map(|stored| stored.bytes).collect::<Vec<_>>(), expected);
}

#[test]
fn what_was_not_acknowledged_comes_again_after_a_restart_with_session_numbers_weight_and_note() {
    let directory = WorkDir::new("spool-restart").unwrap();
    let (mut spool, recovered) = open(directory.path(), limits(1 << 20, 1 << 20));
    assert_eq!(recovered, Recovered::default());
    for number in 1..=50 {
        spool.push(number, payload(number)).unwrap();
    }
    spool.acknowledge(31);
    spool.remember("hello");
    drop(spool);
    let (mut spool, recovered) = open(directory.path(), limits(1 << 20, 1 << 20));
    assert_eq!(recovered, Recovered { records: 20, ..Recovered::default() });
    assert_eq!((spool.session(), spool.oldest(), spool.next()), ([9; SESSION_BYTES], 31, 51));
    assert_eq!((spool.weight(), spool.remembered().as_deref()), (50 * 51 / 2, Some("hello")));
    assert_eq!(all(&mut spool).len(), 20);
    // All of it has arrived, and the next start still knows where it was.
    spool.acknowledge(51);
    spool.push(2, payload(51)).unwrap();
    spool.acknowledge(52);
    drop(spool);
    let (spool, recovered) = Spool::on_disk(limits(1 << 20, 1 << 20), SESSION, directory.path()).unwrap();
    assert_eq!((recovered.records, spool.next(), spool.weight()), (0, 52, 50 * 51 / 2 + 2));
    assert_eq!(spool.session(), [9; SESSION_BYTES]);
}

#[test]
fn a_crash_at_any_byte_keeps_every_whole_record_and_gives_no_number_twice() {
    let directory = WorkDir::new("spool-torn").unwrap();
    let (mut spool, _) = open(directory.path(), limits(1 << 20, 1 << 20));
    let mut ends = Vec::new();
    for number in 1..=6 {
        spool.push(1, payload(number)).unwrap();
        ends.push(std::fs::metadata(segments(directory.path())[0].clone()).unwrap().len());
    }
    drop(spool);
    let whole = std::fs::read(segments(directory.path())[0].clone()).unwrap();
    for cut in 0..=whole.len() {
        let torn = WorkDir::new("spool-cut").unwrap();
        std::fs::create_dir_all(torn.path()).unwrap();
        std::fs::write(torn.path().join(segments(directory.path())[0].file_name().unwrap()), &whole[..cut])
            .unwrap();
        let (mut spool, recovered) = open(torn.path(), limits(1 << 20, 1 << 20));
        let kept = ends.iter().filter(|end| **end <= u64::try_from(cut).unwrap()).count();
        let kept = u64::try_from(kept).unwrap();
        assert_eq!((recovered.records, recovered.lost_records), (kept, 0), "cut at {cut}");
        // It goes on behind the tear, and another start reads both parts.
        spool.push(1, payload(kept + 1)).unwrap();
        drop(spool);
        let (mut spool, recovered) = open(torn.path(), limits(1 << 20, 1 << 20));
        assert_eq!((recovered.records, recovered.lost_records, spool.weight()), (kept + 1, 0, kept + 1));
        let expected: Vec<Vec<u8>> = (1..=kept + 1).map(payload).collect();
        assert_eq!(all(&mut spool).into_iter().map(|stored| stored.bytes).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_segment_that_rots_costs_what_is_behind_the_rot_and_says_so() {
    let directory = WorkDir::new("spool-rot").unwrap();
    let (mut spool, _) = open(directory.path(), limits(500, 16 << 10));
    for number in 1..=100 {
        spool.push(2, payload(number)).unwrap();
    }
    drop(spool);
    let second = &segments(directory.path())[1];
    let mut bytes = std::fs::read(second).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(second, bytes).unwrap();
    let (mut spool, recovered) = open(directory.path(), limits(500, 16 << 10));
    assert!(recovered.lost_records > 0);
    assert_eq!(recovered.records + recovered.lost_records, 100);
    assert_eq!(recovered.lost_weight, 2 * recovered.lost_records);
    let read = all(&mut spool);
    assert_eq!(u64::try_from(read.len()).unwrap(), recovered.records);
    assert!(read.iter().all(|stored| stored.bytes == payload(stored.number)));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push,
    Acknowledge(u8),
    Restart,
    /// So many bytes are missing at the end of the newest segment.
    Crash(u8),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn in_any_order_of_steps_what_waits_is_what_was_taken_and_not_acknowledged(
        steps in prop::collection::vec(prop_oneof![
            8 => Just(Step::Push), 2 => any::<u8>().prop_map(Step::Acknowledge), 1 => Just(Step::Restart),
            1 => (0..40_u8).prop_map(Step::Crash),
        ], 0..150),
    ) {
        let directory = WorkDir::new("spool-model").unwrap();
        let bounds = limits(400, 4096);
        let (mut spool, _) = open(directory.path(), bounds);
        let (mut model, mut refused, mut offered) = (VecDeque::new(), 0_u64, 0_u64);
        for step in steps {
            match step {
                Step::Push => {
                    offered += 1;
                    match spool.push(1, payload(spool.next())) {
                        Ok(number) => model.push_back(number),
                        Err(Full) => refused += 1,
                    }
                }
                Step::Acknowledge(part) => {
                    let next = spool.oldest() + spool.waiting() * u64::from(part) / 255;
                    spool.acknowledge(next);
                    model.retain(|number| *number >= next);
                }
                Step::Restart | Step::Crash(_) => {
                    drop(spool);
                    if let (Step::Crash(bytes), Some(last)) = (step, segments(directory.path()).last()) {
                        let length = std::fs::metadata(last).unwrap().len().saturating_sub(bytes.into());
                        std::fs::OpenOptions::new().write(true).open(last).unwrap().set_len(length).unwrap();
                    }
                    let recovered;
                    (spool, recovered) = open(directory.path(), bounds);
                    prop_assert_eq!(recovered.lost_records, 0);
                    let torn = model.iter().filter(|number| **number >= spool.next()).count();
                    prop_assert!(torn <= 40, "only the end can be torn");
                    offered -= u64::try_from(torn).unwrap();
                    model.retain(|number| *number < spool.next());
                }
            }
            prop_assert!(spool.memory_bytes() <= bounds.memory && spool.disk_bytes() <= bounds.disk);
            prop_assert!(refused <= offered);
        }
        let read = all(&mut spool);
        prop_assert_eq!(read.iter().map(|stored| stored.number).collect::<VecDeque<_>>(), model);
        prop_assert!(read.iter().all(|stored| stored.bytes == payload(stored.number)));
    }
}
