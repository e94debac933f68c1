//! The order in which nftables and what marks packets beside it change.

use fw_nft::{ElementChange, TimedElement};
use fw_ruleset::FQDN_CELLS;
use fw_ruleset::ir::{Key as ElementKey, Value};

use super::*;

/// What the reconciler told the path of names.
#[derive(Default)]
struct Told {
    found: BTreeSet<u32>,
    /// The mask of each stop.
    stops: Vec<u32>,
    installed: Vec<Option<Arc<Installation>>>,
    /// How many commits there were at each of them.
    commits_at_stop: Vec<usize>,
}

/// A path of names that marks by nftables' maps, and does what it is told or not.
#[derive(Clone, Default)]
struct FakePath {
    told: Arc<Mutex<Told>>,
    kernel: FakeKernel,
    refuses: Arc<Mutex<bool>>,
}

impl NamePath for FakePath {
    fn prepare(&mut self, _: &fw_policy::PolicySet) -> Prepared {
        Prepared { stamp: fw_ruleset::Stamp::Sets, ..Prepared::default() }
    }

    fn in_use(&mut self) -> BTreeSet<u32> {
        self.told.lock().unwrap().found.clone()
    }

    fn found(&mut self, indexes: BTreeSet<u32>) {
        self.told.lock().unwrap().found.extend(indexes);
    }

    fn withdraw(&mut self, _: &BTreeSet<u32>) -> Result<(), String> {
        Ok(())
    }

    fn stop_other_marks(&mut self, mask: u32) -> Result<bool, String> {
        let mut told = self.told.lock().unwrap();
        told.stops.push(mask);
        told.commits_at_stop.push(self.kernel.commits().len());
        if *self.refuses.lock().unwrap() { Err("it is busy".to_owned()) } else { Ok(true) }
    }

    fn pass_all(&mut self) {}

    fn install(&mut self, installation: Option<Arc<Installation>>) {
        self.told.lock().unwrap().installed.push(installation);
    }
}

impl FakePath {
    fn of(machine: &Machine) -> Self {
        Self { kernel: machine.kernel.clone(), ..Self::default() }
    }

    fn boot(&self, machine: &Machine) -> Reconciler {
        let remembered = machine.memory.0.lock().unwrap().clone();
        let (kernel, memory) = (Box::new(machine.kernel.clone()), Box::new(machine.memory.clone()));
        let host = Box::new(machine.host.clone());
        Reconciler::start(kernel, host, memory, Box::new(self.clone()), remembered, Instant::now())
    }

    /// The last one that was installed.
    fn held(&self) -> Installation {
        Installation::clone(self.told.lock().unwrap().installed.last().unwrap().as_ref().unwrap())
    }

    fn mask(&self) -> u32 {
        self.held().firewall.fastpath.mark_mask
    }
}

const MASKS: [u32; 2] = [0x00ff_ff00, 0x01ff_fe00];

fn masked(mask: u32) -> String {
    format!("{FIREWALL}, fastpath: {{mode: off, markMask: '{mask:#010x}'}}}}\n")
}

fn to_name(policy: &str) -> String {
    format!(
        "apiVersion: metal-stack.io/v1\nkind: ClusterwideNetworkPolicy\nmetadata: {{name: {policy}, namespace: firewall}}\n\
         spec: {{egress: [{{toFQDNs: [{{matchName: {policy}.example}}], ports: [{{protocol: TCP, port: 443}}]}}]}}\n"
    )
}

/// A cell of a class with a mark, as the thread of names puts it.
fn cell(class: u32, mark: u32) -> ElementChange {
    let corner = |port| vec![Value::Mark(class), Value::Protocol(6), Value::Port(port)];
    let key = ElementKey::Box(corner(443), corner(443));
    ElementChange::Put(FQDN_CELLS.to_owned(), TimedElement { key, mark: Some(mark), expires_in_ms: None })
}

fn cells(machine: &Machine) -> Vec<u32> {
    let cells = machine.kernel.clone().timed_elements(FQDN_CELLS).unwrap();
    cells.into_iter().filter_map(|cell| cell.mark).collect()
}

/// A machine on which index 2 is marked by the first mask.
fn marked() -> (Machine, FakePath, Reconciler) {
    let machine = Machine::default();
    let path = FakePath::of(&machine);
    let mut reconciler = path.boot(&machine);
    give(&mut reconciler, &[masked(MASKS[0]), to_name("a"), to_name("b")]);
    assert_eq!(path.held().table.entries.len(), 2);
    let emptied = path.held().emptied;
    reconciler.update_elements(&[cell(7, 2 << 8)], emptied).unwrap();
    assert_eq!(cells(&machine), [2 << 8]);
    (machine, path, reconciler)
}

#[test]
fn before_another_mask_is_read_nothing_is_marked_by_the_old_one() {
    let (machine, path, mut reconciler) = marked();
    let (commits, emptied) = (machine.kernel.commits().len(), path.held().emptied);
    path.told.lock().unwrap().stops.clear();
    path.told.lock().unwrap().commits_at_stop.clear();
    give(&mut reconciler, &[masked(MASKS[0]), to_name("a"), to_name("b"), to_name("c")]);
    assert!(path.told.lock().unwrap().stops.is_empty(), "the mask is as before");
    assert_eq!((cells(&machine), path.held().emptied), (vec![2 << 8], emptied));

    give(&mut reconciler, &[masked(MASKS[1]), to_name("a"), to_name("b")]);
    let told = path.told.lock().unwrap();
    assert_eq!((&told.stops[..], &told.commits_at_stop[..]), (&MASKS[1..], &[commits + 1][..]));
    drop(told);
    assert!(cells(&machine).is_empty());
    assert_eq!((path.mask(), path.held().emptied), (MASKS[1], emptied + 1));
    // What was made from the maps as they were comes too late.
    reconciler.update_elements(&[cell(8, 2 << 8)], emptied).unwrap_err();
    assert!(cells(&machine).is_empty());
    reconciler.update_elements(&[cell(8, 2 << 9)], emptied + 1).unwrap();
    assert_eq!(cells(&machine), [2 << 9]);
}

