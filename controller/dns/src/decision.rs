//! The decision behind every listener: UDP, TCP, DNS over TLS and over HTTPS.

use std::net::SocketAddr;

/// What is asked, as the client wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The name in wire format without compression, case as written.
    pub name: &'a [u8],
    /// QTYPE.
    pub kind: u16,
    /// QCLASS.
    pub class: u16,
    /// Who asks; `None`: the background refresh ([`crate::Handle::lookup`]).
    pub client: Option<SocketAddr>,
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// It is answered from the cache or by an upstream.
    Forward,
    /// It is answered with this RCODE (3 NXDOMAIN, 5 REFUSED) and asked nobody.
    Refuse(u8),
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It may leave; TTLs above `ttl_max` seconds are lowered to it. What it opens is in the kernel by now.
    Send {
        /// `None`: the TTLs stay as they are.
        ttl_max: Option<u32>,
    },
    /// It must not leave: SERVFAIL instead.
    Hold,
}

/// Decides what is asked and when an answer may leave.
///
/// Both are called on the proxy's thread. `release` is awaited before the answer leaves, and bounded by the caller:
/// past the deadline the client gets SERVFAIL. A `release` that is ready when polled first costs no task and no timer.
pub trait Decision: 'static {
    /// Called for each question before anybody is asked.
    fn ask(&self, question: &Question<'_>) -> Ask;

    /// Called with each message that is about to answer a client, from an upstream or from the cache: a whole DNS
    /// message whose question is checked, with the TTLs the upstream gave it. `age` is how many seconds it has been in
    /// the cache since; the answer leaves with its TTLs lowered by that. Called once for all clients that wait for the
    /// same answer.
    fn release(&self, message: &[u8], age: u32) -> impl Future<Output = Release>;
}
