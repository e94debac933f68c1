//! What is pinned already, and what becomes of it.
//!
//! New maps and programs are made beside the old ones (`new_maps`, `new_programs`), links are turned to the new
//! programs, and only then do the old pins go. A kill at any point leaves links with programs that work, and the next
//! start begins again.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use fw_bpf_common::{Allow, Class, Config, LAYOUT};

use crate::datapath::{Opened, Options, Sizes};
use crate::error::{Context as _, Error};
use crate::kfunc::{self, Kfuncs};
use crate::map::Map;
use crate::object::{self, Program};
use crate::prefixes::Trie6;
use crate::sys::Plain;
use crate::{bpffs, links, sys};

/// Name of the map that says what the others are.
const META: &str = "meta";
/// Its value: layout and four sizes, then the hash of the object.
type Meta = [u8; 52];

/// The folders of the pins.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    pub(crate) root: PathBuf,
    pub(crate) maps: PathBuf,
    pub(crate) programs: PathBuf,
    pub(crate) links: PathBuf,
    new_maps: PathBuf,
    new_programs: PathBuf,
}

impl Folders {
    pub(crate) fn new(root: &Path) -> Self {
        let folder = |name: &str| root.join(name);
        Self {
            root: root.to_owned(),
            maps: folder("maps"),
            programs: folder("programs"),
            links: folder("links"),
            new_maps: folder("new_maps"),
            new_programs: folder("new_programs"),
        }
    }
}

/// Makes the pins what this version wants. Beside what was found: why conntrack is not asked, if so.
pub(crate) fn prepare(folders: &Folders, options: &Options) -> Result<(Opened, Option<String>), Error> {
    let kfuncs = if options.conntrack { kfunc::find() } else { Err("switched off".to_owned()) };
    match kfuncs {
        Err(why) => Ok((prepare_with(folders, &options.sizes, None)?, Some(why))),
        Ok(kfuncs) => match prepare_with(folders, &options.sizes, Some(&kfuncs)) {
            // The kernel may have the functions and not take the programs that call them.
            Err(Error::Load(why)) => {
                let opened = prepare_with(folders, &options.sizes, None)?;
                Ok((opened, Some(format!("programs that ask it are not taken: {why}"))))
            }
            result => Ok((result?, None)),
        },
    }
}

fn prepare_with(folders: &Folders, sizes: &Sizes, kfuncs: Option<&Kfuncs>) -> Result<Opened, Error> {
    bpffs::remove(&folders.new_maps)?;
    bpffs::remove(&folders.new_programs)?;
    make(&folders.links)?;
    let wanted = meta(sizes, kfuncs.is_some());
    let opened = judge(read_meta(&folders.maps), &wanted, programs(&folders.programs).is_ok());
    match opened {
        Opened::Adopted => {}
        Opened::Upgraded => {
            make(&folders.new_programs)?;
            object::load(&folders.maps, &folders.new_programs, kfuncs)?;
        }
        Opened::New | Opened::Resized | Opened::Renewed => {
            make(&folders.new_maps)?;
            make(&folders.new_programs)?;
            object::make_maps(&folders.new_maps, sizes)?;
            object::load(&folders.new_maps, &folders.new_programs, kfuncs)?;
            if opened == Opened::Resized {
                copy(&folders.maps, &folders.new_maps)?;
            }
            pin_meta(&folders.new_maps)?;
        }
    }
    let fresh = folders.new_programs.exists();
    relink(&folders.links, if fresh { &folders.new_programs } else { &folders.programs })?;
    replace(&folders.new_maps, &folders.maps)?;
    replace(&folders.new_programs, &folders.programs)?;
    // Last: only what is complete says what it is.
    write_meta(&folders.maps, &wanted)?;
    Ok(opened)
}

fn judge(found: Option<Meta>, wanted: &Meta, programs: bool) -> Opened {
    let Some(found) = found else { return Opened::New };
    if found == *wanted && programs {
        Opened::Adopted
    } else if found[..20] == wanted[..20] {
        Opened::Upgraded
    } else if found[..4] == wanted[..4] {
        Opened::Resized
    } else {
        Opened::Renewed
    }
}

/// The pinned programs.
pub(crate) fn programs(folder: &Path) -> Result<BTreeMap<Program, OwnedFd>, Error> {
    let open = |program: Program| {
        let fd = sys::get(&folder.join(program.name())).context(|| format!("opening {}", program.name()))?;
        Ok((program, fd))
    };
    Program::ALL.into_iter().map(open).collect()
}

