//! A lab's firewall with names in it, driven without a controller: the learner, nftables and the data path, changed in
//! the order in which the controller changes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use fw_bpf::{Datapath, Options, Sizes};
use fw_bpf_common::{Config, Verdict, flag, judge};
use fw_controller::names::clock::monotonic;
use fw_controller::names::sets::Sets;
use fw_names::change::Nanos;
use fw_names::indexes::{Indexes, Side};
use fw_names::{Change, Learner, answer};
use fw_nft::{Kernel, NetlinkKernel, Table};
use fw_policy::{Encrypted, Learned, PolicySet};
use fw_ruleset::{Counts, DEFAULT_CELL_LIMIT, Dynamic, Names, Ruleset, Stamp, compile_with, plan, superset};
use fw_testkit::BpfMount;
use fw_testkit::dns::wire::Response;
use fw_testkit::dns::{Name, Query, Record, kind};
use fw_testkit::r#gen;
use fw_testkit::topology::{Lab, LabSpec, Machine};
use fw_testkit::traffic::craft::Tag;
use fw_testkit::traffic::range::Shot;

use super::super::field::Mode;
use super::live::Flow;
use super::tables::{Connections, Elements, Known, Programs, cells_of};

const SECOND: Nanos = 1_000_000_000;
/// Entries come and go in labs side by side.
const SIZES: Sizes = Sizes { ipv4: 1024, ipv6: 1024, prefixes: 4096, sample_bytes: 65_536 };

/// Who decides by names.
enum Path {
    Programs(Box<Datapath>),
    Sets(Sets),
}

/// See the module.
pub(super) struct Site {
    pub(super) lab: Lab,
    pub(super) mode: Mode,
    /// The early drop asks conntrack.
    pub(super) asks: bool,
    pub(super) set: PolicySet,
    pub(super) ruleset: Ruleset,
    pub(super) tables: Programs,
    nft: NetlinkKernel,
    is_applied: bool,
    /// Connections that live.
    pub(super) flows: Vec<Flow>,
    path: Path,
    elements: Elements,
    learner: Learner,
    known: Known,
    indexes: Indexes,
    // Unmounted last.
    _bpf: BpfMount,
}

impl Site {
    /// A lab in which nothing is allowed yet. `asks`: the early drop asks conntrack.
    pub(super) fn new(spec: &LabSpec, mode: Mode, asks: bool, mark_mask: u32) -> Result<Self> {
        let lab = Lab::new(spec)?;
        let mut nft = lab.firewall.run(NetlinkKernel::open)??;
        let Table::Absent = nft.read()? else { bail!("a new namespace has a table already") };
        let bpf = BpfMount::new(&spec.label)?;
        let path = match attach(mode) {
            None => Path::Sets(Sets::new(mark_mask)),
            Some(attach) => {
                let pins = bpf.path().join("pins");
                let mut datapath = Datapath::open(&Options { pins, sizes: SIZES, conntrack: asks })?;
                ensure!(datapath.unasked().is_none() == asks, "conntrack: {:?}", datapath.unasked());
                for machine in &lab.inside {
                    let name = machine.firewall_interface().as_str();
                    lab.firewall.run(|| datapath.attach(name, attach))??;
                }
                Path::Programs(Box::new(datapath))
            }
        };
        let nothing = BTreeSet::new();
        Ok(Self {
            lab,
            mode,
            asks,
            set: PolicySet::default(),
            ruleset: Ruleset::default(),
            tables: Programs::default(),
            nft,
            is_applied: false,
            flows: Vec::new(),
            path,
            elements: Elements::default(),
            learner: Learner::new(),
            known: Known::default(),
            indexes: Indexes::adopt(mark_mask, BTreeMap::new(), &nothing, &nothing),
            _bpf: bpf,
        })
    }

