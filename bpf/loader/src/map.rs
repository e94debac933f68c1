//! Maps with typed keys and values.

use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{Context as _, Error};
use crate::sys::{self, Plain};

/// Elements of one batch; also the room for one bucket of a hash.
const CHUNK: usize = 4096;

/// A map of the data path.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    name: &'static str,
    fd: OwnedFd,
    bound: u32,
    kinds: PhantomData<(K, V)>,
}

impl<K: Plain + Default, V: Plain + Default> Map<K, V> {
    /// Opens the pin of this name.
    pub(crate) fn open(folder: &Path, name: &'static str) -> Result<Self, Error> {
        let fd = sys::get(&folder.join(name)).context(|| format!("opening the map {name}"))?;
        Self::from_fd(name, fd)
    }

    pub(crate) fn from_fd(name: &'static str, fd: OwnedFd) -> Result<Self, Error> {
        let bound = sys::map_entries(&fd).context(|| format!("asking for the size of the map {name}"))?;
        Ok(Self { name, fd, bound, kinds: PhantomData })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// How many entries it may have.
    pub(crate) fn bound(&self) -> u32 {
        self.bound
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn put(&self, key: &K, value: &V) -> Result<(), Error> {
        sys::update(&self.fd, key, value).map_err(|error| self.refused(error))
    }

    /// No entry of that key is fine.
    pub(crate) fn remove(&self, key: &K) -> Result<(), Error> {
        match sys::delete(&self.fd, key) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                Err(Error::call(format!("deleting from the map {}", self.name), error))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, Error> {
        let mut value = [V::default()];
        match sys::lookup(&self.fd, key, &mut value) {
            Ok(()) => Ok(value.first().copied()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(Error::call(format!("reading the map {}", self.name), error)),
        }
    }

    /// Puts all, in order; after an error the first ones are there.
    pub(crate) fn put_all(&self, keys: &[K], values: &[V]) -> Result<(), Error> {
        sys::update_batch(&self.fd, keys, values).map_err(|(_, error)| self.refused(error))
    }

    /// Removes all; those that are not there are skipped.
    pub(crate) fn remove_all(&self, mut keys: &[K]) -> Result<(), Error> {
        while !keys.is_empty() {
            match sys::delete_batch(&self.fd, keys) {
                Ok(()) => return Ok(()),
                Err((done, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                    keys = keys.get(done + 1..).unwrap_or_default();
                }
                Err((_, error)) => {
                    return Err(Error::call(format!("deleting from the map {}", self.name), error));
                }
            }
        }
        Ok(())
    }

    /// All elements of a hash or an array.
    pub(crate) fn dump(&self) -> Result<Vec<(K, V)>, Error> {
        let mut found = Vec::new();
        let mut room = CHUNK;
        let mut cursor = None;
        loop {
            let mut keys = vec![K::default(); room];
            let mut values = vec![V::default(); room];
            match sys::lookup_batch(&self.fd, &mut cursor, &mut keys, &mut values) {
                Ok((count, more)) => {
                    found.extend(keys.into_iter().zip(values).take(count));
                    if !more {
                        return Ok(found);
                    }
                }
                // One bucket holds more than there was room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => room *= 2,
                Err(error) => return Err(Error::call(format!("reading the map {}", self.name), error)),
            }
        }
    }

    /// All elements, one by one: for tries, while nobody else writes.
    pub(crate) fn walk(&self) -> Result<Vec<(K, V)>, Error> {
        let mut found = Vec::new();
        let mut last = None;
        while let Some(key) =
            sys::next_key(&self.fd, last.as_ref()).context(|| format!("walking the map {}", self.name))?
        {
            if let Some(value) = self.get(&key)? {
                found.push((key, value));
            }
            last = Some(key);
        }
        Ok(found)
    }

    fn refused(&self, error: io::Error) -> Error {
        // Hashes say E2BIG, tries ENOSPC.
        match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Error::Full { map: self.name, bound: self.bound },
            _ => Error::call(format!("writing the map {}", self.name), error),
        }
    }
}

/// Bytes of kernel memory that a map takes (`memlock` in its fdinfo).
pub(crate) fn memory(fd: &OwnedFd) -> io::Result<u64> {
    use std::os::fd::AsRawFd as _;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel does not say how much memory a map takes"))
}
