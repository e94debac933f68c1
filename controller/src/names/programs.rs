//! The eBPF programs of this machine, opened when something needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fw_bpf::{Datapath, Mode, Sizes};
use fw_bpf_common::{Allow, Cell, Config, Reason, Verdict, flag};
use fw_names::Change;
use fw_policy::{Encrypted, IfName, Protocol};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::clock::monotonic;
use super::fastpath::{Attach, Port};
use super::links;
use super::{Followers, followers, samples};
use crate::reconcile::Installation;
use crate::telemetry::chain;

/// See the module.
pub(super) struct Programs {
    pins: PathBuf,
    followers: Followers,
    open: Option<Open>,
    /// Why they cannot be used here; asked once, since neither kernel nor rights change while we run.
    unavailable: Option<String>,
}

struct Open {
    datapath: Datapath,
    /// The reader of samples ends when this does.
    _alive: Arc<()>,
    config: Config,
    attached: BTreeMap<IfName, Mode>,
}

impl Programs {
    pub(super) fn new(pins: PathBuf, followers: Followers) -> Self {
        Self { pins, followers, open: None, unavailable: None }
    }

    /// Adopts what a process before this one left, or loads. `Err`: why it cannot be.
    pub(super) fn open(&mut self) -> Result<(), String> {
        if self.open.is_some() {
            return Ok(());
        }
        if let Some(why) = &self.unavailable {
            return Err(why.clone());
        }
        match Self::load(&self.pins, &self.followers) {
            Ok(open) => {
                self.open = Some(open);
                Ok(())
            }
            Err(why) => {
                warn!("eBPF is not used: {why}");
                let why = brief(&why);
                self.unavailable = Some(why.clone());
                Err(why)
            }
        }
    }

    fn load(pins: &Path, followers: &Followers) -> Result<Open, String> {
        if cfg!(feature = "fault-injection") && std::env::var_os("FW_WITHOUT_EBPF").is_some() {
            return Err("FW_WITHOUT_EBPF is set".to_owned());
        }
        fw_bpf::probe().map_err(|error| chain(&error))?;
        std::fs::create_dir_all(pins).map_err(|error| format!("{}: {error}", pins.display()))?;
        let asks = !(cfg!(feature = "fault-injection") && std::env::var_os("FW_WITHOUT_CONNTRACK").is_some());
        let options = fw_bpf::Options { pins: pins.to_owned(), sizes: Sizes::default(), conntrack: asks };
        fw_bpf::self_test(&options).map_err(|error| chain(&error))?;
        let datapath = Datapath::open(&options).map_err(|error| chain(&error))?;
        let config = datapath.config().map_err(|error| chain(&error))?;
        info!(opened = ?datapath.opened(), pins = %pins.display(), "eBPF programs are ready");
        if let Some(why) = datapath.unasked() {
            warn!("of datagrams none are dropped early, conntrack is not asked: {why}");
        }
        let samples = datapath.samples().map_err(|error| chain(&error));
        let alive = Arc::new(());
        match samples {
            Ok(samples) => samples::read(samples, followers.clone(), &alive),
            Err(why) => warn!("early drops will not be logged: {why}"),
        }
        Ok(Open { datapath, _alive: alive, config, attached: BTreeMap::new() })
    }

    /// An interface with what its driver says.
    pub(super) fn port(&self, name: &IfName, port: &links::Port) -> Port {
        let is_real_nic = fw_bpf::nic(name.as_str()).is_ok_and(|nic| nic.real);
        Port { name: name.clone(), vrf: port.vrf.clone(), is_vrf: port.is_vrf, is_real_nic }
    }