    /// Other policies: out of the data path before nftables forgets, into it when nftables knows.
    pub(super) fn adopt(&mut self, set: &PolicySet) -> Result<()> {
        self.free_indexes();
        let entries = set.name_entries().into_keys().collect();
        let stamp = if self.mode == Mode::Off { Stamp::Sets } else { Stamp::Program };
        let names = Names { indexes: self.indexes.assign(&entries), stamp };
        ensure!(names.indexes.len() == entries.len(), "the mask is too narrow for this test");
        let compiled = compile_with(set, &names, DEFAULT_CELL_LIMIT);
        ensure!(compiled.problems.is_empty(), "{:?}", compiled.problems);
        let stay: BTreeSet<u32> = names.indexes.values().copied().collect();
        let gone: BTreeSet<u32> = self.learner.installed_indexes().difference(&stay).copied().collect();
        if !gone.is_empty() && self.mode != Mode::Off {
            let changes = self.learner.withdraw(&gone, monotonic());
            self.apply(&changes)?;
        }
        self.bounce(false)?;
        let before = self.is_applied.then_some(&self.ruleset);
        let plan = plan(before, &compiled.ruleset, &Counts::default());
        if !plan.is_empty() {
            self.nft.commit(&plan, &compiled.ruleset)?;
        }
        (self.ruleset, self.is_applied, self.set) = (compiled.ruleset, true, set.clone());
        self.indexes.retire(&entries);
        let dropped = self.indexes.pending(Side::Nft);
        self.indexes.dropped(Side::Nft, &dropped, monotonic());
        let own: BTreeSet<IpAddr> = self.lab.machines().flat_map(gateways).collect();
        let table = fw_names::Table::new(set, &names.indexes, own.clone());
        self.learner.set_table(Arc::new(table), monotonic());
        self.known.keep(|name| !r#gen::selectors_of(set, name).is_empty());
        self.push()?;
        let table = superset(set, &own);
        self.tables.set_prefixes(&table);
        if let Path::Programs(datapath) = &mut self.path {
            let prefixes = table.iter().map(|(prefix, cells)| (*prefix, cells_of(cells))).collect();
            datapath.set_prefixes(&prefixes)?;
        }
        self.bounce(true)
    }

    fn free_indexes(&mut self) {
        let pending = self.indexes.pending(Side::DataPath);
        let out = pending.difference(&self.learner.installed_indexes()).copied().collect();
        self.indexes.dropped(Side::DataPath, &out, monotonic());
        self.indexes.free(monotonic());
    }

    /// Turns the early drop on or off.
    pub(super) fn bounce(&mut self, on: bool) -> Result<()> {
        let dns = &self.set.firewall.dns;
        let bit = |flag, on| if on { flag } else { 0 };
        self.tables.config = Config {
            flags: bit(flag::BOUNCE, on)
                | bit(flag::DNS, self.set.intercepts_dns())
                | bit(flag::DOT, dns.dot == Encrypted::Allow),
            mark_mask: self.set.firewall.fastpath.mark_mask,
            samples_per_second: 1,
            mark_shift: self.set.firewall.fastpath.mark_mask.trailing_zeros(),
        };
        if let Path::Programs(datapath) = &mut self.path {
            datapath.set_config(self.tables.config)?;
        }
        Ok(())
    }

    /// Answers that live for so many seconds: learned, and in the kernel when this returns. All of them are over at
    /// the same moment, which is returned.
    pub(super) fn teach(&mut self, names: &BTreeMap<String, BTreeSet<IpAddr>>, ttl: u32) -> Result<Nanos> {
        let now = monotonic();
        let until = (now + Nanos::from(ttl) * SECOND).next_multiple_of(SECOND);
        for (name, addresses) in names {
            let wanted = !r#gen::selectors_of(&self.set, name).is_empty();
            for (kind, v4) in [(kind::A, true), (kind::AAAA, false)] {
                let of_kind = addresses.iter().filter(|address| address.is_ipv4() == v4);
                let record = |address: &IpAddr| Ok(Record::address(Name::parse(name)?, ttl, *address));
                let answers: Vec<Record> = of_kind.map(record).collect::<Result<_>>()?;
                if answers.is_empty() {
                    continue;
                }
                let query = Query::new(1, name, kind)?;
                let message = Response { answers, ..Response::default() }.bytes(&query, None)?;
                let lesson = self.learner.learn(now, &answer::read(&message)?);
                ensure!(lesson.hold.is_none() && lesson.opens == wanted, "{name}: {lesson:?}");
            }
            if wanted {
                self.known.learn(name, addresses, until);
            }
        }
        self.push()?;
        Ok(until)
    }

    /// Forgets what is over.
    pub(super) fn collect(&mut self) -> Result<()> {
        self.learner.expire(monotonic(), Arc::default());
        self.push()
    }

    fn push(&mut self) -> Result<()> {
        let changes = self.learner.changes(monotonic());
        self.apply(&changes)
    }

    fn apply(&mut self, changes: &[Change]) -> Result<()> {
        self.tables.apply(changes);
        match &mut self.path {
            Path::Programs(datapath) => {
                for change in changes {
                    match change {
                        Change::PutClass { id, cells } => datapath.put_class(*id, cells)?,
                        Change::Put { address, allow } => datapath.put(*address, *allow)?,
                        Change::Remove(address) => datapath.remove(*address)?,
                        Change::DropClass(id) => datapath.drop_class(*id)?,
                    }
                }
                ensure!(datapath.allows()? == self.tables.allows(), "the kernel holds other addresses");
            }
            Path::Sets(sets) => {
                let now = monotonic();
                let elements = sets.elements(changes, now);
                self.nft.update_elements(&elements)?;
                self.elements.apply(&elements, now);
                sets.confirm(changes);
            }
        }
        self.learner.confirm(changes);
        Ok(())
    }

    /// What the reference is told: the names that were asked for and are not over.
    pub(super) fn learned(&self, now: Nanos) -> Learned {
        let mut learned = Learned::default();
        for (name, address) in self.known.at(now) {
            let selectors = r#gen::selectors_of(&self.set, &name);
            learned.addresses.entry(address).or_default().extend(selectors);
        }
        learned.addresses.retain(|_, selectors| !selectors.is_empty());
        learned
    }

    /// As the learner has it.
    pub(super) fn learned_by_the_learner(&self, now: Nanos) -> Learned {
        self.learner.learned(now)
    }

    /// What nftables' maps hold; the mark is that of a packet nobody stamps.
    pub(super) fn dynamic(&self, now: Nanos) -> Dynamic {
        self.elements.dynamic(0, now)
    }

    /// The programs' verdict on a shot, and the mark it has behind them. `lives`: conntrack has its connection.
    pub(super) fn judge(&mut self, shot: &Shot, lives: bool, now: Nanos) -> Result<(Verdict, u32)> {
        self.tables.now = now;
        let enters_inside = shot.from < self.lab.inside.len();
        let verdict = match self.path {
            Path::Programs(_) if enters_inside => {
                let conntrack = Connections { asks: self.asks, lives };
                judge(&self.frame(shot)?[..], 2, &self.tables, &conntrack)
            }
            _ => Verdict::Pass,
        };
        let mark = match verdict {
            Verdict::Stamp(index) => {
                self.set.firewall.fastpath.mark_of(index).context("an index too high")?
            }
            Verdict::Pass | Verdict::Bounce(_) => 0,
        };
        Ok((verdict, mark))
    }

    fn frame(&self, shot: &Shot) -> Result<Vec<u8>> {
        let machine = self.lab.machines().nth(shot.from).context("no such machine")?;
        let packet = shot.packet.encode(Tag { run: 0, id: 0 })?.swap_remove(0);
        let kind = if shot.packet.source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        Ok([&machine.gateway_mac[..], &machine.mac, &kind, &packet].concat())
    }

    /// Packets dropped early, by reason.
    pub(super) fn drops(&self) -> Result<[u64; 2]> {
        let Path::Programs(datapath) = &self.path else { return Ok([0; 2]) };
        let drops = datapath.drops()?;
        let (here, elsewhere) =
            if self.mode == Mode::Tcx { (drops.tcx, drops.xdp) } else { (drops.xdp, drops.tcx) };
        ensure!(elsewhere == [0; 2], "dropped in the wrong place: {drops:?}");
        Ok(here)
    }
}

fn gateways(machine: &Machine) -> [IpAddr; 2] {
    [machine.link.gateway.0.into(), machine.link.gateway.1.into()]
}

/// How programs are attached; `None` where sets decide.
fn attach(mode: Mode) -> Option<fw_bpf::Mode> {
    match mode {
        Mode::Native => Some(fw_bpf::Mode::Native),
        Mode::Generic => Some(fw_bpf::Mode::Generic),
        Mode::Tcx => Some(fw_bpf::Mode::Tcx),
        Mode::Off => None,
    }
}