#[test]
fn a_refused_change_of_the_mask_has_the_old_marks_written_again() {
    let (machine, path, mut reconciler) = marked();
    let emptied = path.held().emptied;
    machine.kernel.inject(Fault::Whole(NO_MEMORY));
    give(&mut reconciler, &[masked(MASKS[1]), to_name("a"), to_name("b")]);
    assert!(reconciler.view().refused.is_some());
    assert_eq!((path.mask(), path.held().emptied), (MASKS[0], emptied + 1), "it is to be filled again");
    reconciler.update_elements(&[cell(7, 2 << 8)], emptied + 1).unwrap();
    let at = reconciler.retry_at().unwrap();
    reconciler.retry(at);
    assert_eq!((path.mask(), path.held().emptied), (MASKS[1], emptied + 2));
    assert!(cells(&machine).is_empty());
}

#[test]
fn while_marking_cannot_be_stopped_the_mask_stays() {
    let (machine, path, mut reconciler) = marked();
    let commits = machine.kernel.commits().len();
    *path.refuses.lock().unwrap() = true;
    give(&mut reconciler, &[masked(MASKS[1]), to_name("a"), to_name("b")]);
    assert_eq!((machine.kernel.commits().len(), path.mask()), (commits, MASKS[0]));
    assert!(reconciler.view().refused.is_some_and(|why| why.contains("it is busy")));
    *path.refuses.lock().unwrap() = false;
    let at = reconciler.retry_at().unwrap();
    reconciler.retry(at);
    assert_eq!((path.mask(), reconciler.view().refused), (MASKS[1], None));
}

#[test]
fn a_start_with_another_mask_takes_the_marks_out_and_one_with_the_same_keeps_them() {
    for (mask, left) in [(MASKS[0], vec![2 << 8]), (MASKS[1], vec![])] {
        let (machine, _, _) = marked();
        machine.memory.0.lock().unwrap().snapshot = None;
        let path = FakePath::of(&machine);
        let mut next = path.boot(&machine);
        give(&mut next, &[masked(mask), to_name("a"), to_name("b")]);
        assert_eq!(path.mask(), mask);
        assert_eq!(cells(&machine), left, "{mask:#x}");
        assert_eq!(path.held().emptied, u64::from(mask != MASKS[0]));
    }
}

#[test]
fn an_index_that_is_left_in_nftables_maps_is_no_other_entrys_at_the_next_start() {
    let (machine, _, mut first) = marked();
    // The commit that took `b` away, and a kill before its cells went.
    give(&mut first, &[masked(MASKS[0]), to_name("a")]);
    machine.memory.0.lock().unwrap().snapshot = None;
    let path = FakePath::of(&machine);
    let mut next = path.boot(&machine);
    give(&mut next, &[masked(MASKS[0]), to_name("a"), to_name("z")]);
    assert!(path.told.lock().unwrap().found.contains(&2));
    let entries = path.held().table.entries.clone();
    let indexes: Vec<(&str, u32)> =
        entries.iter().map(|(entry, (index, _))| (entry.policy.as_str(), *index)).collect();
    assert_eq!(indexes, [("a", 1), ("z", 3)]);
}

#[test]
fn a_first_commit_that_fails_forgets_nothing() {
    let (machine, _, _) = marked();
    machine.memory.0.lock().unwrap().snapshot = None;
    let path = FakePath::of(&machine);
    let mut next = path.boot(&machine);
    machine.kernel.inject(Fault::Whole(NO_MEMORY));
    give(&mut next, &[masked(MASKS[0]), to_name("a")]);
    assert!(next.view().refused.is_some());
    assert!(path.told.lock().unwrap().installed.is_empty(), "what was learned would be gone");
    let at = next.retry_at().unwrap();
    next.retry(at);
    assert_eq!(path.held().table.entries.len(), 1);
}

#[test]
fn maps_that_others_were_at_are_read_and_filled_again() {
    let (machine, path, mut reconciler) = marked();
    let emptied = path.held().emptied;
    // Elements are no part of the ruleset: nothing tells whether some are gone.
    machine.kernel.commit_elsewhere();
    reconciler.drifted(&lost(), Instant::now());
    assert_eq!((path.held().emptied, reconciler.view().tally.repairs), (emptied + 1, 0));
    reconciler.update_elements(&[cell(8, 1 << 8)], emptied).unwrap_err();

    machine.kernel.vanish();
    reconciler.drifted(&Drift { deleted: true, ..lost() }, Instant::now());
    assert!(cells(&machine).is_empty());
    assert!(path.held().emptied > emptied + 1, "the table was made again");
}

#[test]
fn maps_that_an_edit_had_to_make_again_are_filled_again() {
    let (machine, path, mut reconciler) = marked();
    let emptied = path.held().emptied;
    machine.kernel.vanish();
    // The edit is there before the notification.
    give(&mut reconciler, &[masked(MASKS[0]), to_name("a"), to_name("b"), to_name("c")]);
    assert!(reconciler.view().refused.is_none() && machine.kernel.ruleset().is_some());
    assert_eq!((cells(&machine), path.held().emptied), (vec![], emptied + 1));
    give(&mut reconciler, &[masked(MASKS[0]), to_name("a"), to_name("b")]);
    assert_eq!(path.held().emptied, emptied + 1, "they were there");
}
