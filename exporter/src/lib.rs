//! `nftables-exporter`: what nftables counts, for Prometheus.
//!
//! | module | what | input and output |
//! |---|---|---|
//! | [`labels`] | matches of rules as label text | none |
//! | [`series`] | label sets with their values, equal ones summed | none |
//! | [`exposition`] | Prometheus' text format: checks that of others | none |
//! | [`families`] | the families of a scrape: names, help, and the text piece by piece | none |
//! | [`ruleset`] | reads nftables, its rules by two threads | netlink |
//! | [`sources`] | asks the controller and the droptailer client for theirs | unix sockets |
//! | [`process`] | this process | `/proc/self` |
//! | [`scrape`] | one answer from all of them; scrapes at one time share a read | all of the above |
//! | [`config`], [`server`] | the file, the flags; HTTP | files, TCP |

pub mod config;
pub mod exposition;
pub mod families;
pub mod labels;
pub mod process;
mod rules;
pub mod ruleset;
pub mod scrape;
pub mod series;
pub mod server;
pub mod sources;
