use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::temporary::TemporaryDirectory;

fn policy(name: &str) -> String {
    format!(
        "apiVersion: metal-stack.io/v1\nkind: ClusterwideNetworkPolicy\n\
         metadata: {{name: {name}, namespace: firewall}}\nspec: {{egress: [{{}}]}}\n"
    )
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    let name = |manifest: &Manifest| manifest.id().unwrap().name.clone();
    snapshot.manifests().map(name).collect()
}

/// One scan without inotify.
fn scan_once(cache: &mut Cache) -> Snapshot {
    cache.update(&BTreeSet::new(), false);
    cache.snapshot()
}

fn cache_of(directory: &TemporaryDirectory) -> Cache {
    Cache::new(directory.path().to_owned(), &Groups::new())
}

#[test]
fn manifests_are_found_by_extension_also_below_and_leftovers_of_editors_are_ignored() {
    let directory = TemporaryDirectory::new("manifests");
    fs::create_dir_all(directory.path().join("team/a")).unwrap();
    fs::create_dir(directory.path().join(".git")).unwrap();
    for (file, name) in [
        ("a.yaml", "a"),
        ("team/a/b.yml", "b"),
        ("c.json", "c"),
        ("a.yaml~", "no"),
        (".a.yaml.swp", "no"),
        (".#a.yaml", "no"),
        ("#a.yaml#", "no"),
        ("README.md", "no"),
        (".git/x.yaml", "no"),
    ] {
        fs::write(directory.path().join(file), policy(name)).unwrap();
    }
    let snapshot = scan_once(&mut cache_of(&directory));
    assert_eq!(names(&snapshot), ["a", "c", "b"]);
    assert_eq!(snapshot.findings, []);
    assert!(snapshot.fresh);
}

#[test]
fn a_file_that_does_not_parse_keeps_its_last_objects_until_it_does_or_is_removed() {
    let directory = TemporaryDirectory::new("manifests");
    let (good, bad) = (directory.path().join("good.yaml"), directory.path().join("bad.yaml"));
    fs::write(&good, policy("good")).unwrap();
    fs::write(&bad, policy("first")).unwrap();
    let mut cache = cache_of(&directory);
    assert_eq!(names(&scan_once(&mut cache)), ["first", "good"]);

    fs::write(&bad, &policy("second")[..60]).unwrap();
    fs::write(&good, policy("better")).unwrap();
    let snapshot = scan_once(&mut cache);
    assert_eq!(names(&snapshot), ["first", "better"]);
    let finding = snapshot.findings[0].to_string();
    assert!(finding.contains("bad.yaml") && finding.contains("stays in force"), "{finding}");
    assert_eq!(snapshot.counters.parse_errors, 1);

    // Cut off elsewhere it does not parse at all.
    fs::write(&bad, &policy("second")[..100]).unwrap();
    let snapshot = scan_once(&mut cache);
    assert_eq!(names(&snapshot), ["first", "better"]);
    assert_eq!(snapshot.counters.parse_errors, 2);

    fs::write(&bad, policy("third")).unwrap();
    let snapshot = scan_once(&mut cache);
    assert_eq!(names(&snapshot), ["third", "better"]);
    assert_eq!(snapshot.findings, []);

    fs::remove_file(&bad).unwrap();
    assert_eq!(names(&scan_once(&mut cache)), ["better"]);
}

#[test]
fn an_unparsable_file_keeps_the_objects_it_had_before_the_restart() {
    let directory = TemporaryDirectory::new("manifests");
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy("a")).unwrap();
    let before = scan_once(&mut cache_of(&directory));
    fs::write(&file, "{").unwrap();
    let mut cache = Cache::new(directory.path().to_owned(), &before.groups);
    let snapshot = scan_once(&mut cache);
    assert_eq!(names(&snapshot), ["a"]);
    assert_eq!(snapshot.findings.len(), 1);
}

#[test]
fn an_emptied_file_keeps_its_objects_and_a_file_of_comments_loses_them() {
    let directory = TemporaryDirectory::new("manifests");
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy("a")).unwrap();
    let mut cache = cache_of(&directory);
    scan_once(&mut cache);
    fs::write(&file, "").unwrap();
    let snapshot = scan_once(&mut cache);
    assert_eq!(names(&snapshot), ["a"]);
    assert!(snapshot.findings[0].message.contains("empty"));
    fs::write(&file, "# gone\n").unwrap();
    let snapshot = scan_once(&mut cache);
    assert_eq!((names(&snapshot), snapshot.findings), (vec![], vec![]));
}

#[test]
fn a_missing_directory_changes_nothing_and_is_reported() {
    let directory = TemporaryDirectory::new("manifests");
    let root = directory.path().join("m");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), policy("a")).unwrap();
    let mut cache = Cache::new(root.clone(), &Groups::new());
    scan_once(&mut cache);
    fs::remove_dir_all(&root).unwrap();
    let snapshot = scan_once(&mut cache);
    assert_eq!(names(&snapshot), ["a"]);
    assert!(!snapshot.fresh && snapshot.note.contains("waiting for directory"), "{}", snapshot.note);
    assert!(snapshot.findings[0].message.contains("1 objects known from before stay in force"));
    fs::create_dir(&root).unwrap();
    let snapshot = scan_once(&mut cache);
    assert!(snapshot.fresh && snapshot.groups.is_empty() && snapshot.findings.is_empty());
}

