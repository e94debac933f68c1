//! Finding and reading manifest files without ever blocking on one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use fw_intake::MAX_FILE_BYTES;

/// Directory levels below the one given.
pub const MAX_DEPTH: usize = 8;
/// Manifest files in all.
pub const MAX_FILES: usize = 20_000;
/// Directories in all; each one needs an inotify watch.
pub const MAX_DIRECTORIES: usize = 1_000;
/// Bytes of all manifest files together.
pub const MAX_TOTAL_BYTES: u64 = 128 * 1024 * 1024;
/// Links followed on the way to a file; the kernel's own bound (MAXSYMLINKS in include/linux/namei.h).
const MAX_LINKS: usize = 40;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    /// Bytes.
    pub size: u64,
    links: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            links: meta.nlink(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// True for a file with one name only, as an editor creates it.
    pub fn has_one_name(&self) -> bool {
        self.links == 1
    }
}

/// A directory tree's manifest files.
#[derive(Debug, Default)]
pub struct Listing {
    /// Readable regular files with their stamps.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// Files and directories that are there but cannot be used, with the reason. What was known of them, and of
    /// everything below them, is to be kept.
    pub unusable: BTreeMap<PathBuf, String>,
    /// The directories read.
    pub directories: BTreeSet<PathBuf>,
    /// Names in directories on which the way to the tree or to a linked file depends.
    pub points: BTreeSet<(PathBuf, OsString)>,
    total_bytes: u64,
}

/// Lists the manifest files below `root`.
pub fn list(root: &Path) -> Listing {
    let mut listing = Listing { points: resolution_points(root), ..Listing::default() };
    list_directory(root, 0, &mut listing);
    listing
}

fn list_directory(directory: &Path, depth: usize, listing: &mut Listing) {
    if listing.directories.len() >= MAX_DIRECTORIES {
        listing.refuse(directory, format!("there are more than {MAX_DIRECTORIES} directories"));
        return;
    }
    let entries = match fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(entries) => entries,
        Err(error) => return listing.refuse(directory, error.to_string()),
    };
    listing.directories.insert(directory.to_owned());
    let names: BTreeSet<OsString> = entries.iter().map(fs::DirEntry::file_name).collect();
    for name in names.iter().filter(|name| !is_ignored(name)) {
        let path = directory.join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() && depth < MAX_DEPTH => list_directory(&path, depth + 1, listing),
            Ok(meta) if meta.is_dir() => {
                listing.refuse(&path, format!("it lies more than {MAX_DEPTH} levels deep"));
            }
            Ok(meta) if meta.is_symlink() => list_link(&path, listing),
            Ok(meta) if is_manifest_name(name) => listing.add(&path, &meta),
            Ok(_) => {}
            // Gone since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => listing.refuse(&path, error.to_string()),
        }
    }
}

fn list_link(path: &Path, listing: &mut Listing) {
    let is_manifest = path.file_name().is_some_and(is_manifest_name);
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => listing.refuse(path, "links to directories are not followed".to_owned()),
        Ok(meta) if is_manifest => {
            listing.points.append(&mut resolution_points(path));
            listing.add(path, &meta);
        }
        Err(error) if is_manifest => {
            listing.points.append(&mut resolution_points(path));
            listing.refuse(path, format!("the link leads nowhere: {error}"));
        }
        Ok(_) | Err(_) => {}
    }
}

impl Listing {
    fn add(&mut self, path: &Path, meta: &Metadata) {
        let stamp = Stamp::of(meta);
        if path.to_str().is_none() {
            self.refuse(path, "its name is not UTF-8".to_owned());
        } else if !meta.is_file() {
            self.refuse(path, "it is not a regular file".to_owned());
        } else if stamp.size > MAX_FILE_BYTES as u64 {
            self.refuse(path, format!("it has {} bytes, more than {MAX_FILE_BYTES}", stamp.size));
        } else if self.files.len() >= MAX_FILES {
            self.refuse(path, format!("there are more than {MAX_FILES} files"));
        } else if self.total_bytes.saturating_add(stamp.size) > MAX_TOTAL_BYTES {
            self.refuse(path, format!("all files together have more than {MAX_TOTAL_BYTES} bytes"));
        } else {
            self.total_bytes += stamp.size;
            self.files.insert(path.to_owned(), stamp);
        }
    }

    fn refuse(&mut self, path: &Path, reason: String) {
        self.unusable.insert(path.to_owned(), reason);
    }
}

/// Reads a file of bounded size. Opens it without blocking (a FIFO without a writer would block for ever, and
/// opening a device can have effects), then makes sure that what was opened is a regular file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    read_bounded(file)
}

/// Reads at most [`MAX_FILE_BYTES`].
pub fn read_bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Files that editors and ConfigMap mounts leave beside manifests: `.x.swp`, `..data`, `.#x`, `#x#`, `x~`.
pub fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") || name.starts_with(b"#") || name.ends_with(b"~")
}

/// `*.yaml`, `*.yml` and `*.json`.
pub fn is_manifest_name(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !is_ignored(name) && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The (directory, name) pairs that decide where `path` leads: each link on the way, and the last name or the first
/// one that does not exist. A change of any of them can make another file of it.
pub fn resolution_points(path: &Path) -> BTreeSet<(PathBuf, OsString)> {
    let mut points = BTreeSet::new();
    let mut here = if path.is_absolute() { PathBuf::from("/") } else { PathBuf::from(".") };
    let mut todo: Vec<OsString> = reversed_components(path);
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            here.push("..");
            continue;
        }
        let next = here.join(&name);
        match fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                points.insert((here.clone(), name));
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                todo.extend(reversed_components(&target));
            }
            // EINVAL: there, but not a link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                if todo.is_empty() {
                    points.insert((here.clone(), name));
                }
                here = next;
            }
            Ok(_) | Err(_) => {
                points.insert((here, name));
                break;
            }
        }
    }
    points
}

fn reversed_components(path: &Path) -> Vec<OsString> {
    let wanted = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(wanted).collect()
}

/// True when files in `directory` are among the manifests of `root`.
pub fn covers(root: &Path, directory: &Path) -> bool {
    let (root, directory) = (resolved(root), resolved(directory));
    directory.strip_prefix(&root).is_ok_and(|below| !below.iter().any(is_ignored))
}

/// An absolute path without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = absolute.ancestors().find_map(|ancestor| {
        let missing = absolute.strip_prefix(ancestor).ok()?;
        Some(fs::canonicalize(ancestor).ok()?.join(missing))
    });
    real.unwrap_or(absolute)
}

/// What `FILE|DIR…` on a command line names: files as they are, directories as `run` reads them.
pub fn expand(paths: &[PathBuf]) -> Vec<Result<PathBuf, (PathBuf, String)>> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(Ok(path.clone()));
            continue;
        }
        let listing = list(path);
        if listing.files.is_empty() && listing.unusable.is_empty() {
            let reason = "it holds no *.yaml, *.yml or *.json file".to_owned();
            found.push(Err((path.clone(), reason)));
        }
        found.extend(listing.files.into_keys().map(Ok));
        found.extend(listing.unusable.into_iter().map(Err));
    }
    found
}

/// Reads a file named on a command line, or standard input for `-`. Pipes are welcome here: `<(kubectl get …)`.
pub fn read_argument(path: &Path) -> io::Result<Vec<u8>> {
    if path == Path::new("-") { read_bounded(io::stdin().lock()) } else { read_bounded(File::open(path)?) }
}

/// Opens a directory so that renames in it can be made durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
