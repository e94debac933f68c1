//! The proxy against real servers, and against a scripted one that misbehaves. Everything runs on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::cast_possible_truncation, reason = "messages made here are short")]
#![allow(clippy::print_stdout, reason = "the seed of random tests")]

mod bounds;
mod bursts;
mod cache;
mod encrypted;
mod forwarding;
mod hold;
mod hostile;
mod message;
mod running;
mod servers;
mod streams;
mod upstream;
mod upstreams;