    /// Attaches what is missing or attached otherwise. What failed comes back as lines for the status; names open
    /// nothing on such an interface.
    pub(super) fn attach(&mut self, wanted: &BTreeMap<IfName, Attach>) -> Vec<String> {
        let Some(open) = &mut self.open else { return Vec::new() };
        let mut failed = Vec::new();
        for (name, attach) in wanted {
            let mode = match attach {
                Attach::Native => Mode::Native,
                Attach::Generic => Mode::Generic,
                Attach::Tcx => Mode::Tcx,
            };
            let mut attached = open.datapath.attach(name.as_str(), mode);
            if let Err(error @ (fw_bpf::Error::NoNativeXdp(_) | fw_bpf::Error::Occupied(_))) = &attached {
                failed.push(format!("{name}: tcx in place of {attach:?}: {}", chain(error)));
                attached = open.datapath.attach(name.as_str(), Mode::Tcx);
            }
            match attached {
                Ok(now) => {
                    if open.attached.insert(name.clone(), now.mode) != Some(now.mode) {
                        info!(interface = %name, mode = ?now.mode, "eBPF programs are attached");
                    }
                }
                Err(error) => {
                    open.attached.remove(name);
                    failed.push(format!("names open nothing that enters by {name}: {}", chain(&error)));
                }
            }
        }
        failed
    }

    /// Takes the programs off all other interfaces.
    pub(super) fn detach_all_but(&mut self, wanted: &BTreeMap<IfName, Attach>) {
        let Some(open) = &mut self.open else { return };
        let there = open.datapath.attached().unwrap_or_default();
        let names: BTreeSet<String> = there.into_iter().filter_map(|attached| attached.name).collect();
        for name in names {
            if wanted.keys().any(|other| other.as_str() == name) {
                continue;
            }
            match open.datapath.detach(&name) {
                Ok(()) => info!(interface = name, "eBPF programs are taken off"),
                Err(error) => warn!("eBPF programs stay on {name}: {}", chain(&error)),
            }
            open.attached.retain(|other, _| other.as_str() != name);
        }
    }

    /// What the maps hold, for the learner.
    pub(super) fn contents(&mut self) -> (BTreeMap<IpAddr, Allow>, BTreeMap<u32, Vec<Cell>>) {
        let Some(open) = &self.open else { return Default::default() };
        let allows = open.datapath.allows();
        let classes = open.datapath.classes();
        match (allows, classes) {
            (Ok(allows), Ok(classes)) => (allows, classes),
            (Err(error), _) | (_, Err(error)) => {
                warn!("what the eBPF maps hold is unknown: {}", chain(&error));
                Default::default()
            }
        }
    }

    /// True when a process before this one left programs on an interface.
    pub(super) fn are_left(&self) -> bool {
        let links = std::fs::read_dir(self.pins.join("links"));
        self.open.is_none() && links.is_ok_and(|mut links| links.next().is_some())
    }

    /// True when they are open.
    pub(super) fn are_open(&self) -> bool {
        self.open.is_some()
    }

    /// Writes changes; they are in force when this returns.
    pub(super) fn apply(&mut self, changes: &[Change]) -> Result<(), String> {
        let Some(open) = &mut self.open else { return Err("the eBPF programs are not loaded".to_owned()) };
        apply(&mut open.datapath, changes).map_err(|error| chain(&error))
    }

    /// Drops nothing early from now on.
    pub(super) fn pass_all(&mut self) {
        let Some(open) = &mut self.open else { return };
        let flags = open.config.flags & !flag::BOUNCE;
        let config = Config { flags, ..open.config };
        if let Err(error) = open.set_config(config) {
            warn!("the early drop may drop what is about to be allowed: {}", chain(&error));
        }
    }

    /// Marks nothing until the next installation, unless it marks by this mask. True when it did mark.
    pub(super) fn stop_other_marks(&mut self, mask: u32) -> Result<bool, String> {
        let Some(open) = &mut self.open else { return Ok(false) };
        if [0, mask].contains(&open.config.mark_mask) {
            return Ok(false);
        }
        open.set_config(Config { mark_mask: 0, ..open.config }).map_err(|error| chain(&error))?;
        Ok(true)
    }

