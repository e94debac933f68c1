//! Names that end up in the kernel and therefore have the kernel's limits.

use std::fmt;
use std::str::FromStr;

/// Name of a network interface as the kernel accepts it.
///
/// `dev_valid_name()` in net/core/dev.c: 1 to 15 bytes, not `.` or `..`, no `/`, `:` or white space. We also
/// refuse `"`, `*` and bytes outside printable ASCII, because nft would need quoting for them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

/// Why a text is not a usable name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or longer than the kernel's IFNAMSIZ - 1.
    #[error("interface name {0:?} must have 1 to 15 bytes")]
    Length(String),
    /// Contains something the kernel or nft does not take.
    #[error("interface name {0:?} may hold only letters, digits, '-', '_', '.', '@' and '+'")]
    Character(String),
}

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > 15 {
            return Err(NameError::Length(text.to_owned()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@+".contains(c);
        if text == "." || text == ".." || !text.chars().all(allowed) {
            return Err(NameError::Character(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
