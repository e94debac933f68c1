//! The learner against a naive model, with a data path that is late, fails, and is asked at any time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use fw_names::indexes::Side;
use fw_names::{Answer, Change, Indexes, Learner, Table};
use fw_policy::{FqdnSelector, NameEntry, Protocol};
use hickory_proto::rr::Record;
use proptest::prelude::*;

use crate::learning::{SECOND, START, exact, pattern};
use crate::messages::{address, answer, cname};
use crate::oracle::{index, ip, is_exact, selects};
use crate::sim::Sim;

const NAMES: [&str; 6] = ["a.example", "b.example", "w.a.example", "x.test", "y.test", "deep.er.test"];
const ADDRESSES: [&str; 7] =
    ["192.0.2.1", "192.0.2.2", "2001:db8::1", "10.0.0.1", "fd00::1", "127.0.0.1", "192.168.0.1"];
const PORTS: [u16; 7] = [0, 80, 100, 443, 450, 1024, 65_535];

fn selectors() -> [FqdnSelector; 8] {
    [
        exact("a.example"),
        exact("x.test"),
        exact("deep.er.test"),
        pattern("*.example"),
        pattern("*.test"),
        pattern("*"),
        pattern("*a*e"),
        FqdnSelector::Regex("[xy]\\.test".to_owned()),
    ]
}

fn ports() -> [Vec<(u16, u16)>; 5] {
    [vec![(80, 80)], vec![(443, 443)], vec![(1, 1024)], vec![(0, 65_535)], vec![(50, 100), (400, 500)]]
}

