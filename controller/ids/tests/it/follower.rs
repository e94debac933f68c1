use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fw_ids::follower::{GRACE, MAX_BACKLOG};
use fw_ids::{FollowError, Follower};
use proptest::prelude::*;

use crate::directory::Directory;

/// A follower, its file, and a clock that only this moves.
struct Scene {
    path: PathBuf,
    follower: Follower,
    now: Duration,
    _directory: Directory,
}

impl Scene {
    /// A file with a line, and a follower that has seen it.
    fn new() -> Self {
        let directory = Directory::new();
        let path = directory.path("eve.json");
        fs::write(&path, "before\n").unwrap();
        let follower = Follower::new(path.clone(), None);
        let mut scene = Self { path, follower, now: Duration::ZERO, _directory: directory };
        assert_eq!(scene.step().unwrap(), Vec::<String>::new(), "what was there is not read");
        scene
    }

    fn step(&mut self) -> Result<Vec<String>, FollowError> {
        let mut lines = Vec::new();
        while self.follower.step(self.now, |line| lines.push(String::from_utf8_lossy(line).into_owned()))? {}
        Ok(lines)
    }

    /// A step after the time that a writer has to open its log again.
    fn later(&mut self) -> Result<Vec<String>, FollowError> {
        self.now += GRACE;
        self.step()
    }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn new_lines_are_given_once_and_partial_ones_when_they_are_complete() {
    let mut scene = Scene::new();
    append(&scene.path, "one\ntw");
    assert_eq!(scene.step().unwrap(), ["one"]);
    assert_eq!(scene.step().unwrap(), Vec::<String>::new());
    append(&scene.path, "o\n\nthree\n");
    assert_eq!(scene.step().unwrap(), ["two", "three"]);
    assert_eq!(scene.follower.tail().cut, 0);
}

#[test]
fn a_start_inside_of_a_line_leaves_its_rest_out() {
    let directory = Directory::new();
    let path = directory.path("eve.json");
    fs::write(&path, "before\nhalf of a li").unwrap();
    let mut scene = Scene {
        path: path.clone(),
        follower: Follower::new(path, None),
        now: Duration::ZERO,
        _directory: directory,
    };
    assert_eq!(scene.step().unwrap(), Vec::<String>::new());
    append(&scene.path, "ne\nwhole\n");
    assert_eq!(scene.step().unwrap(), ["whole"]);
}

#[test]
fn a_rotated_file_is_read_to_its_end_and_then_the_new_one_from_its_beginning() {
    let mut scene = Scene::new();
    let old = scene.path.with_extension("1");
    let mut writer = OpenOptions::new().append(true).open(&scene.path).unwrap();
    writer.write_all(b"one\n").unwrap();
    fs::rename(&scene.path, &old).unwrap();
    assert_eq!(scene.step().unwrap(), ["one"], "the path leads nowhere for a moment");
    fs::write(&scene.path, "").unwrap();
    assert_eq!(scene.step().unwrap(), Vec::<String>::new());
    // As long as it was not told to open its log again, the writer goes on in the old file.
    scene.now += GRACE / 2;
    writer.write_all(b"two\n").unwrap();
    assert_eq!(scene.step().unwrap(), ["two"]);
    scene.now += GRACE / 2;
    writer.write_all(b"three\nhalf").unwrap();
    assert_eq!(scene.step().unwrap(), ["three"]);
    append(&scene.path, "four\n");
    assert_eq!(scene.later().unwrap(), ["four"]);
    assert_eq!((scene.follower.tail().rotations, scene.follower.tail().cut), (1, 1));
}

#[test]
fn a_truncated_file_is_read_from_its_beginning() {
    let mut scene = Scene::new();
    append(&scene.path, "one\nhalf");
    assert_eq!(scene.step().unwrap(), ["one"]);
    fs::write(&scene.path, "two\n").unwrap();
    assert_eq!(scene.step().unwrap(), ["two"]);
    assert_eq!((scene.follower.tail().truncations, scene.follower.tail().cut), (1, 1));
}

#[test]
fn a_file_that_comes_later_is_read_from_its_beginning_and_one_that_goes_is_said() {
    let directory = Directory::new();
    let path = directory.path("eve.json");
    let mut scene = Scene {
        path: path.clone(),
        follower: Follower::new(path, None),
        now: Duration::ZERO,
        _directory: directory,
    };
    assert!(matches!(scene.step(), Err(FollowError::Open(_))));
    fs::create_dir(&scene.path).unwrap();
    assert!(matches!(scene.step(), Err(FollowError::NotAFile)));
    fs::remove_dir(&scene.path).unwrap();
    append(&scene.path, "one\n");
    assert_eq!(scene.step().unwrap(), ["one"]);
    fs::remove_file(&scene.path).unwrap();
    assert_eq!(scene.step().unwrap(), Vec::<String>::new());
    assert!(matches!(scene.later(), Err(FollowError::Removed)));
    append(&scene.path, "two\n");
    assert_eq!(scene.step().unwrap(), ["two"]);
}

#[test]
fn what_is_no_file_neither_hangs_nor_is_read() {
    let directory = Directory::new();
    for special in ["/dev/zero", "/dev/tty0"] {
        let mut follower = Follower::new(special.into(), None);
        let error = follower.step(Duration::ZERO, |_| unreachable!());
        assert!(matches!(error, Err(FollowError::NotAFile | FollowError::Open(_))), "{special}: {error:?}");
    }
    let fifo = directory.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut follower = Follower::new(fifo, None);
    assert!(matches!(follower.step(Duration::ZERO, |_| unreachable!()), Err(FollowError::NotAFile)));
}

#[test]
fn a_position_of_an_earlier_life_goes_on_in_the_same_file_only() {
    let mut scene = Scene::new();
    append(&scene.path, "one\nhalf");
    assert_eq!(scene.step().unwrap(), ["one"]);
    let position = scene.follower.position();
    append(&scene.path, " a line\ntwo\n");
    scene.follower = Follower::new(scene.path.clone(), position);
    assert_eq!(scene.step().unwrap(), ["half a line", "two"]);
    // In another file the position means nothing, and what is there is old.
    let position = scene.follower.position();
    let other = scene.path.with_extension("other");
    fs::write(&other, "x".repeat(100) + "\n").unwrap();
    fs::rename(&other, &scene.path).unwrap();
    scene.follower = Follower::new(scene.path.clone(), position);
    assert_eq!(scene.step().unwrap(), Vec::<String>::new());
    append(&scene.path, "three\n");
    assert_eq!(scene.step().unwrap(), ["three"]);
}

#[test]
fn what_comes_too_fast_is_skipped_and_every_byte_is_accounted_for() {
    let mut scene = Scene::new();
    let line = format!("{}\n", "x".repeat(99));
    let mut file = File::options().append(true).open(&scene.path).unwrap();
    let written = MAX_BACKLOG * 2;
    for _ in 0..written / 100_000 {
        file.write_all(line.repeat(1000).as_bytes()).unwrap();
    }
    let lines = scene.step().unwrap();
    let tail = scene.follower.tail();
    assert!(tail.skipped > 0);
    assert_eq!(tail.bytes + tail.skipped, written / 100_000 * 100_000);
    assert!(lines.iter().all(|line| line.len() == 99), "no half line is given");
    let read = u64::try_from(lines.len()).unwrap() * 100;
    assert!(tail.bytes - read < 100, "{} bytes were read, {read} given", tail.bytes);
    append(&scene.path, "still here\n");
    assert_eq!(scene.step().unwrap(), ["still here"]);
}

/// What a writer may do between two steps.
#[derive(Clone, Debug)]
enum Deed {
    Write(u8),
    Rotate,
    Step,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A writer that rotates and is given the time to finish loses no line, and none comes twice.
    #[test]
    fn rotations_lose_no_line(
        deeds in proptest::collection::vec(
            prop_oneof![(1_u8..20).prop_map(Deed::Write), Just(Deed::Rotate), Just(Deed::Step)], 1..40,
        ),
    ) {
        let mut scene = Scene::new();
        let (mut wanted, mut got) = (Vec::new(), Vec::new());
        for deed in deeds {
            match deed {
                Deed::Write(lines) => {
                    for _ in 0..lines {
                        let line = format!("line {}", wanted.len());
                        append(&scene.path, &format!("{line}\n"));
                        wanted.push(line);
                    }
                }
                Deed::Rotate => {
                    got.extend(scene.step().unwrap());
                    fs::rename(&scene.path, scene.path.with_extension("1")).unwrap();
                    append(&scene.path, "");
                    got.extend(scene.step().unwrap());
                    got.extend(scene.later().unwrap());
                }
                Deed::Step => got.extend(scene.step().unwrap()),
            }
        }
        got.extend(scene.step().unwrap());
        prop_assert_eq!(got, wanted);
    }
}
