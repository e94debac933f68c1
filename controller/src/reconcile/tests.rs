mod long;

use std::sync::Mutex;

use fw_intake::parse;
use fw_nft::Foreign;
use fw_nft::fake::{FakeKernel, Fault};
use fw_ruleset::{Count, Op};

use super::*;
use crate::published::{Key, Published};

mod names;

/// ENOMEM.
const NO_MEMORY: i32 = 12;

/// A host whose one interface and its route the test changes.
#[derive(Clone, Default)]
struct FakeHost(Arc<Mutex<Vec<fw_intake::Interface>>>);

impl FakeHost {
    fn route(&self, prefix: &str, interface: &str) {
        let prefixes = BTreeSet::from([prefix.parse().unwrap()]);
        *self.0.lock().unwrap() =
            vec![fw_intake::Interface { name: interface.parse().unwrap(), vrf: None, prefixes }];
    }
}

impl Host for FakeHost {
    fn facts(&mut self, questions: Questions) -> HostFacts {
        let interfaces = questions.routes.then(|| self.0.lock().unwrap().clone());
        HostFacts { interfaces, ..HostFacts::default() }
    }
}

/// What was kept, shared with the test.
#[derive(Clone, Default)]
struct FakeMemory(Arc<Mutex<Remembered>>);

impl Memory for FakeMemory {
    fn snapshot(&mut self, snapshot: Arc<Snapshot>, firewall: Option<Manifest>) {
        self.0.lock().unwrap().snapshot = Some(StoredSnapshot::new(&snapshot, firewall));
    }

    fn forget_snapshot(&mut self) {
        self.0.lock().unwrap().snapshot = None;
    }

    fn kernel(&mut self, published: Arc<Published>, from_firewall: bool) {
        let record = KernelRecord { published: Published::clone(&published), from_firewall };
        self.0.lock().unwrap().kernel = Some(record);
    }

    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A machine on which controllers come and go.
#[derive(Default)]
struct Machine {
    kernel: FakeKernel,
    memory: FakeMemory,
    host: FakeHost,
}

impl Machine {
    fn boot(&self) -> Reconciler {
        let remembered = self.memory.0.lock().unwrap().clone();
        let (kernel, memory) = (Box::new(self.kernel.clone()), Box::new(self.memory.clone()));
        let names = Box::new(NoNames);
        Reconciler::start(kernel, Box::new(self.host.clone()), memory, names, remembered, Instant::now())
    }

    fn chains(&self) -> Vec<String> {
        self.kernel.ruleset().map(|ruleset| ruleset.chains.into_keys().collect()).unwrap_or_default()
    }

