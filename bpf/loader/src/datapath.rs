//! The data path: open or adopt, attach, write, read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use fw_bpf_common::{ALL_PORTS_CLASS, Address, Allow, Cell, Config, NO_CLASS, owner};
use ipnet::IpNet;

use crate::classes::Classes;
use crate::error::{Context as _, Error};
use crate::inventory::{self, Drops, MapUse};
use crate::links::{self, Attached, Kind, Link, Mode};
use crate::map::{Map, memory};
use crate::object::Program;
use crate::open::{self, Folders};
use crate::prefixes::{Prefixes, all_ports};
use crate::samples::Samples;
use crate::{FIRST_PREFIX_CLASS, bpffs, nic, sys};

mod judge;

/// Sizes of the maps; all but the prefixes take their memory at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Addresses of IPv4 (about 128 bytes each).
    pub ipv4: u32,
    /// Addresses of IPv6 (about 136 bytes each).
    pub ipv6: u32,
    /// Prefixes of each family.
    pub prefixes: u32,
    /// Bytes of the ring of samples: a power of two and a multiple of the page.
    pub sample_bytes: u32,
}

impl Default for Sizes {
    /// 65,536 names with two addresses of each family: 45 MiB with everything.
    fn default() -> Self {
        Self { ipv4: 131_072, ipv6: 131_072, prefixes: 65_536, sample_bytes: 262_144 }
    }
}

/// Where and how large.
#[derive(Clone, Debug)]
pub struct Options {
    /// A folder of ours on a bpffs; one is mounted there unless it is on one.
    pub pins: PathBuf,
    /// Sizes of the maps.
    pub sizes: Sizes,
    /// Ask conntrack where the kernel can be asked; else only openings of TCP connections are bounced.
    pub conntrack: bool,
}

/// What [`Datapath::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing: everything is new and empty.
    New,
    /// The same programs with their maps.
    Adopted,
    /// Other programs, which were replaced in place; their maps go on.
    Upgraded,
    /// Maps of other sizes: what names allow was copied, programs were replaced in place.
    Resized,
    /// Maps of another layout: all are new and empty, programs were replaced in place.
    Renewed,
}

/// What a test run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned.
    pub result: u32,
    /// The mark afterwards (TCX).
    pub mark: u32,
    /// Nanoseconds of one run.
    pub nanoseconds: u32,
}

/// Offset of `mark` in `struct __sk_buff`, and a size that ends after what the kernel reads of it.
const SKB_MARK: usize = 8;
const SKB_SIZE: usize = 192;

/// The maps and programs of one folder of pins. Dropping it changes nothing in the kernel.
#[derive(Debug)]
pub struct Datapath {
    folders: Folders,
    opened: Opened,
    unasked: Option<String>,
    programs: BTreeMap<Program, OwnedFd>,
    config: Map<u32, Config>,
    allow4: Map<[u8; 4], Allow>,
    allow6: Map<[u8; 16], Allow>,
    drops: OwnedFd,
    samples: OwnedFd,
    present4: BTreeSet<Ipv4Addr>,
    present6: BTreeSet<Ipv6Addr>,
    classes: Classes,
    prefixes: Prefixes,
    _lock: File,
}

