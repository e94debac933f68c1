//! The entry `droptailer` of the hosts file; every other line stays as it is, byte for byte.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::errno::Errno;

/// Longest hosts file that is changed, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;
const NAME: &[u8] = b"droptailer";

/// Writes or removes the entry. True when the file had to be changed.
pub fn set(path: &Path, address: Option<IpAddr>) -> io::Result<bool> {
    // What a link leads to is replaced, not the link.
    let path = fs::canonicalize(path)?;
    let mut before = Vec::new();
    File::open(&path)?.take(MAX_BYTES + 1).read_to_end(&mut before)?;
    if before.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("it is too large to be changed"));
    }
    let after = with_entry(&before, address);
    if after == before {
        return Ok(false);
    }
    match replace(&path, &after) {
        Ok(()) => {}
        // A file that is a mount itself, as in containers, cannot be renamed over (EBUSY, rename(2)).
        Err(error)
            if matches!(Errno::from_raw(error.raw_os_error().unwrap_or(0)), Errno::EBUSY | Errno::EXDEV) =>
        {
            overwrite(&path, &after)?;
        }
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// The file with our line, which has no other name than `droptailer`: in its place, or at the end.
fn with_entry(before: &[u8], address: Option<IpAddr>) -> Vec<u8> {
    let mut entry = address.map(|address| format!("{address}\tdroptailer\n").into_bytes());
    let mut after = Vec::with_capacity(before.len() + 64);
    for line in before.split_inclusive(|byte| *byte == b'\n') {
        if is_ours(line) {
            after.extend(entry.take().unwrap_or_default());
        } else {
            after.extend_from_slice(line);
        }
    }
    if let Some(entry) = entry {
        if after.last().is_some_and(|last| *last != b'\n') {
            after.push(b'\n');
        }
        after.extend(entry);
    }
    after
}

fn is_ours(line: &[u8]) -> bool {
    let code = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    let mut words = code.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.next().is_some() && words.next() == Some(NAME) && words.next().is_none()
}

/// A new file in its place, with its mode and owner.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let written = (|| {
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
        file.write_all(content)?;
        std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
        file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        fs::remove_file(&beside).ok();
    }
    written
}

/// Begins with the new bytes and ends with cutting the old ones off: at no moment is the file empty.
fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.rewind()?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::temporary::TemporaryDirectory;

    const OTHERS: &str =
        "127.0.0.1 localhost\n# droptailer\n10.0.0.1 droptailer other\n10.0.0.2 x droptailer # y\n";

    fn address() -> Option<IpAddr> {
        "10.1.2.3".parse().ok()
    }

    #[test]
    fn only_our_line_is_written_changed_and_removed_and_the_mode_stays() {
        let directory = TemporaryDirectory::new("hosts");
        let path = directory.path().join("hosts");
        fs::write(&path, OTHERS).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(set(&path, address()).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{OTHERS}10.1.2.3\tdroptailer\n"));
        assert!(!set(&path, address()).unwrap(), "it is so already");
        assert!(set(&path, "2001:db8::1".parse().ok()).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{OTHERS}2001:db8::1\tdroptailer\n"));
        assert!(set(&path, None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), OTHERS);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o604);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_line_of_the_go_controller_is_taken_over_and_stands_once() {
        let before = b"10.0.0.9 droptailer\n::1 localhost\n10.0.0.8\tdroptailer  # again\n::2 end";
        let after = with_entry(before, address());
        assert_eq!(String::from_utf8(after).unwrap(), "10.1.2.3\tdroptailer\n::1 localhost\n::2 end");
        let after = with_entry(b"::2 end", address());
        assert_eq!(after, b"::2 end\n10.1.2.3\tdroptailer\n");
    }

    #[test]
    fn a_link_stays_a_link_and_a_file_that_is_too_large_stays() {
        let directory = TemporaryDirectory::new("hosts");
        let (path, link) = (directory.path().join("hosts"), directory.path().join("link"));
        fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(set(&link, address()).unwrap());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "10.1.2.3\tdroptailer\n");
        fs::write(&path, vec![b'\n'; 1024 * 1024 + 1]).unwrap();
        assert!(set(&path, address()).is_err());
        assert!(set(&directory.path().join("none"), address()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_and_removed_again_leaves_all_other_lines(before in "([ -~]{0,20}\n){0,8}") {
            let others: Vec<&str> = before.lines().filter(|line| !is_ours(line.as_bytes())).collect();
            let with = String::from_utf8(with_entry(before.as_bytes(), address())).unwrap();
            let kept: Vec<&str> = with.lines().filter(|line| !is_ours(line.as_bytes())).collect();
            prop_assert_eq!(&kept, &others);
            prop_assert_eq!(with.lines().filter(|line| is_ours(line.as_bytes())).count(), 1);
            let without = String::from_utf8(with_entry(with.as_bytes(), None)).unwrap();
            prop_assert_eq!(without.lines().collect::<Vec<_>>(), others);
        }
    }
}
