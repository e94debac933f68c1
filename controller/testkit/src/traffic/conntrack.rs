//! Connections that a namespace's kernel remembers, through the `conntrack` program.

use anyhow::Result;

use crate::Netns;

/// Forgets all connections, so that the next packet of each is NEW again.
pub fn flush(ns: &Netns) -> Result<()> {
    ns.output("conntrack", &["-F"]).map(drop)
}

/// The connections, one line each as `conntrack -L -o extended` prints them.
pub fn list(ns: &Netns) -> Result<Vec<String>> {
    Ok(ns.output("conntrack", &["-L", "-o", "extended"])?.lines().map(str::to_owned).collect())
}

/// How many connections there are.
pub fn count(ns: &Netns) -> Result<u64> {
    Ok(ns.output("conntrack", &["-C"])?.trim().parse()?)
}