fn meta(sizes: &Sizes, asks: bool) -> Meta {
    let mut meta = [0; 52];
    let numbers = [LAYOUT, sizes.ipv4, sizes.ipv6, sizes.prefixes, sizes.sample_bytes];
    for (to, from) in meta.chunks_exact_mut(4).zip(numbers) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    meta[20..].copy_from_slice(&object::hash(asks));
    meta
}

fn read_meta(maps: &Path) -> Option<Meta> {
    let fd = sys::get(&maps.join(META)).ok()?;
    let mut value = [[0_u8; 52]];
    // A map of another size belongs to another version; reading it would write past the value.
    if sys::value_size(&fd).ok()? as usize != size_of::<Meta>() {
        return Some([u8::MAX; 52]);
    }
    sys::lookup(&fd, &0_u32, &mut value).ok()?;
    let [meta] = value;
    (meta != [0; 52]).then_some(meta)
}

fn pin_meta(maps: &Path) -> Result<(), Error> {
    let fd =
        sys::create_array("fw_meta", size_of::<Meta>(), 1).context(|| "making the map meta".to_owned())?;
    sys::pin(&fd, &maps.join(META)).context(|| "pinning the map meta".to_owned())
}

fn write_meta(maps: &Path, meta: &Meta) -> Result<(), Error> {
    let what = || "writing the map meta".to_owned();
    let fd = sys::get(&maps.join(META)).context(what)?;
    sys::update(&fd, &0_u32, meta).context(what)
}

/// Turns all links to the programs of a folder.
fn relink(links: &Path, programs_folder: &Path) -> Result<(), Error> {
    let programs = programs(programs_folder)?;
    for link in links::all(links)? {
        if let Some(program) = programs.get(&link.kind.program()) {
            link.update(program)?;
        }
    }
    Ok(())
}

/// Copies what names and rules allow into maps of other sizes, as much as fits.
fn copy(old: &Path, new: &Path) -> Result<(), Error> {
    copy_map::<u32, Config>(old, new, "CONFIG", false)?;
    copy_map::<u32, Class>(old, new, "CLASSES", false)?;
    copy_map::<[u8; 4], Allow>(old, new, "ALLOW4", false)?;
    copy_map::<[u8; 16], Allow>(old, new, "ALLOW6", false)?;
    copy_map::<[u8; 8], u32>(old, new, "STATIC4", true)?;
    copy_map::<Trie6, u32>(old, new, "STATIC6", true)
}

fn copy_map<K: Plain + Default, V: Plain + Default>(
    old: &Path,
    new: &Path,
    name: &'static str,
    trie: bool,
) -> Result<(), Error> {
    let (old, new) = (Map::<K, V>::open(old, name)?, Map::<K, V>::open(new, name)?);
    let (keys, values): (Vec<K>, Vec<V>) = if trie { old.walk()? } else { old.dump()? }.into_iter().unzip();
    if keys.is_empty() {
        return Ok(());
    }
    match new.put_all(&keys, &values) {
        Err(Error::Full { .. }) => Ok(()),
        result => result,
    }
}

/// Removes whatever is there, as far as it goes: the rest of something that failed.
pub(crate) fn discard(root: &Path) {
    let folders = Folders::new(root);
    for folder in [folders.links, folders.programs, folders.maps, folders.new_programs, folders.new_maps] {
        let _ = bpffs::remove(&folder);
    }
    let _ = bpffs::release(root);
}

fn make(folder: &Path) -> Result<(), Error> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::call(format!("making {}", folder.display()), error))
        }
        _ => Ok(()),
    }
}

/// Puts a folder into the place of another one, if there is a new one.
fn replace(new: &Path, old: &Path) -> Result<(), Error> {
    if !new.exists() {
        return Ok(());
    }
    bpffs::remove(old)?;
    fs::rename(new, old).context(|| format!("renaming {}", new.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_judged_by_layout_then_sizes_then_programs() {
        let ours = meta(&Sizes::default(), true);
        let mut object = ours;
        object[51] ^= 1;
        let mut sizes = ours;
        sizes[5] ^= 1;
        let mut layout = ours;
        layout[0] ^= 1;
        assert_eq!(judge(None, &ours, false), Opened::New);
        assert_eq!(judge(Some(ours), &ours, true), Opened::Adopted);
        assert_eq!(judge(Some(ours), &ours, false), Opened::Upgraded);
        assert_eq!(judge(Some(object), &ours, true), Opened::Upgraded);
        assert_eq!(judge(Some(meta(&Sizes::default(), false)), &ours, true), Opened::Upgraded);
        assert_eq!(judge(Some(sizes), &ours, true), Opened::Resized);
        assert_eq!(judge(Some(layout), &ours, true), Opened::Renewed);
    }
}