    /// While others decide: marks nothing and drops nothing early. When the maps are used again their indexes may have
    /// become those of other entries, and only what is written then counts.
    pub(super) fn rest(&mut self) {
        let Some(open) = &mut self.open else { return };
        let config = Config { mark_mask: 0, flags: open.config.flags & !flag::BOUNCE, ..open.config };
        if let Err(error) = open.set_config(config) {
            warn!("eBPF programs go on as before: {}", chain(&error));
        }
    }

    /// What static rules may allow, the mark, and that the rest is dropped early. Where `is_written` is false the maps
    /// of names are not as they should be; a mark that was stopped stays so.
    pub(super) fn install(&mut self, installation: &Installation, is_written: bool) -> Result<(), String> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let cell = |(protocol, first, last): &(Protocol, u16, u16)| Cell {
            protocol: protocol.number(),
            first: *first,
            last: *last,
            ..Cell::default()
        };
        let prefixes: BTreeMap<_, Vec<Cell>> = installation
            .superset
            .iter()
            .map(|(prefix, cells)| (*prefix, cells.iter().map(cell).collect()))
            .collect();
        let written = open.datapath.set_prefixes(&prefixes).map_err(|error| chain(&error));
        let obstacles = &installation.obstacles;
        let mut flags = if written.is_ok() && obstacles.is_empty() { flag::BOUNCE } else { 0 };
        let dns = &installation.firewall.dns;
        if installation.intercepts {
            flags |= flag::DNS;
        }
        if dns.dot == Encrypted::Allow {
            flags |= flag::DOT;
        }
        let mask = installation.firewall.fastpath.mark_mask;
        let config = Config {
            flags,
            mark_mask: if is_written || open.config.mark_mask == mask { mask } else { 0 },
            samples_per_second: samples_per_second(installation.firewall.drop_log.rate),
            mark_shift: mask.trailing_zeros(),
        };
        open.set_config(config).map_err(|error| chain(&error))?;
        let refused = |why: String| format!("nothing is dropped early, nftables drops it: {why}");
        if !obstacles.is_empty() {
            return Err(refused(obstacles.join("; ")));
        }
        written.map_err(refused)
    }

    /// Takes everything out of the kernel.
    pub(super) fn unload(&mut self) {
        // Dropped first: the folder of pins is locked while it is open.
        drop(self.open.take());
        if let Err(error) = remove(&self.pins) {
            warn!("eBPF programs may stay: {error}");
        }
    }

    /// Dropped packets by place and reason.
    pub(super) fn drops(&self) -> Value {
        let Some(open) = &self.open else { return Value::Null };
        let Ok(drops) = open.datapath.drops() else { return Value::Null };
        let figures = self.followers.figures();
        let by_reason = |counts: &[u64]| -> BTreeMap<&'static str, u64> {
            Reason::ALL.iter().zip(counts).map(|(reason, count)| (reason_name(*reason), *count)).collect()
        };
        json!({
            "xdp": by_reason(&drops.xdp),
            "tcx": by_reason(&drops.tcx),
            "total": drops.total(),
            "notLogged": drops.unsampled,
            "ringFull": drops.ring_full,
            "samples": figures.samples,
            "followers": figures.followers, "maxFollowers": followers::MAX_FOLLOWERS,
            "lostByFollowers": figures.lost,
        })
    }

    /// Interfaces that have programs, as they are attached.
    pub(super) fn attached(&self) -> BTreeMap<IfName, Mode> {
        self.open.as_ref().map(|open| open.attached.clone()).unwrap_or_default()
    }

    /// What they do with a packet that opens a connection. `None`: nothing, or it cannot be told.
    pub(super) fn verdict(&self, packet: &fw_bpf_common::Packet) -> Option<Verdict> {
        let verdict = self.open.as_ref()?.datapath.verdict(packet, monotonic());
        verdict.inspect_err(|error| warn!("the eBPF maps cannot be read: {}", chain(error))).ok()
    }

    /// Whether the early drop asks conntrack, or why not.
    pub(super) fn conntrack(&self) -> Value {
        let Some(open) = &self.open else { return Value::Null };
        open.datapath.unasked().map_or(json!("yes"), |why| json!(format!("no ({})", brief(why))))
    }

    /// Entries and bounds of the maps.
    pub(super) fn map_sizes(&self) -> Value {
        let uses = self.open.as_ref().and_then(|open| open.datapath.map_use().ok()).unwrap_or_default();
        let line = |one: &fw_bpf::MapUse| {
            (one.name.to_owned(), json!({"used": one.used, "bound": one.bound, "bytes": one.memory}))
        };
        Value::Object(uses.iter().map(line).collect())
    }
}

