//! Network namespaces, traffic and generators for tests, benches and the lab.
//!
//! Everything happens in namespaces that this crate makes and removes; the host's own interfaces, rules and
//! sysctls are never touched. Root is needed, and `ip`, `nft`, `conntrack`, `knotd`, `named`,
//! `unbound` and `dnsmasq` where their helpers are used.
//!
//! * [`Netns`]: a namespace; run closures and programs in it. [`Process`]: a program that ends with its guard.
//! * [`WorkDir`] and [`BpfMount`]: a directory and a bpffs that go with their guard.
//! * [`topology`]: the standard lab, cluster side, firewall, internet side.
//! * [`traffic`]: probes, servers, meters, crafted packets and a sniffer.
//! * [`cluster`]: a real API server, kubectl, a proxy that makes faults between it and its clients, and a node with logs.
//! * [`dns`]: authoritative servers, resolvers, a scripted server and clients.
//! * `gen` (written `r#gen`, the word is reserved): random policies and packets, and policies as manifests.
//! * [`monitoring`]: a real Prometheus, and dashboards with its answers drawn.
//! * [`figures`]: the table that benchmarks print.
//! * [`nft`]: what the `nft` program says of a namespace, as an independent reader.

#![allow(
    unsafe_code,
    reason = "setns between fork and exec, signal handlers and packet sockets are not in std"
)]

mod cleanup;
pub mod cluster;
pub mod dns;
pub mod figures;
pub mod r#gen;
pub mod monitoring;
mod netns;
pub mod nft;
mod process;
pub mod topology;
pub mod traffic;
mod workdir;

pub use cleanup::on_signal;
pub use netns::Netns;
pub use process::Process;
pub use workdir::{BpfMount, WorkDir};
