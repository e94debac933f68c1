//! What is attached where: links, pinned under `KIND-IFINDEX`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, Error};
use crate::nic;
use crate::object::Program;
use crate::sys::{self, LinkInfo};

/// How the data path sits on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// XDP in the driver bounces, TCX stamps.
    Native,
    /// XDP in front of the stack bounces, TCX stamps.
    Generic,
    /// TCX stamps and bounces.
    Tcx,
}

/// An interface with the data path on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Number of the interface.
    pub ifindex: u32,
    /// Its name, unless it is in another network namespace.
    pub name: Option<String>,
    /// How.
    pub mode: Mode,
}

/// What a link's pin says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Native,
    Frags,
    Generic,
    Tcx,
    Stamp,
}

impl Kind {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Native, "native"),
        (Self::Frags, "frags"),
        (Self::Generic, "generic"),
        (Self::Tcx, "tcx"),
        (Self::Stamp, "stamp"),
    ];

    fn is_xdp(self) -> bool {
        matches!(self, Self::Native | Self::Frags | Self::Generic)
    }

    pub(crate) fn program(self) -> Program {
        match self {
            Self::Native | Self::Generic => Program::Xdp,
            Self::Frags => Program::XdpFrags,
            Self::Tcx => Program::Tcx,
            Self::Stamp => Program::Stamp,
        }
    }

    pub(crate) fn mode(self) -> Mode {
        match self {
            Self::Native | Self::Frags => Mode::Native,
            Self::Generic => Mode::Generic,
            Self::Tcx | Self::Stamp => Mode::Tcx,
        }
    }

    /// Attach type and flags.
    fn how(self) -> (u32, u32) {
        match self {
            Self::Native | Self::Frags => (sys::XDP, sys::XDP_DRV_MODE),
            Self::Generic => (sys::XDP, sys::XDP_SKB_MODE),
            // Before all others: one of them could end the chain, and the mark would stay as it came.
            Self::Tcx | Self::Stamp => (sys::TCX_INGRESS, sys::BEFORE),
        }
    }

    fn file(self, folder: &Path, ifindex: u32) -> PathBuf {
        let name = Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name);
        folder.join(format!("{name}-{ifindex}"))
    }

    fn parse(file: &str) -> Option<(Self, u32)> {
        let (name, ifindex) = file.split_once('-')?;
        let (kind, _) = Self::ALL.iter().find(|(_, known)| *known == name)?;
        Some((*kind, ifindex.parse().ok()?))
    }
}

/// A pinned link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) kind: Kind,
    pub(crate) ifindex: u32,
    fd: OwnedFd,
    file: PathBuf,
}

impl Link {
    pub(crate) fn create(folder: &Path, kind: Kind, ifindex: u32, program: &OwnedFd) -> io::Result<Self> {
        let (attach_type, flags) = kind.how();
        let fd = sys::link_create(program, ifindex, attach_type, flags)?;
        let file = kind.file(folder, ifindex);
        sys::pin(&fd, &file)?;
        Ok(Self { kind, ifindex, fd, file })
    }

    fn open(file: PathBuf) -> Option<(Self, LinkInfo)> {
        let (kind, ifindex) = Kind::parse(file.file_name()?.to_str()?)?;
        let fd = sys::get(&file).ok()?;
        let info = sys::link_info(&fd).ok()?;
        Some((Self { kind, ifindex, fd, file }, info))
    }

    /// Puts another program in the place of the present one, between two packets.
    pub(crate) fn update(&self, program: &OwnedFd) -> Result<(), Error> {
        let info = sys::link_info(&self.fd).context(|| "asking for a link".to_owned())?;
        let id = sys::program_id(program).context(|| "asking for a program".to_owned())?;
        if info.program == id {
            return Ok(());
        }
        sys::link_update(&self.fd, program)
            .context(|| format!("replacing the program on interface {}", self.ifindex))
    }

    /// Changes which program it holds and what its pin says of that.
    pub(crate) fn become_kind(mut self, folder: &Path, kind: Kind, program: &OwnedFd) -> Result<Self, Error> {
        self.update(program)?;
        if kind != self.kind {
            let file = kind.file(folder, self.ifindex);
            fs::rename(&self.file, &file).context(|| "renaming a pin".to_owned())?;
            (self.kind, self.file) = (kind, file);
        }
        Ok(self)
    }

    /// Detaches at once; without the call the kernel does so some time after the last pin has gone.
    pub(crate) fn remove(self) -> Result<(), Error> {
        // A link whose interface has gone is detached already.
        let _ = sys::link_detach(&self.fd);
        fs::remove_file(&self.file).context(|| format!("removing {}", self.file.display()))
    }
}

/// All links; removes the pins of those whose interface has gone, or that cannot be read.
pub(crate) fn all(folder: &Path) -> Result<Vec<Link>, Error> {
    let what = || format!("reading {}", folder.display());
    let mut links = Vec::new();
    for entry in fs::read_dir(folder).context(what)? {
        let file = entry.context(what)?.path();
        match Link::open(file.clone()) {
            Some((link, info)) if info.ifindex == link.ifindex => links.push(link),
            _ => fs::remove_file(&file).context(|| format!("removing {}", file.display()))?,
        }
    }
    Ok(links)
}

/// The links of one interface: XDP's and TCX's.
pub(crate) fn of(folder: &Path, ifindex: u32) -> Result<(Option<Link>, Option<Link>), Error> {
    let (xdp, tcx): (Vec<_>, Vec<_>) =
        all(folder)?.into_iter().filter(|link| link.ifindex == ifindex).partition(|link| link.kind.is_xdp());
    Ok((xdp.into_iter().next(), tcx.into_iter().next()))
}

/// What all links together mean: where TCX bounces or only stamps.
pub(crate) fn attached(folder: &Path) -> Result<Vec<Attached>, Error> {
    let mut found: BTreeMap<u32, Mode> = BTreeMap::new();
    for link in all(folder)? {
        let mode = link.kind.mode();
        found.entry(link.ifindex).and_modify(|known| *known = mode.min(*known)).or_insert(mode);
    }
    Ok(found
        .into_iter()
        .map(|(ifindex, mode)| Attached { ifindex, name: nic::name(ifindex), mode })
        .collect())
}