impl Open {
    fn set_config(&mut self, config: Config) -> Result<(), fw_bpf::Error> {
        if self.config == config {
            return Ok(());
        }
        if self.config.mark_shift != config.mark_shift {
            // Programs that run meanwhile may read one of the two before and the other after a write. Under no mask
            // no index fits, whatever the shift.
            let unmarked = Config { mark_mask: 0, ..self.config };
            self.write(unmarked)?;
            self.write(Config { mark_shift: config.mark_shift, ..unmarked })?;
        }
        self.write(config)
    }

    fn write(&mut self, config: Config) -> Result<(), fw_bpf::Error> {
        self.datapath.set_config(config)?;
        self.config = config;
        Ok(())
    }
}

/// For the status: the verifier's words may be thousands of lines, of which the log has all.
fn brief(why: &str) -> String {
    const LONGEST: usize = 200;
    let line = why.lines().next().unwrap_or_default();
    let cut: String = line.chars().take(LONGEST).collect();
    if cut.len() == why.len() {
        return cut;
    }
    format!("{cut} … (the log has the rest; does the service have CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN?)")
}

/// As metrics and the status call it.
pub(super) fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Policy => "policy",
        Reason::Expired => "expired name",
    }
}

/// Lists in which many addresses come at once (a new table) go in one call for each family.
fn apply(datapath: &mut Datapath, changes: &[Change]) -> Result<(), fw_bpf::Error> {
    let mut rest = changes;
    while let Some(first) = rest.first() {
        let same = |change: &&Change| std::mem::discriminant(*change) == std::mem::discriminant(first);
        let (run, after) = rest.split_at(rest.iter().take_while(same).count());
        rest = after;
        match run {
            [Change::Put { address, allow }] => datapath.put(*address, *allow)?,
            [Change::Remove(address)] => datapath.remove(*address)?,
            [Change::Put { .. }, ..] => {
                let puts = run.iter().filter_map(|change| match change {
                    Change::Put { address, allow } => Some((*address, *allow)),
                    _ => None,
                });
                datapath.put_all(&puts.collect::<Vec<_>>())?;
            }
            [Change::Remove(_), ..] => {
                let removed = run.iter().filter_map(|change| match change {
                    Change::Remove(address) => Some(*address),
                    _ => None,
                });
                datapath.remove_all(&removed.collect::<Vec<_>>())?;
            }
            _ => {
                for change in run {
                    match change {
                        Change::PutClass { id, cells } => datapath.put_class(*id, cells)?,
                        Change::DropClass(id) => datapath.drop_class(*id)?,
                        Change::Put { .. } | Change::Remove(_) => {}
                    }
                }
            }
        }
    }
    Ok(())
}

/// The drop log's limit is for all CPUs; the programs count for each.
fn samples_per_second(rate: u32) -> u32 {
    if rate == 0 {
        return u32::MAX;
    }
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(1));
    rate.div_ceil(cpus).max(1)
}

/// Removes what a controller left that does not run.
pub fn remove(pins: &Path) -> anyhow::Result<()> {
    if !pins.exists() {
        return Ok(());
    }
    let options = fw_bpf::Options { pins: pins.to_owned(), sizes: Sizes::default(), conntrack: true };
    Datapath::open(&options)?.unload()?;
    Ok(())
}