#[derive(Clone, Debug)]
enum Step {
    /// Policy, selector, UDP?, ports; and whether private addresses are open to patterns.
    Policies(BTreeMap<(u8, u8, bool), u8>, bool),
    /// Chain of names, TTLs of the links, addresses with their TTL.
    Learn(Vec<u8>, Vec<u32>, Vec<(u8, u32)>),
    Pass(u64),
    /// The next list is under way so many steps.
    Late(u8),
    /// The next list is applied so far and then fails.
    Fail(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let policies = proptest::collection::btree_map((0_u8..3, 0_u8..8, any::<bool>()), 0_u8..5, 0..9);
    let learn = (
        proptest::collection::vec(0_u8..6, 1..4),
        proptest::collection::vec(0_u32..200, 4),
        proptest::collection::vec((0_u8..7, 0_u32..200), 0..5),
    );
    prop_oneof![
        2 => (policies, any::<bool>()).prop_map(|(policies, private)| Step::Policies(policies, private)),
        8 => learn.prop_map(|(chain, links, addresses)| Step::Learn(chain, links, addresses)),
        6 => (0..90 * SECOND).prop_map(Step::Pass),
        2 => (0_u8..4).prop_map(Step::Late),
        1 => (0_u8..6).prop_map(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

/// A whole small world: the learner, the data path, nftables' view of indexes, and the naive model.
struct World {
    now: u64,
    learner: Learner,
    table: Arc<Table>,
    indexes: Indexes,
    sim: Sim,
    under_way: VecDeque<Vec<Change>>,
    late: u8,
    fail: Option<u8>,
    /// The model: until when a name leads to an address.
    facts: BTreeMap<(String, IpAddr), u64>,
}

impl World {
    fn new() -> Self {
        let table = Arc::new(Table::default());
        let mut learner = Learner::new();
        learner.set_table(table.clone(), START);
        Self {
            now: START,
            learner,
            table,
            indexes: Indexes::adopt(0xff, BTreeMap::new(), &BTreeSet::new(), &BTreeSet::new()),
            sim: Sim::default(),
            under_way: VecDeque::new(),
            late: 0,
            fail: None,
            facts: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Policies(policies, private) => self.policies(policies, *private),
            Step::Learn(chain, links, addresses) => self.learn(chain, links, addresses),
            Step::Pass(time) => self.pass(*time),
            Step::Late(steps) => self.late = *steps,
            Step::Fail(after) => self.fail = Some(*after),
            Step::Restart => self.restart(),
        }
        if self.late > 0 {
            self.late -= 1;
        } else {
            self.settle();
            self.check();
        }
    }

    fn send(&mut self) {
        let changes = self.learner.changes(self.now);
        self.under_way.push_back(changes);
        if self.late == 0 {
            self.settle();
        }
    }

    /// Everything under way arrives; what fails is made up for.
    fn settle(&mut self) {
        while let Some(changes) = self.under_way.pop_front() {
            self.apply(&changes);
        }
        let changes = self.learner.changes(self.now);
        self.apply(&changes);
        if self.learner.changes(self.now).iter().any(|change| !matches!(change, Change::DropClass(_))) {
            // Only a list that failed can leave something.
            let changes = self.learner.changes(self.now);
            self.sim.apply(&changes);
            self.learner.confirm(&changes);
        }
    }

    fn apply(&mut self, changes: &[Change]) {
        match self.fail.take() {
            Some(after) if usize::from(after) < changes.len() => {
                self.sim.apply(&changes[..usize::from(after)]);
                self.learner.reject(changes);
            }
            _ => {
                self.sim.apply(changes);
                self.learner.confirm(changes);
            }
        }
    }

    fn policies(&mut self, policies: &BTreeMap<(u8, u8, bool), u8>, private: bool) {
        let entry = |(policy, selector, udp): &(u8, u8, bool)| NameEntry {
            policy: format!("p{policy}"),
            selector: selectors()[usize::from(*selector)].clone(),
            protocol: if *udp { Protocol::Udp } else { Protocol::Tcp },
        };
        let wanted: BTreeMap<NameEntry, u8> =
            policies.iter().map(|(key, ports)| (entry(key), *ports)).collect();
        let entries: BTreeSet<NameEntry> = wanted.keys().cloned().collect();
        // Removing: the data path first, then nftables; then the second passes.
        let gone = self.indexes.retire(&entries);
        self.late = 0;
        self.settle();
        let changes = self.learner.withdraw(&gone, self.now);
        self.sim.apply(&changes);
        self.learner.confirm(&changes);
        self.settle();
        for index in &gone {
            assert!(!self.sim.reaches(*index), "index {index} can still be stamped");
        }
        assert!(self.learner.installed_indexes().is_disjoint(&gone));
        self.indexes.dropped(Side::DataPath, &gone, self.now);
        self.indexes.dropped(Side::Nft, &gone, self.now);
        self.indexes.free(self.now);
        let assigned = self.indexes.assign(&entries);
        let mut table = Table::default();
        for (entry, index) in assigned {
            let ports = ports()[usize::from(wanted[&entry])].clone();
            table.entries.insert(entry, (index, ports));
        }
        if private {
            table.dns.private_prefixes = ["10.0.0.0/8".parse().expect("a net")].into();
        }
        self.table = Arc::new(table);
        self.learner.set_table(self.table.clone(), self.now);
        self.forget();
        self.send();
    }

    /// The model forgets what no selector wants any more.
    fn forget(&mut self) {
        let table = self.table.clone();
        self.facts.retain(|(name, address), _| wants(&table, name, *address));
    }

    fn learn(&mut self, chain: &[u8], links: &[u32], addresses: &[(u8, u32)]) {
        let mut names: Vec<&str> = Vec::new();
        for name in chain.iter().map(|index| NAMES[usize::from(*index)]) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let dotted = |name: &str| format!("{name}.");
        let mut records: Vec<Record> = names
            .windows(2)
            .zip(links)
            .map(|(pair, ttl)| cname(&dotted(pair[0]), *ttl, &dotted(pair[1])))
            .collect();
        let owner = names[names.len() - 1];
        let mut least: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (index, ttl) in addresses {
            let text = ADDRESSES[usize::from(*index)];
            records.push(address(&dotted(owner), *ttl, text));
            let known = least.entry(ip(text)).or_insert(*ttl);
            *known = (*known).min(*ttl);
        }
        let read: Answer = answer(&dotted(names[0]), records);
        self.learner.learn(self.now, &read);
        for (hop, name) in names.iter().enumerate() {
            for (address, ttl) in &least {
                if wants(&self.table, name, *address) {
                    let way = links[hop..names.len() - 1].iter().chain([ttl]).min().expect("the record");
                    let end = self.now + u64::from((*way).clamp(5, 3600) + 60) * SECOND;
                    let end = end.div_ceil(SECOND) * SECOND;
                    let known = self.facts.entry(((*name).to_owned(), *address)).or_default();
                    *known = (*known).max(end);
                }
            }
        }
        self.send();
    }

    fn pass(&mut self, time: u64) {
        let end = self.now + time;
        self.late = 0;
        self.settle();
        while let Some(due) = self.learner.due().filter(|due| *due <= end) {
            // Between two calls the data path is right by itself.
            self.now = self.now.max(due.saturating_sub(1));
            self.check();
            self.now = self.now.max(due);
            self.learner.expire(self.now, Arc::default());
            self.send();
            self.check();
        }
        self.now = end;
        self.indexes.free(self.now);
        self.facts.retain(|_, until| *until > end);
        self.check();
    }

    /// The process ends and another one takes over what the kernel and the journal have.
    fn restart(&mut self) {
        self.under_way.clear();
        let facts = self.learner.facts();
        self.learner = Learner::new();
        self.learner.install(self.sim.allows.clone(), self.sim.classes.clone());
        self.learner.set_table(self.table.clone(), self.now);
        for fact in &facts {
            assert!(self.learner.relearn(self.now, fact) || fact.until <= self.now);
        }
        self.send();
    }

    fn check(&self) {
        for address in ADDRESSES.map(ip) {
            self.check_at(address, self.now);
            // Also later, when nobody has touched the data path since.
            let ends = self.facts.iter().filter(|((_, of), until)| *of == address && **until > self.now);
            for until in ends.map(|(_, until)| *until) {
                self.check_at(address, until - 1);
                self.check_at(address, until);
            }
            let of_learner = self.learner.learned(self.now).addresses.remove(&address).unwrap_or_default();
            let selectors = self.table.entries.keys().map(|entry| entry.selector.clone());
            let of_model: BTreeSet<FqdnSelector> =
                selectors.filter(|selector| self.is_learned(selector, address, self.now)).collect();
            assert_eq!(of_learner, of_model);
        }
    }

    fn is_learned(&self, selector: &FqdnSelector, address: IpAddr, now: u64) -> bool {
        self.facts.iter().any(|((name, of), until)| {
            *of == address && *until > now && selects(selector, name) && opens(&self.table, selector, address)
        })
    }

    fn check_at(&self, address: IpAddr, now: u64) {
        // With more ends than steps the last ones are closed until they are written again.
        let steps = self.sim.allows.get(&address).map(|allow| allow.steps).unwrap_or_default();
        let is_shortened = steps[3].until_ns != 0 && steps[3].until_ns <= now;
        for protocol in Protocol::ALL {
            for port in PORTS {
                let learned = |selector: &FqdnSelector| self.is_learned(selector, address, now);
                let expected = index(&self.table, learned, protocol, port);
                let found = self.sim.index(address, protocol.number(), port, now);
                assert!(
                    found == expected || (is_shortened && found.is_none()),
                    "{address} {protocol} {port} at {now} (it is {}): {found:?}, not {expected:?}",
                    self.now
                );
            }
        }
    }

    /// A learner that begins anew with the same facts wants the same.
    fn check_from_scratch(&self) {
        let mut learner = Learner::new();
        learner.set_table(self.table.clone(), self.now);
        for fact in self.learner.facts() {
            learner.relearn(self.now, &fact);
        }
        let mut sim = Sim::default();
        sim.apply(&learner.changes(self.now));
        let content = |sim: &Sim| -> BTreeMap<IpAddr, Vec<_>> {
            let steps = |allow: &fw_bpf_common::Allow| {
                let live = allow.steps.iter().filter(|step| step.until_ns > self.now);
                live.map(|step| (step.until_ns, sim.classes[&step.class].clone())).collect::<Vec<_>>()
            };
            sim.allows.iter().map(|(address, allow)| (*address, steps(allow))).collect()
        };
        assert_eq!(content(&self.sim), content(&sim));
    }
}

fn is_private(address: IpAddr) -> bool {
    ["10.0.0.1", "fd00::1", "192.168.0.1"].map(ip).contains(&address)
}

fn opens(table: &Table, selector: &FqdnSelector, address: IpAddr) -> bool {
    let is_open = table.dns.private_prefixes.iter().any(|net| net.contains(&address));
    address != ip("127.0.0.1") && (!is_private(address) || is_open || is_exact(selector))
}

fn wants(table: &Table, name: &str, address: IpAddr) -> bool {
    let mut selectors = table.entries.keys().map(|entry| &entry.selector);
    selectors.any(|selector| selects(selector, name) && opens(table, selector, address))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn at_any_time_the_data_path_lets_pass_what_the_policies_say(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.late = 0;
        world.settle();
        world.check();
        world.settle();
        world.check_from_scratch();
    }
}