    fn has_policy(&self, name: &str) -> bool {
        self.chains().contains(&format!("egress-{name}-tcp"))
    }
}

const FIREWALL: &str = "apiVersion: metal-stack.io/v1\nkind: Firewall\nmetadata: {name: firewall, namespace: firewall}\n\
                        spec: {insideInterfaces: [vrf1], clusterPrefixes: [10.0.0.0/8]";

fn firewall() -> String {
    format!("{FIREWALL}}}\n")
}

fn dry_firewall() -> String {
    format!("{FIREWALL}, dryrun: true}}\n")
}

fn policy(name: &str) -> String {
    format!(
        "apiVersion: metal-stack.io/v1\nkind: ClusterwideNetworkPolicy\nmetadata: {{name: {name}, namespace: firewall}}\n\
         spec: {{egress: [{{to: [{{cidr: 192.0.2.0/24}}], ports: [{{protocol: TCP, port: 443}}]}}]}}\n"
    )
}

fn snapshot(documents: &[String]) -> Arc<Snapshot> {
    let group = |(index, text): (usize, &String)| {
        let path = format!("{index}.yaml");
        let manifests = parse(&path, text.as_bytes()).unwrap().into_iter().map(Arc::new).collect();
        (path, Arc::new(manifests))
    };
    let groups = documents.iter().enumerate().map(group).collect();
    Arc::new(Snapshot { groups, fresh: true, ..Snapshot::default() })
}

fn give(reconciler: &mut Reconciler, documents: &[String]) {
    reconciler.objects(snapshot(documents), Instant::now());
}

fn web() -> Key {
    Key::Rule { chain: "egress-web-tcp".to_owned(), comment: "accept traffic for np web tcp".to_owned() }
}

fn published(reconciler: &mut Reconciler, key: &Key) -> Option<u64> {
    reconciler.read_counters().unwrap();
    reconciler.view().published.get(key).map(|count| count.packets)
}

fn packets(packets: u64) -> Count {
    Count { packets, bytes: packets * 100 }
}

fn lost() -> Drift {
    Drift { process: Some("nft (4711)".to_owned()), ..Drift::default() }
}

#[test]
fn a_cold_start_installs_the_base_ruleset_first_and_then_what_was_remembered() {
    let machine = Machine::default();
    let mut first = machine.boot();
    assert_eq!(first.view().state, State::Enforcing(Basis::Base));
    assert_eq!(machine.kernel.commits().len(), 1);
    give(&mut first, &[firewall(), policy("web")]);
    assert_eq!(first.view().state, State::Enforcing(Basis::Current));

    // A reboot: the table is gone, the state directory is not.
    machine.kernel.vanish();
    let mut second = machine.boot();
    assert_eq!(second.view().state, State::Enforcing(Basis::Snapshot));
    assert!(machine.has_policy("web"));
    let commits = machine.kernel.commits();
    let base = fw_ruleset::plan(None, &Judged::base().ruleset, &fw_ruleset::Counts::default());
    assert_eq!(commits[commits.len() - 2], base);
}

#[test]
fn a_restart_adopts_the_table_and_changes_nothing_until_a_source_has_listed() {
    let machine = Machine::default();
    give(&mut machine.boot(), &[firewall(), policy("web"), policy("mail")]);
    let commits = machine.kernel.commits().len();
    // Killed between the commit and the writing of the snapshot: the stored objects are older than the kernel's.
    let older = StoredSnapshot::new(&snapshot(&[firewall(), policy("web")]), None);
    machine.memory.0.lock().unwrap().snapshot = Some(older);
    let mut second = machine.boot();
    assert_eq!(second.view().state, State::Enforcing(Basis::Adopted));
    let stale =
        Snapshot { fresh: false, note: "waiting".to_owned(), ..Snapshot::clone(&snapshot(&[firewall()])) };
    second.objects(Arc::new(stale), Instant::now());
    assert!(machine.has_policy("mail"));
    assert_eq!(second.view().waiting_for, "waiting");
    assert_eq!(machine.kernel.commits().len(), commits);
    give(&mut second, &[firewall(), policy("web"), policy("mail")]);
    assert_eq!(machine.kernel.commits().len(), commits);
    assert_eq!(second.view().state, State::Enforcing(Basis::Current));
}

#[test]
fn a_base_ruleset_that_a_kill_left_behind_is_followed_by_what_was_remembered() {
    let machine = Machine::default();
    machine.boot();
    for (text, enforced) in [(firewall(), true), (dry_firewall(), false)] {
        let stored = StoredSnapshot::new(&snapshot(&[text, policy("web")]), None);
        machine.memory.0.lock().unwrap().snapshot = Some(stored);
        let mut second = machine.boot();
        assert_eq!(machine.has_policy("web"), enforced);
        if enforced {
            assert_eq!(second.view().state, State::Enforcing(Basis::Snapshot));
            machine.kernel.vanish();
            machine.memory.0.lock().unwrap().snapshot = None;
            machine.boot();
        } else {
            assert_eq!(machine.kernel.ruleset(), None);
        }
    }
}

#[test]
fn the_same_objects_again_touch_nothing() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall(), policy("web")]);
    let commits = machine.kernel.commits().len();
    give(&mut reconciler, &[policy("web"), firewall()]);
    assert_eq!(machine.kernel.commits().len(), commits);
}