#[test]
fn fifos_loops_dangling_links_and_directories_without_end_do_not_stop_the_rest() {
    let directory = TemporaryDirectory::new("manifests");
    let at = |name: &str| directory.path().join(name);
    nix::unistd::mkfifo(&at("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(at("loop.yaml"), at("loop.yaml")).unwrap();
    symlink(at("nowhere"), at("dangling.yaml")).unwrap();
    symlink(directory.path(), at("self")).unwrap();
    symlink("/dev/zero", at("zero.yaml")).unwrap();
    fs::create_dir_all(at("1/2/3/4/5/6/7/8/9/10")).unwrap();
    fs::write(at("good.yaml"), policy("good")).unwrap();
    let snapshot = scan_once(&mut cache_of(&directory));
    assert_eq!(names(&snapshot), ["good"]);
    let reported: Vec<String> = snapshot.findings.iter().map(ToString::to_string).collect();
    for name in ["fifo.yaml", "loop.yaml", "dangling.yaml", "self", "zero.yaml", "1/2/3/4/5/6/7/8/9"] {
        assert!(reported.iter().any(|line| line.contains(name)), "{name} is not in {reported:?}");
    }
    assert_eq!(reported.len(), 6);
}

#[test]
fn a_file_over_the_size_bound_is_reported_and_keeps_its_objects() {
    let directory = TemporaryDirectory::new("manifests");
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy("a")).unwrap();
    let mut cache = cache_of(&directory);
    scan_once(&mut cache);
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(fw_intake::MAX_FILE_BYTES as u64 + 1)
        .unwrap();
    let snapshot = scan_once(&mut cache);
    assert_eq!(names(&snapshot), ["a"]);
    assert!(snapshot.findings[0].message.contains("more than"), "{}", snapshot.findings[0]);
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let directory = TemporaryDirectory::new("manifests");
    for name in ["a", "b", "c"] {
        fs::write(directory.path().join(format!("{name}.yaml")), policy(name)).unwrap();
    }
    let mut cache = cache_of(&directory);
    scan_once(&mut cache);
    fs::write(directory.path().join("b.yaml"), policy("b2")).unwrap();
    let snapshot = scan_once(&mut cache);
    assert_eq!(snapshot.counters.files_parsed, 4);
}

#[test]
fn resolution_points_name_every_link_on_the_way() {
    let directory = TemporaryDirectory::new("manifests");
    let root = directory.path();
    fs::create_dir(root.join("v1")).unwrap();
    fs::write(root.join("v1/a.yaml"), "").unwrap();
    symlink("v1", root.join("..data")).unwrap();
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    let points = files::resolution_points(&root.join("a.yaml"));
    for (below, name) in [("", "a.yaml"), ("", "..data"), ("v1", "a.yaml")] {
        let wanted = (if below.is_empty() { root.to_owned() } else { root.join(below) }, name.into());
        assert!(points.contains(&wanted), "{wanted:?} is not in {points:?}");
    }
    let points = files::resolution_points(&root.join("missing/x/y"));
    assert_eq!(points.into_iter().collect::<Vec<_>>(), [(root.to_owned(), "missing".into())]);
}

/// A running source, watched through its output.
struct Live {
    output: watch::Receiver<Option<Arc<Snapshot>>>,
    rescan: Arc<Notify>,
    task: tokio::task::JoinHandle<Result<(), SourceError>>,
}

impl Live {
    fn start(root: &Path) -> Self {
        let (sender, output) = watch::channel(None);
        let rescan = Arc::new(Notify::new());
        let source = Box::new(ManifestDirectory::new(root.to_owned(), &Groups::new()));
        Self { output, task: tokio::spawn(source.run(sender, Arc::clone(&rescan))), rescan }
    }

    /// Waits until the source has exactly these objects.
    async fn expect(&mut self, wanted: &[&str]) {
        let holds = |snapshot: &Option<Arc<Snapshot>>| snapshot.as_ref().is_some_and(|s| names(s) == wanted);
        let waited = timeout(Duration::from_secs(20), self.output.wait_for(holds)).await.map(|r| r.map(drop));
        let have = self.output.borrow().as_ref().map(|snapshot| names(snapshot));
        assert!(matches!(waited, Ok(Ok(()))), "wanted {wanted:?}, have {have:?}");
    }
}

#[tokio::test]
async fn every_way_of_changing_a_file_is_noticed() {
    let directory = TemporaryDirectory::new("manifests");
    let at = |name: &str| directory.path().join(name);
    let mut live = Live::start(directory.path());
    live.expect(&[]).await;
    fs::write(at("a.yaml"), policy("a1")).unwrap();
    live.expect(&["a1"]).await;
    // As editors save: write beside, rename over.
    fs::write(at(".a.yaml.swp"), policy("a2")).unwrap();
    fs::rename(at(".a.yaml.swp"), at("a.yaml")).unwrap();
    live.expect(&["a2"]).await;
    // As vim saves with backupcopy=no: move away, write anew, remove.
    fs::rename(at("a.yaml"), at("a.yaml~")).unwrap();
    fs::write(at("a.yaml"), policy("a3")).unwrap();
    fs::remove_file(at("a.yaml~")).unwrap();
    live.expect(&["a3"]).await;
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/b.yaml"), policy("b")).unwrap();
    live.expect(&["a3", "b"]).await;
    fs::rename(at("sub/b.yaml"), at("sub/b.txt")).unwrap();
    live.expect(&["a3"]).await;
    fs::hard_link(at("sub/b.txt"), at("sub/b.yml")).unwrap();
    live.expect(&["a3", "b"]).await;
    fs::remove_dir_all(at("sub")).unwrap();
    live.expect(&["a3"]).await;
}

#[tokio::test]
async fn a_config_map_style_swap_is_one_change_and_never_a_gap() {
    let directory = TemporaryDirectory::new("manifests");
    let at = |name: &str| directory.path().join(name);
    for version in ["..v1", "..v2"] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), policy(&format!("a{}", &version[2..]))).unwrap();
    }
    symlink("..v1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let mut live = Live::start(directory.path());
    live.expect(&["av1"]).await;
    symlink("..v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir_all(at("..v1")).unwrap();
    live.expect(&["av2"]).await;
    assert_eq!(live.output.borrow().as_ref().unwrap().findings, []);
}

#[tokio::test]
async fn the_directory_itself_may_come_go_and_be_a_swapped_link() {
    let directory = TemporaryDirectory::new("manifests");
    let at = |name: &str| directory.path().join(name);
    let mut live = Live::start(&at("x/current"));
    live.expect(&[]).await;
    assert!(!live.output.borrow().as_ref().unwrap().fresh);
    for version in ["v1", "v2"] {
        fs::create_dir_all(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), policy(version)).unwrap();
    }
    fs::create_dir(at("x")).unwrap();
    symlink(at("v1"), at("x/current")).unwrap();
    live.expect(&["v1"]).await;
    symlink(at("v2"), at("x/next")).unwrap();
    fs::rename(at("x/next"), at("x/current")).unwrap();
    live.expect(&["v2"]).await;
    fs::write(at("v2/b.yaml"), policy("b")).unwrap();
    live.expect(&["v2", "b"]).await;
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_not_read() {
    use std::io::Write;

    let directory = TemporaryDirectory::new("manifests");
    let file = directory.path().join("a.yaml");
    fs::write(&file, format!("{}---\n{}", policy("a"), policy("b"))).unwrap();
    let mut live = Live::start(directory.path());
    live.expect(&["a", "b"]).await;
    let mut open = fs::File::create(&file).unwrap();
    open.write_all(policy("a").as_bytes()).unwrap();
    // Longer than the debounce, so that the source has had every chance to read the half.
    sleep(MAX_DELAY * 2).await;
    assert_eq!(names(live.output.borrow().as_ref().unwrap()), ["a", "b"]);
    open.write_all(format!("---\n{}", policy("c")).as_bytes()).unwrap();
    drop(open);
    live.expect(&["a", "c"]).await;
}

#[tokio::test]
async fn a_rescan_reads_everything_again_and_the_source_ends_with_its_reader() {
    let directory = TemporaryDirectory::new("manifests");
    fs::write(directory.path().join("a.yaml"), policy("a")).unwrap();
    let mut live = Live::start(directory.path());
    live.expect(&["a"]).await;
    let parsed = live.output.borrow().as_ref().unwrap().counters.files_parsed;
    live.rescan.notify_one();
    sleep(MAX_DELAY).await;
    fs::write(directory.path().join("b.yaml"), policy("b")).unwrap();
    live.expect(&["a", "b"]).await;
    assert_eq!(live.output.borrow().as_ref().unwrap().counters.files_parsed, parsed + 2);
    drop(live.output);
    timeout(Duration::from_secs(20), live.task).await.unwrap().unwrap().unwrap();
}

#[test]
fn lost_events_make_everything_be_read_again() {
    let mut writing = BeingWritten::default();
    let now = Instant::now();
    assert!(writing.note(Changes { any: true, overflow: true, ..Changes::default() }, now));
    assert!(writing.take_overflow() && !writing.take_overflow());
}

#[test]
fn a_file_that_is_written_for_ever_is_read_after_a_while() {
    let mut writing = BeingWritten::default();
    let now = Instant::now();
    let path = PathBuf::from("a.yaml");
    writing.note(Changes { any: true, being_written: [path.clone()].into(), ..Changes::default() }, now);
    assert_eq!(writing.held(now), [path].into());
    assert_eq!(writing.next_look(now, false), MAX_WRITE);
    assert_eq!(writing.held(now + MAX_WRITE), BTreeSet::new());
}