impl Datapath {
    /// Adopts what is pinned, as far as it is ours and of our layout, or loads and pins everything. Does not detach,
    /// empty or attach anything; programs of links that are there are replaced between two packets.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process has it open; [`Error::Load`] with the verifier's words; failed calls.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let folders = Folders::new(&options.pins);
        bpffs::ensure(&folders.root)?;
        let lock = bpffs::lock(&folders.root)?;
        let (opened, unasked) = open::prepare(&folders, options)?;
        let maps = &folders.maps;
        let raw = |name: &str| sys::get(&maps.join(name)).context(|| format!("opening the map {name}"));
        let (mut classes, content) = Classes::adopt(Map::open(maps, "CLASSES")?)?;
        if content.get(&ALL_PORTS_CLASS) != Some(&all_ports()) {
            classes.put(ALL_PORTS_CLASS, &all_ports())?;
        }
        let prefixes = Prefixes::adopt(Map::open(maps, "STATIC4")?, Map::open(maps, "STATIC6")?, &content)?;
        let (allow4, allow6) = (Map::open(maps, "ALLOW4")?, Map::open(maps, "ALLOW6")?);
        let present4 = allow4.dump()?.into_iter().map(|(address, _)| Ipv4Addr::from(address)).collect();
        let present6 = allow6.dump()?.into_iter().map(|(address, _)| Ipv6Addr::from(address)).collect();
        let programs = open::programs(&folders.programs)?;
        let config = Map::open(maps, "CONFIG")?;
        let (drops, samples) = (raw("DROPS")?, raw("SAMPLES")?);
        Ok(Self {
            folders,
            opened,
            unasked,
            programs,
            config,
            allow4,
            allow6,
            drops,
            samples,
            present4,
            present6,
            classes,
            prefixes,
            _lock: lock,
        })
    }

    /// What [`Datapath::open`] found.
    #[must_use]
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// Why the programs do not ask conntrack; `None` if they do. Then they also bounce datagrams, and no packet of a live
    /// connection.
    #[must_use]
    pub fn unasked(&self) -> Option<&str> {
        self.unasked.as_deref()
    }

    /// Puts the data path on an interface of this network namespace, or changes its mode. While it changes, TCX
    /// bounces, so that no packet passes unjudged.
    ///
    /// # Errors
    /// [`Error::NoInterface`], [`Error::NotEthernet`]; [`Error::Occupied`] and [`Error::NoNativeXdp`], after which the
    /// interface has no XDP of ours (and no TCX either, unless it had before).
    pub fn attach(&mut self, name: &str, mode: Mode) -> Result<Attached, Error> {
        nic::nic(name)?;
        let ifindex = nic::index(name)?;
        let folder = &self.folders.links;
        let attached = Attached { ifindex, name: Some(name.to_owned()), mode };
        let (xdp, tcx) = links::of(folder, ifindex)?;
        let present = xdp.as_ref().map_or(Mode::Tcx, |link| link.kind.mode());
        let was_there = tcx.is_some();
        let bounces = if present == mode && mode != Mode::Tcx { Kind::Stamp } else { Kind::Tcx };
        let tcx = match tcx {
            Some(link) => link.become_kind(folder, bounces, self.program(bounces.program())?)?,
            None => Link::create(folder, bounces, ifindex, self.program(bounces.program())?)
                .context(|| format!("attaching TCX to {name}"))?,
        };
        if present == mode {
            return Ok(attached);
        }
        if let Some(xdp) = xdp {
            xdp.remove()?;
        }
        if mode == Mode::Tcx {
            return Ok(attached);
        }
        match self.attach_xdp(name, ifindex, mode) {
            Ok(()) => {
                tcx.become_kind(folder, Kind::Stamp, self.program(Program::Stamp)?)?;
                Ok(attached)
            }
            Err(error) => {
                if !was_there {
                    tcx.remove()?;
                }
                Err(error)
            }
        }
    }

    fn attach_xdp(&self, name: &str, ifindex: u32, mode: Mode) -> Result<(), Error> {
        // A program that reads frames in several pages is for native mode only: generic XDP hands it packets whose
        // headers it has moved (Linux 6.18).
        let kinds: &[Kind] =
            if mode == Mode::Native { &[Kind::Native, Kind::Frags] } else { &[Kind::Generic] };
        let mut refused = Error::NoNativeXdp(name.to_owned());
        for &kind in kinds {
            let error = match Link::create(&self.folders.links, kind, ifindex, self.program(kind.program())?)
            {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => return Err(Error::Occupied(name.to_owned())),
                Some(libc::EOPNOTSUPP | libc::ERANGE | libc::EINVAL | libc::E2BIG)
                    if mode == Mode::Native => {}
                _ => refused = Error::call(format!("attaching XDP to {name}"), error),
            }
        }
        Err(refused)
    }

    /// Takes the data path off an interface; none there is fine.
    ///
    /// # Errors
    /// Failed calls.
    pub fn detach(&mut self, name: &str) -> Result<(), Error> {
        let Ok(ifindex) = nic::index(name) else {
            return links::all(&self.folders.links).map(drop);
        };
        let (xdp, tcx) = links::of(&self.folders.links, ifindex)?;
        for link in xdp.into_iter().chain(tcx) {
            link.remove()?;
        }
        Ok(())
    }

    /// Where the data path is. Forgets interfaces that have gone.
    ///
    /// # Errors
    /// Failed calls.
    pub fn attached(&self) -> Result<Vec<Attached>, Error> {
        links::attached(&self.folders.links)
    }

    /// Writes what the programs do.
    ///
    /// # Errors
    /// Failed calls.
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        self.config.put(&0, &config)
    }

    /// What the programs do.
    ///
    /// # Errors
    /// Failed calls.
    pub fn config(&self) -> Result<Config, Error> {
        Ok(self.config.get(&0)?.unwrap_or_default())
    }

    /// Writes a class of names: disjoint cells, each with an index. Not while addresses name it, unless it is the same.
    ///
    /// # Errors
    /// [`Error::ClassId`], [`Error::TooManyCells`], [`Error::Full`]; failed calls.
    pub fn put_class(&mut self, id: u32, cells: &[Cell]) -> Result<(), Error> {
        self.classes.put(learner_id(id)?, cells)
    }

    /// Empties a class that no address names.
    ///
    /// # Errors
    /// [`Error::ClassId`]; failed calls.
    pub fn drop_class(&mut self, id: u32) -> Result<(), Error> {
        self.classes.drop(learner_id(id)?)
    }

    /// Allows an address, in the place of what it was allowed before. In force when this returns.
    ///
    /// # Errors
    /// [`Error::Full`]; failed calls.
    pub fn put(&mut self, address: IpAddr, allow: Allow) -> Result<(), Error> {
        match address {
            IpAddr::V4(address) => {
                self.allow4.put(&address.octets(), &seal(allow, &Address::v4(address.octets())))?;
                self.present4.insert(address);
            }
            IpAddr::V6(address) => {
                self.allow6.put(&address.octets(), &seal(allow, &Address::v6(address.octets())))?;
                self.present6.insert(address);
            }
        }
        Ok(())
    }

    /// Allows many addresses, with one call to the kernel for each family.
    ///
    /// # Errors
    /// As [`Datapath::put`]; some may then be written.
    pub fn put_all(&mut self, allows: &[(IpAddr, Allow)]) -> Result<(), Error> {
        let (mut keys4, mut values4, mut keys6, mut values6) = (vec![], vec![], vec![], vec![]);
        for &(address, allow) in allows {
            match address {
                IpAddr::V4(address) => {
                    keys4.push(address.octets());
                    values4.push(seal(allow, &Address::v4(address.octets())));
                }
                IpAddr::V6(address) => {
                    keys6.push(address.octets());
                    values6.push(seal(allow, &Address::v6(address.octets())));
                }
            }
        }
        let four = if keys4.is_empty() { Ok(()) } else { self.allow4.put_all(&keys4, &values4) };
        let six = if keys6.is_empty() { Ok(()) } else { self.allow6.put_all(&keys6, &values6) };
        if four.is_ok() && six.is_ok() {
            self.present4.extend(keys4.into_iter().map(Ipv4Addr::from));
            self.present6.extend(keys6.into_iter().map(Ipv6Addr::from));
        } else {
            // Which ones were written is not known.
            self.recount()?;
        }
        four.and(six)
    }

    /// Allows an address no more; in force when this returns. None there is fine.
    ///
    /// # Errors
    /// Failed calls.
    pub fn remove(&mut self, address: IpAddr) -> Result<(), Error> {
        match address {
            IpAddr::V4(address) => {
                self.allow4.remove(&address.octets())?;
                self.present4.remove(&address);
            }
            IpAddr::V6(address) => {
                self.allow6.remove(&address.octets())?;
                self.present6.remove(&address);
            }
        }
        Ok(())
    }

    /// As [`Datapath::remove`] for many.
    ///
    /// # Errors
    /// Failed calls; some may then be removed.
    pub fn remove_all(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let (mut keys4, mut keys6) = (vec![], vec![]);
        for address in addresses {
            match address {
                IpAddr::V4(address) => keys4.push(address.octets()),
                IpAddr::V6(address) => keys6.push(address.octets()),
            }
        }
        self.allow4.remove_all(&keys4)?;
        self.allow6.remove_all(&keys6)?;
        for address in addresses {
            match address {
                IpAddr::V4(address) => self.present4.remove(address),
                IpAddr::V6(address) => self.present6.remove(address),
            };
        }
        Ok(())
    }

    fn recount(&mut self) -> Result<(), Error> {
        self.present4 = self.allow4.dump()?.into_iter().map(|(address, _)| Ipv4Addr::from(address)).collect();
        self.present6 = self.allow6.dump()?.into_iter().map(|(address, _)| Ipv6Addr::from(address)).collect();
        Ok(())
    }

    /// What names allow, read from the kernel: what a new process learns from the one before.
    ///
    /// # Errors
    /// Failed calls.
    pub fn allows(&self) -> Result<BTreeMap<IpAddr, Allow>, Error> {
        let four = self.allow4.dump()?.into_iter().map(|(key, allow)| (IpAddr::from(key), unseal(allow)));
        let six = self.allow6.dump()?.into_iter().map(|(key, allow)| (IpAddr::from(key), unseal(allow)));
        Ok(four.chain(six).collect())
    }

    /// Classes of names, read from the kernel.
    ///
    /// # Errors
    /// Failed calls.
    pub fn classes(&self) -> Result<BTreeMap<u32, Vec<Cell>>, Error> {
        let mut content = self.classes.content()?;
        content.retain(|&id, _| learner_id(id).is_ok());
        Ok(content)
    }

    /// Makes the prefix table of the bouncer hold just this: ports that static rules may accept, by destination.
    /// Only a superset is safe, so write the union of old and new before nftables learns the new rules, and the new ones
    /// alone afterwards. Prefixes may hold each other; indexes are ignored.
    ///
    /// # Errors
    /// [`Error::Full`]: then the bouncer must be off. Failed calls.
    pub fn set_prefixes(&mut self, prefixes: &BTreeMap<IpNet, Vec<Cell>>) -> Result<(), Error> {
        self.prefixes.set(prefixes, &mut self.classes)
    }

    /// Prefixes whose ports were widened to all, since the start, because a bound was reached: nftables judges them.
    #[must_use]
    pub fn widened_prefixes(&self) -> u64 {
        self.prefixes.widened()
    }

    /// Dropped packets.
    ///
    /// # Errors
    /// Failed calls.
    pub fn drops(&self) -> Result<Drops, Error> {
        inventory::drops(&self.drops)
    }

    /// A reader of the ring of samples.
    ///
    /// # Errors
    /// Failed calls.
    pub fn samples(&self) -> Result<Samples, Error> {
        Samples::open(&self.folders.maps)
    }

    /// Entries, bounds and memory of the maps that grow with names and rules, and of the ring (bytes for entries).
    ///
    /// # Errors
    /// Failed calls.
    pub fn map_use(&self) -> Result<Vec<MapUse>, Error> {
        let entry = |name, used: usize, bound: u32, fd: &OwnedFd| {
            let memory = memory(fd).context(|| format!("asking for the memory of {name}"))?;
            Ok::<_, Error>(MapUse { name, used: used as u64, bound: bound.into(), memory })
        };
        let (trie4, trie6) = self.prefixes.maps();
        let (prefixes4, prefixes6) = self.prefixes.len();
        let classes = self.classes.map();
        let ring = sys::map_entries(&self.samples).context(|| "asking for the size of SAMPLES".to_owned())?;
        Ok(vec![
            entry("ALLOW4", self.present4.len(), self.allow4.bound(), self.allow4.fd())?,
            entry("ALLOW6", self.present6.len(), self.allow6.bound(), self.allow6.fd())?,
            entry("CLASSES", self.classes.used()?, classes.bound(), classes.fd())?,
            entry("STATIC4", prefixes4, trie4.bound(), trie4.fd())?,
            entry("STATIC6", prefixes6, trie6.bound(), trie6.fd())?,
            entry("SAMPLES", 0, ring, &self.samples)?,
        ])
    }

    /// Runs a program on a frame over the live maps, as the kernel would; drops are counted.
    ///
    /// # Errors
    /// Frames of fewer than 14 bytes are refused; failed calls.
    pub fn test_run(&self, program: Program, frame: &[u8], mark: u32, repeat: u32) -> Result<TestRun, Error> {
        let mut context = [0_u8; SKB_SIZE];
        let of_tcx = matches!(program, Program::Tcx | Program::Stamp);
        if let Some(field) = context.get_mut(SKB_MARK..SKB_MARK + 4) {
            field.copy_from_slice(&mark.to_ne_bytes());
        }
        let context = if of_tcx { &mut context[..] } else { &mut [] };
        let (result, nanoseconds) = sys::test_run(self.program(program)?, frame, context, repeat)
            .context(|| format!("running {}", program.name()))?;
        let field = context.get(SKB_MARK..).and_then(|rest| rest.first_chunk());
        Ok(TestRun { result, mark: field.map_or(0, |bytes| u32::from_ne_bytes(*bytes)), nanoseconds })
    }

    /// Detaches everything and removes all pins: afterwards the kernel holds nothing of it.
    ///
    /// # Errors
    /// Failed calls.
    pub fn unload(self) -> Result<(), Error> {
        for link in links::all(&self.folders.links)? {
            link.remove()?;
        }
        for folder in [&self.folders.links, &self.folders.programs, &self.folders.maps] {
            bpffs::remove(folder)?;
        }
        bpffs::release(&self.folders.root)
    }

    fn program(&self, program: Program) -> Result<&OwnedFd, Error> {
        self.programs
            .get(&program)
            .ok_or_else(|| Error::Load(format!("{} is not loaded", program.name()).into()))
    }
}

/// Ids of classes of names.
fn learner_id(id: u32) -> Result<u32, Error> {
    if id > ALL_PORTS_CLASS && id < FIRST_PREFIX_CLASS { Ok(id) } else { Err(Error::ClassId(id)) }
}

/// Writes into each step whose it is.
fn seal(mut allow: Allow, address: &Address) -> Allow {
    for step in &mut allow.steps {
        step.reserved = if step.class == NO_CLASS { 0 } else { owner(address) };
    }
    allow
}

fn unseal(mut allow: Allow) -> Allow {
    for step in &mut allow.steps {
        step.reserved = 0;
    }
    allow
}