#[test]
fn a_refused_change_leaves_what_is_enforced_and_is_tried_again() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall(), policy("web")]);
    machine.kernel.inject(Fault::Refuse { op: 0, errno: NO_MEMORY });
    give(&mut reconciler, &[firewall(), policy("web"), policy("mail")]);
    let view = reconciler.view();
    assert!(machine.has_policy("web") && !machine.has_policy("mail"));
    assert_eq!(view.state, State::Enforcing(Basis::Current));
    let refused = view.refused.unwrap();
    assert!(refused.contains("mail") && refused.contains("nothing was applied"), "{refused}");
    assert!(!view.enforced.unwrap().set.policies.contains_key("mail"));
    // What was refused is not what a reboot should begin with.
    let stored = machine.memory.0.lock().unwrap().snapshot.clone().unwrap();
    assert_eq!(stored.groups.len(), 2);

    let at = reconciler.retry_at().unwrap();
    reconciler.retry(at);
    assert!(machine.has_policy("mail"));
    assert_eq!((reconciler.view().refused, reconciler.retry_at()), (None, None));
    assert_eq!(machine.memory.0.lock().unwrap().snapshot.as_ref().unwrap().groups.len(), 3);
}

#[test]
fn waiting_times_between_attempts_grow_to_a_bound() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    let mut waits = Vec::new();
    give(&mut reconciler, &[firewall()]);
    for attempt in 0..9 {
        machine.kernel.inject(Fault::Whole(NO_MEMORY));
        let now = Instant::now();
        if attempt == 0 {
            give(&mut reconciler, &[firewall(), policy("web")]);
        } else {
            reconciler.retry(now);
        }
        waits.push(reconciler.view().retry_in.unwrap().as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn stale_and_uncertain_transactions_are_read_again_and_end_right() {
    for fault in [Fault::Stale, Fault::Uncertain { applied: true }, Fault::Uncertain { applied: false }] {
        let machine = Machine::default();
        let mut reconciler = machine.boot();
        machine.kernel.inject(fault);
        give(&mut reconciler, &[firewall(), policy("web")]);
        assert!(machine.has_policy("web"), "{fault:?}");
        assert_eq!(reconciler.view().refused, None, "{fault:?}");
    }
}

#[test]
fn a_base_that_cannot_be_installed_is_not_called_enforcing() {
    let machine = Machine::default();
    machine.kernel.inject(Fault::Whole(NO_MEMORY));
    let mut reconciler = machine.boot();
    assert!(matches!(reconciler.view().state, State::NotEnforcing(_)));
    reconciler.retry(Instant::now());
    assert_eq!(reconciler.view().state, State::Enforcing(Basis::Base));
}

#[test]
fn a_table_of_another_controller_is_left_alone_until_it_is_free() {
    let machine = Machine { kernel: FakeKernel::taken(4711), ..Machine::default() };
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall()]);
    assert!(matches!(reconciler.view().state, State::NotEnforcing(why) if why.contains("4711")));
    machine.kernel.vanish();
    reconciler.retry(Instant::now());
    assert_eq!(reconciler.view().state, State::Enforcing(Basis::Current));
}

#[test]
fn a_foreign_table_is_replaced_in_one_transaction_with_its_figures() {
    let foreign = Foreign {
        named: [("drop_total".to_owned(), packets(7))].into(),
        comments: [("accept established connections".to_owned(), packets(9))].into(),
    };
    let machine = Machine { kernel: FakeKernel::with_foreign(foreign), ..Machine::default() };
    let mut reconciler = machine.boot();
    assert_eq!(machine.kernel.commits(), []);
    assert_eq!(reconciler.view().state, State::Enforcing(Basis::Foreign));
    give(&mut reconciler, &[firewall(), policy("web")]);
    let commits = machine.kernel.commits();
    assert_eq!(commits.len(), 1);
    assert_eq!(commits[0].ops[0], Op::DeleteTable);
    assert_eq!(published(&mut reconciler, &Key::Named("drop_total".to_owned())), Some(7));
    let comment = "accept established connections".to_owned();
    let chains = ["forward", "related"];
    let sum: u64 = chains
        .iter()
        .filter_map(|chain| {
            let key = Key::Rule { chain: (*chain).to_owned(), comment: comment.clone() };
            published(&mut reconciler, &key)
        })
        .sum();
    assert_eq!(sum, 9);
}

