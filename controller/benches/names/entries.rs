//! Until one address is in force: the eBPF map beside an element of an nftables map, alone and behind the learner.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fw_bpf::{Datapath, Options, Sizes};
use fw_bpf_common::{Allow, Cell, Step, TCP};
use fw_controller::names::clock::monotonic;
use fw_controller::names::sets::Sets;
use fw_intake::{HostFacts, Objects, intake, parse};
use fw_names::{Change, Learner, Table as Names, answer};
use fw_nft::{ElementChange, Kernel as _, NetlinkKernel, TimedElement};
use fw_policy::PolicySet;
use fw_ruleset::ir::{Key, Value};
use fw_ruleset::{Counts, DEFAULT_CELL_LIMIT, Names as Marks, compile_with, plan};
use fw_testkit::figures::{Goal, ROUNDS, Table};
use fw_testkit::{BpfMount, Netns};

use crate::field::manifests;

/// Addresses of one measurement.
const ADDRESSES: u32 = 1000;
/// Any class that is there.
const CLASS: u32 = 2;
const TTL: u32 = 300;

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let ns = Netns::new("bench-entries")?;
    let pins = BpfMount::new("bench-entries")?;
    let options = Options { pins: pins.path().join("pins"), sizes: Sizes::default(), conntrack: true };
    let lines = ns.run(|| rounds(&options))??;
    for (what, pairs, goal) in lines {
        table.add(what, &pairs, goal);
    }
    Ok(())
}

type Line = (&'static str, Vec<(f64, f64)>, Goal);

fn rounds(options: &Options) -> Result<[Line; 3]> {
    let set = policies()?;
    let (mut map, mut learned_map) = (Map::open(options, "map")?, Map::open(options, "learned")?);
    let mut sets = Elements::open(&set)?;
    let (mut beside_map, mut beside_sets) = (learner(&set), learner(&set));
    let (mut alone, mut with_learner, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..u32::try_from(ROUNDS)? {
        let address =
            |block: u32, number: u32| Ipv4Addr::from_bits((block << 24) + round * ADDRESSES + number);
        let ours = micros(|number| map.put(address(20, number).into()))?;
        let element = micros(|number| sets.put(address(21, number)))?;
        let learned = micros(|number| beside_map.learn(address(22, number), &mut learned_map))?;
        let in_sets = micros(|number| beside_sets.learn(address(23, number), &mut sets))?;
        eprintln!(
            "entries, round {round}: map {ours:.2} µs, element {element:.2} µs; learner and map {learned:.2} µs, and elements {in_sets:.2} µs"
        );
        alone.push((ours, element));
        with_learner.push((learned, element));
        both.push((learned, in_sets));
    }
    Ok([
        ("an address in force: eBPF map / nftables element, µs", alone, Goal::AtMost(1.0)),
        ("  learner and eBPF map / nftables element alone, µs", with_learner, Goal::None),
        ("  learner and eBPF map / learner and elements, µs", both, Goal::AtMost(1.0)),
    ])
}

/// Microseconds of the middle one of the addresses.
fn micros(mut one: impl FnMut(u32) -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for number in 0..ADDRESSES {
        let begin = Instant::now();
        one(number)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6)
}

fn policies() -> Result<PolicySet> {
    let manifests = parse("bench.yaml", manifests("off").as_bytes())?;
    let judged = intake(&Objects::new(&manifests), &HostFacts::default());
    ensure!(judged.set.name_entries().len() == 2, "the policies are not as meant: {:?}", judged.findings);
    Ok(judged.set)
}

/// A data path of which the learner knows.
trait Path {
    fn apply(&mut self, changes: &[Change], now: u64) -> Result<()>;
}

/// The eBPF maps.
struct Map(Datapath);

impl Map {
    fn open(options: &Options, name: &str) -> Result<Self> {
        let options = Options { pins: options.pins.join(name), ..options.clone() };
        let mut datapath = Datapath::open(&options)?;
        let cell = Cell { protocol: TCP, first: 8080, last: 8082, index: 1, ..Cell::default() };
        datapath.put_class(CLASS, &[cell])?;
        Ok(Self(datapath))
    }

    fn put(&mut self, address: IpAddr) -> Result<()> {
        let mut allow = Allow::default();
        allow.steps[0] = Step { until_ns: monotonic() + 300_000_000_000, class: CLASS, reserved: 0 };
        Ok(self.0.put(address, allow)?)
    }
}

impl Path for Map {
    fn apply(&mut self, changes: &[Change], _now: u64) -> Result<()> {
        for change in changes {
            match change {
                Change::PutClass { id, cells } => self.0.put_class(*id, cells)?,
                Change::Put { address, allow } => self.0.put(*address, *allow)?,
                Change::Remove(address) => self.0.remove(*address)?,
                Change::DropClass(id) => self.0.drop_class(*id)?,
            }
        }
        Ok(())
    }
}

/// The nftables maps that take their place.
struct Elements {
    kernel: NetlinkKernel,
    sets: Sets,
}

impl Elements {
    fn open(set: &PolicySet) -> Result<Self> {
        let mut kernel = NetlinkKernel::open()?;
        kernel.read()?;
        let compiled = compile_with(set, &Marks::fresh(set), DEFAULT_CELL_LIMIT);
        kernel.commit(&plan(None, &compiled.ruleset, &Counts::default()), &compiled.ruleset)?;
        Ok(Self { kernel, sets: Sets::new(set.firewall.fastpath.mark_mask) })
    }

    fn put(&mut self, address: Ipv4Addr) -> Result<()> {
        let key = Key::Exact(vec![Value::Ipv4(address)]);
        let element = TimedElement { key, mark: Some(CLASS), expires_in_ms: Some(300_000) };
        Ok(self.kernel.update_elements(&[ElementChange::Put("fqdn4-0".to_owned(), element)])?)
    }
}

impl Path for Elements {
    fn apply(&mut self, changes: &[Change], now: u64) -> Result<()> {
        self.kernel.update_elements(&self.sets.elements(changes, now))?;
        self.sets.confirm(changes);
        Ok(())
    }
}

/// A learner that reads answers.
struct Pupil(Learner);

fn learner(set: &PolicySet) -> Pupil {
    let names = Names::new(set, &Marks::fresh(set).indexes, BTreeSet::new());
    let mut learner = Learner::new();
    learner.set_table(Arc::new(names), monotonic());
    Pupil(learner)
}

impl Pupil {
    /// From the bytes of an answer to the data path's word that it holds what they open.
    fn learn(&mut self, address: Ipv4Addr, path: &mut impl Path) -> Result<()> {
        let message = message(address);
        let now = monotonic();
        let answer = answer::read(&message).context("the answer is none")?;
        let lesson = self.0.learn(now, &answer);
        ensure!(lesson.opens && lesson.hold.is_none(), "an answer opens nothing: {lesson:?}");
        let changes = self.0.changes(now);
        path.apply(&changes, now)?;
        self.0.confirm(&changes);
        Ok(())
    }
}

/// An answer with one address for a name of its own under a wildcard.
fn message(address: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, 8];
    message.extend(format!("{:08x}", address.to_bits()).bytes());
    message.extend(b"\x08scripted\x04test\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01");
    message.extend(TTL.to_be_bytes());
    message.extend([0, 4]);
    message.extend(address.octets());
    message
}
