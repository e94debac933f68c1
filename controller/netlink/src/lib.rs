//! Netlink attributes, batches and sockets for three nfnetlink subsystems: nftables, log and conntrack.
//!
//! | module | what | sockets |
//! |---|---|---|
//! | [`attr`], [`message`], [`batch`] | netlink's own layout: attributes, messages, transactions | no |
//! | [`nft`] | nftables messages and expressions, both ways | no |
//! | [`nflog`] | NFLOG configuration and packets; [`nflog::Reader`] owns a socket | only the reader |
//! | [`ctnetlink`] | entries of conntrack; [`ctnetlink::Conntrack`] owns a socket | only that one |
//! | [`socket`] | the system calls | yes |
//!
//! Everything that reads takes hostile bytes: lengths are checked, nothing panics, unknown attributes are skipped
//! and unknown expressions kept as [`nft::Expr::Unknown`].
#![allow(unsafe_code, reason = "libc calls without a safe form in std; only `socket` holds unsafe blocks")]

pub mod attr;
pub mod batch;
pub mod ctnetlink;
pub mod message;
pub mod nflog;

pub mod nft;
pub mod socket;