#[test]
fn a_dry_run_leaves_a_foreign_table_as_it_is() {
    let machine = Machine { kernel: FakeKernel::with_foreign(Foreign::default()), ..Machine::default() };
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[dry_firewall(), policy("web")]);
    assert_eq!(machine.kernel.commits(), [], "neither replaced nor withdrawn");
    let view = reconciler.view();
    assert!(
        matches!(&view.state, State::NotEnforcing(why) if why.contains("somebody else")),
        "{:?}",
        view.state
    );
    give(&mut reconciler, &[firewall(), policy("web")]);
    assert_eq!(machine.kernel.commits().len(), 1);
    assert!(machine.has_policy("web"));
}

#[test]
fn a_dry_run_with_nothing_installed_installs_nothing() {
    let machine = Machine::default();
    give(&mut machine.boot(), &[dry_firewall(), policy("web")]);
    // The base went in because nothing was known, and is withdrawn.
    assert_eq!(machine.kernel.ruleset(), None);
    // Now the dry run is known, and honoured before the base.
    let commits = machine.kernel.commits().len();
    let mut second = machine.boot();
    assert_eq!(machine.kernel.commits().len(), commits);
    let view = second.view();
    assert!(matches!(view.state, State::NotEnforcing(why) if why.contains("dryrun")));
    assert!(view.dry_run.unwrap().steps > 0);
    give(&mut second, &[firewall(), policy("web")]);
    assert!(machine.has_policy("web"));
    assert_eq!(second.view().dry_run, None);
}

#[test]
fn a_dry_run_leaves_what_a_firewall_installed_and_shows_the_difference() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall(), policy("web")]);
    give(&mut reconciler, &[dry_firewall(), policy("web"), policy("mail")]);
    assert!(machine.has_policy("web") && !machine.has_policy("mail"));
    let view = reconciler.view();
    assert_eq!(view.state, State::Enforcing(Basis::BeforeDryRun));
    let dry_run = view.dry_run.unwrap();
    assert!(dry_run.differences.iter().any(|line| line.contains("mail")), "{dry_run:?}");
    // Also over a restart, with the record or without.
    for forget in [false, true] {
        if forget {
            machine.memory.0.lock().unwrap().kernel = None;
        }
        let mut next = machine.boot();
        give(&mut next, &[dry_firewall(), policy("web"), policy("mail")]);
        assert!(machine.has_policy("web") && !machine.has_policy("mail"));
    }
    give(&mut machine.boot(), &[firewall(), policy("web"), policy("mail")]);
    assert!(machine.has_policy("mail"));
}

#[test]
fn a_dry_run_reports_what_the_kernel_would_refuse() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall()]);
    machine.kernel.inject(Fault::Whole(NO_MEMORY));
    give(&mut reconciler, &[dry_firewall(), policy("web")]);
    let refused = reconciler.view().dry_run.unwrap().refused.unwrap();
    assert!(refused.contains("memory"), "{refused}");
    assert_eq!(reconciler.retry_at(), None);
}

#[test]
fn a_deleted_firewall_keeps_its_last_spec_over_a_restart_until_another_appears() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall(), policy("web")]);
    give(&mut reconciler, &[policy("web")]);
    for mut running in [reconciler, machine.boot()] {
        give(&mut running, &[policy("web")]);
        let view = running.view();
        let inside = &view.enforced.as_ref().unwrap().set.firewall.inside;
        assert!(inside.interfaces.contains(&"vrf1".parse().unwrap()));
        assert!(
            view.findings.iter().any(|finding| finding.message.contains("last spec stays")),
            "{:?}",
            view.findings
        );
    }
    let other = firewall().replace("vrf1", "vrf2");
    let mut last = machine.boot();
    give(&mut last, &[other, policy("web")]);
    let view = last.view();
    assert!(view.enforced.unwrap().set.firewall.inside.interfaces.contains(&"vrf2".parse().unwrap()));
    assert_eq!(*view.findings, []);
}

