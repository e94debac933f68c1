//! The Secret `droptailer-client` as files, which change together.
//!
//! As the kubelet does it: the files are links into a directory of one generation, and one rename makes the next
//! generation theirs. So nobody reads a key that does not belong to its certificate.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Longest file, in bytes.
const MAX_BYTES: usize = 64 * 1024;
/// The link to the generation in use.
const DATA: &str = "..data";
/// Names of generations begin with this.
const GENERATION: &str = "..generation-";

/// Name, the end of its PEM labels, mode.
const FILES: [(&str, &str, u32); 3] =
    [("ca.crt", "CERTIFICATE", 0o640), ("tls.crt", "CERTIFICATE", 0o640), ("tls.key", "PRIVATE KEY", 0o600)];

/// The three files.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate(BTreeMap<&'static str, Vec<u8>>);

/// Why a Secret is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A key is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// More than it can be.
    #[error("{0} is longer than {MAX_BYTES} bytes")]
    TooLong(&'static str),
    /// Not what it should be.
    #[error("{0} is no PEM of a {1}")]
    NoPem(&'static str, &'static str),
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is in no log.
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Certificate {
    /// Reads the `data` of a Secret.
    pub fn read(data: &Value) -> Result<Self, Refused> {
        let mut files = BTreeMap::new();
        for (name, label, _) in FILES {
            let text = data[name].as_str().ok_or(Refused::Missing(name))?;
            if text.len() > MAX_BYTES * 4 / 3 + 4 {
                return Err(Refused::TooLong(name));
            }
            let bytes = STANDARD.decode(text).map_err(|_| Refused::NoPem(name, label))?;
            if bytes.len() > MAX_BYTES {
                return Err(Refused::TooLong(name));
            }
            if !is_pem(&bytes, label) {
                return Err(Refused::NoPem(name, label));
            }
            files.insert(name, bytes);
        }
        Ok(Self(files))
    }

    /// Writes them. True when the directory had to be changed.
    pub fn write(&self, directory: &Path) -> io::Result<bool> {
        DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        if self.is_there(directory) {
            return Ok(false);
        }
        let generation = (0_u32..)
            .map(|number| format!("{GENERATION}{number}"))
            .find(|name| fs::symlink_metadata(directory.join(name)).is_err())
            .unwrap_or_default();
        let place = directory.join(&generation);
        DirBuilder::new().mode(0o750).create(&place)?;
        for (name, _, mode) in FILES {
            let bytes = self.0.get(name).map(Vec::as_slice).unwrap_or_default();
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(mode).open(place.join(name))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        link(directory, DATA, &generation)?;
        for (name, ..) in FILES {
            let target = format!("{DATA}/{name}");
            let present = fs::read_link(directory.join(name));
            // A file that somebody put there is replaced as well.
            if present.ok().as_deref() != Some(Path::new(&target)) {
                link(directory, name, &target)?;
            }
        }
        remove_others(directory, &generation)?;
        Ok(true)
    }

    fn is_there(&self, directory: &Path) -> bool {
        let is_same = |(name, bytes): (&&str, &Vec<u8>)| {
            let path = directory.join(name);
            let is_link = fs::read_link(&path).is_ok_and(|target| target == Path::new(DATA).join(name));
            is_link && fs::read(&path).is_ok_and(|found| found == *bytes)
        };
        self.0.iter().all(is_same)
    }
}

/// Puts a link in the place of whatever has the name.
fn link(directory: &Path, name: &str, target: &str) -> io::Result<()> {
    let beside = directory.join(format!("..new-{name}"));
    fs::remove_file(&beside).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    symlink(target, &beside)?;
    fs::rename(&beside, directory.join(name))
}

fn remove_others(directory: &Path, generation: &str) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_old = name.to_str().is_some_and(|name| name.starts_with(GENERATION) && name != generation);
        if is_old {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// RFC 7468 section 3: at least one block, and nothing in it but base64.
fn is_pem(bytes: &[u8], label: &str) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut open: Option<(&str, String)> = None;
    let mut blocks = 0;
    for line in text.lines().map(str::trim) {
        let boundary = |word: &str| line.strip_prefix(word)?.strip_suffix("-----");
        if let Some(begun) = boundary("-----BEGIN ") {
            if open.is_some() || !begun.ends_with(label) {
                return false;
            }
            open = Some((begun, String::new()));
        } else if let Some(ended) = boundary("-----END ") {
            let Some((begun, body)) = open.take() else { return false };
            let is_whole = begun == ended && !body.is_empty() && STANDARD.decode(&body).is_ok();
            if !is_whole {
                return false;
            }
            blocks += 1;
        } else if let Some((_, body)) = &mut open {
            body.push_str(line);
        }
    }
    open.is_none() && blocks > 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;
    use crate::temporary::TemporaryDirectory;

    fn pem(label: &str, body: &str) -> String {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    fn secret(body: &str) -> Value {
        let of = |label: &str| STANDARD.encode(pem(label, body));
        json!({"ca.crt": of("CERTIFICATE"), "tls.crt": of("CERTIFICATE"), "tls.key": of("EC PRIVATE KEY")})
    }

    #[test]
    fn a_secret_becomes_files_that_change_together() {
        let directory = TemporaryDirectory::new("certificate");
        let place = directory.path().join("droptailer-client");
        let first = Certificate::read(&secret("QUJD")).unwrap();
        assert!(first.write(&place).unwrap());
        assert!(!first.write(&place).unwrap(), "it is so already");
        let key = place.join("tls.key");
        assert_eq!(fs::read_to_string(&key).unwrap(), pem("EC PRIVATE KEY", "QUJD"));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(place.join("ca.crt")).unwrap().permissions().mode() & 0o777, 0o640);
        // Through the link of before a reader sees the old set whole, through the new one the new set.
        let before = fs::canonicalize(&key).unwrap();
        assert!(Certificate::read(&secret("REVG")).unwrap().write(&place).unwrap());
        assert_ne!(fs::canonicalize(&key).unwrap(), before);
        for (name, label, _) in FILES {
            let text = fs::read_to_string(place.join(name)).unwrap();
            assert!(text.contains("REVG") && text.contains(label), "{name}: {text}");
        }
        assert_eq!(fs::read_dir(&place).unwrap().count(), 5, "three files, ..data and its generation");
    }

    #[test]
    fn plain_files_of_before_are_replaced() {
        let directory = TemporaryDirectory::new("certificate");
        fs::write(directory.path().join("tls.key"), "by hand").unwrap();
        assert!(Certificate::read(&secret("QUJD")).unwrap().write(directory.path()).unwrap());
        assert!(fs::read_to_string(directory.path().join("tls.key")).unwrap().contains("QUJD"));
    }

    #[test]
    fn what_is_no_pem_or_too_long_or_missing_is_refused() {
        let with = |name: &str, text: &str| {
            let mut secret = secret("QUJD");
            secret[name] = json!(STANDARD.encode(text));
            Certificate::read(&secret)
        };
        for text in [
            "",
            "x",
            "-----BEGIN CERTIFICATE-----\nQUJD\n",
            "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
            "-----END CERTIFICATE-----\n",
            &pem("PRIVATE KEY", "QUJD"),
        ] {
            assert_eq!(with("ca.crt", text), Err(Refused::NoPem("ca.crt", "CERTIFICATE")), "{text}");
        }
        assert_eq!(
            with("tls.key", &pem("CERTIFICATE", "QUJD")),
            Err(Refused::NoPem("tls.key", "PRIVATE KEY"))
        );
        assert_eq!(with("tls.crt", &"\n".repeat(MAX_BYTES + 1)), Err(Refused::TooLong("tls.crt")));
        assert_eq!(Certificate::read(&json!({})), Err(Refused::Missing("ca.crt")));
        assert_eq!(Certificate::read(&json!({"ca.crt": 7})), Err(Refused::Missing("ca.crt")));
        let mut secret = secret("QUJD");
        secret["ca.crt"] = json!("not base64!");
        assert_eq!(Certificate::read(&secret), Err(Refused::NoPem("ca.crt", "CERTIFICATE")));
    }
}
