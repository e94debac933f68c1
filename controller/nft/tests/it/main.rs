//! The real kernel, in network namespaces of the test's own. Needs root, `ip` and `nft`.

mod apply;
mod sample;