#[test]
fn inside_is_chosen_when_routes_come_up_and_a_later_change_is_a_finding() {
    let by_routes = "apiVersion: metal-stack.io/v1\nkind: Firewall\nmetadata: {name: firewall, namespace: firewall}\n\
                     spec: {clusterPrefixes: [10.0.0.0/8]}\n";
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[by_routes.to_owned(), policy("web")]);
    assert!(reconciler.seeks_inside());
    machine.host.route("10.1.0.0/16", "lan0");
    reconciler.check_host(Instant::now());
    let inside = |reconciler: &mut Reconciler| {
        reconciler.view().enforced.unwrap().set.firewall.inside.interfaces.clone()
    };
    assert!(!reconciler.seeks_inside());
    assert!(inside(&mut reconciler).contains(&"lan0".parse().unwrap()));

    machine.host.route("10.1.0.0/16", "lan1");
    reconciler.check_host(Instant::now());
    assert!(!inside(&mut reconciler).contains(&"lan1".parse().unwrap()));
    let changed = |reconciler: &mut Reconciler| {
        reconciler.view().findings.iter().any(|finding| finding.reason == fw_intake::Reason::InsideChanged)
    };
    assert!(changed(&mut reconciler));
    machine.host.route("10.1.0.0/16", "lan0");
    reconciler.check_host(Instant::now());
    assert!(!changed(&mut reconciler));
}

#[test]
fn counters_survive_edits_and_end_with_their_policy() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall(), policy("web")]);
    machine.kernel.count_rule("egress-web-tcp", 0, packets(5));
    assert_eq!(published(&mut reconciler, &web()), Some(5));
    give(&mut reconciler, &[firewall().replace("vrf1", "vrf2"), policy("web"), policy("mail")]);
    assert_eq!(published(&mut reconciler, &web()), Some(5));
    give(&mut reconciler, &[firewall(), policy("mail")]);
    give(&mut reconciler, &[firewall(), policy("web")]);
    assert_eq!(published(&mut reconciler, &web()), Some(0));
    assert_eq!(reconciler.view().published.resets, 0);
}

#[test]
fn published_values_go_on_over_a_restart_with_the_table() {
    let machine = Machine::default();
    let mut first = machine.boot();
    give(&mut first, &[firewall(), policy("web")]);
    machine.kernel.count_rule("egress-web-tcp", 0, packets(5));
    assert_eq!(published(&mut first, &web()), Some(5));
    first.note_kernel();
    // While nobody looks, somebody resets the counter.
    let ruleset = machine.kernel.ruleset().unwrap();
    let rule = ruleset.chains["egress-web-tcp"].rules[0].clone();
    let reset = vec![
        Op::FlushChain("egress-web-tcp".to_owned()),
        Op::AppendRule("egress-web-tcp".to_owned(), rule, packets(2)),
    ];
    machine.kernel.edit(&Plan { ops: reset }).unwrap();
    let mut second = machine.boot();
    give(&mut second, &[firewall(), policy("web")]);
    assert_eq!(published(&mut second, &web()), Some(7));
    assert_eq!(second.view().published.resets, 1);
}

#[test]
fn published_values_go_on_when_the_table_was_lost_while_nobody_ran() {
    let machine = Machine::default();
    let mut first = machine.boot();
    give(&mut first, &[firewall(), policy("web")]);
    machine.kernel.count_rule("egress-web-tcp", 0, packets(5));
    assert_eq!(published(&mut first, &web()), Some(5));
    first.note_kernel();
    machine.kernel.vanish();
    // The base goes in first and has no such counter.
    let mut second = machine.boot();
    second.read_counters().unwrap();
    give(&mut second, &[firewall(), policy("web")]);
    machine.kernel.count_rule("egress-web-tcp", 0, packets(1));
    assert_eq!(published(&mut second, &web()), Some(6));
}

#[test]
fn drift_is_repaired_with_the_last_read_figures_and_reported() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall(), policy("web")]);
    machine.kernel.count_rule("egress-web-tcp", 0, packets(5));
    machine.kernel.count_named("drop_total", packets(8));
    assert_eq!(published(&mut reconciler, &web()), Some(5));
    let whole = machine.kernel.ruleset();

    machine.kernel.edit(&Plan { ops: vec![Op::FlushChain("egress-web-tcp".to_owned())] }).unwrap();
    reconciler.drifted(&lost(), Instant::now());
    assert_eq!(machine.kernel.ruleset(), whole);
    assert_eq!(published(&mut reconciler, &web()), Some(5));

    machine.kernel.vanish();
    reconciler.drifted(&Drift { deleted: true, ..lost() }, Instant::now());
    assert_eq!(machine.kernel.ruleset(), whole);
    assert_eq!(published(&mut reconciler, &web()), Some(5));
    assert_eq!(published(&mut reconciler, &Key::Named("drop_total".to_owned())), Some(8));
    let view = reconciler.view();
    assert_eq!((view.tally.repairs, view.published.resets), (2, 0));
    assert_eq!(view.last_drift.unwrap().by, "nft (4711)");
}

#[test]
fn a_notification_without_a_change_repairs_nothing() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall(), policy("web")]);
    let commits = machine.kernel.commits().len();
    machine.kernel.commit_elsewhere();
    reconciler.drifted(&Drift { lost: true, ..Drift::default() }, Instant::now());
    assert_eq!(machine.kernel.commits().len(), commits);
    assert_eq!(reconciler.view().tally.repairs, 0);
}

#[test]
fn flush_removes_the_table_and_the_memory_and_undo_brings_it_back() {
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[firewall(), policy("web")]);
    machine.kernel.count_rule("egress-web-tcp", 0, packets(5));
    reconciler.flush().unwrap();
    assert_eq!(machine.kernel.ruleset(), None);
    assert_eq!(machine.memory.0.lock().unwrap().snapshot, None);
    assert_eq!(reconciler.snat_addresses(), Some(BTreeMap::new()));
    // Flushed it stays, whatever comes.
    give(&mut reconciler, &[firewall(), policy("web"), policy("mail")]);
    reconciler.drifted(&lost(), Instant::now());
    assert_eq!(machine.kernel.ruleset(), None);
    assert!(matches!(reconciler.view().state, State::NotEnforcing(why) if why.contains("FLUSHED")));
    reconciler.undo_flush(Instant::now());
    assert!(machine.has_policy("mail"));
    assert_eq!(published(&mut reconciler, &web()), Some(5));
    assert!(machine.memory.0.lock().unwrap().snapshot.is_some());
}

#[test]
fn snat_addresses_are_those_of_what_is_enforced() {
    let networks = ", egressRules: [{networkid: internet, ips: [203.0.113.5]}], firewallNetworks: [\
        {networkid: private, networktype: privateprimaryunshared, prefixes: [10.0.0.0/8], vrf: 1}, \
        {networkid: internet, networktype: external, prefixes: [203.0.113.0/24], vrf: 179}]}";
    let with_snat = format!("{FIREWALL}{networks}");
    let machine = Machine::default();
    let mut reconciler = machine.boot();
    give(&mut reconciler, &[with_snat]);
    let wanted =
        BTreeMap::from([("vlan179".parse().unwrap(), BTreeSet::from(["203.0.113.5".parse().unwrap()]))]);
    assert_eq!(reconciler.snat_addresses(), Some(wanted.clone()));
    machine.kernel.inject(Fault::Whole(NO_MEMORY));
    give(&mut reconciler, &[firewall()]);
    assert_eq!(reconciler.snat_addresses(), Some(wanted));
    // Just adopted: nobody knows yet, so nothing is taken away.
    machine.memory.0.lock().unwrap().snapshot = None;
    assert_eq!(machine.boot().snat_addresses(), None);
}
