//! The shell around the pure crates: sources, reconcile loop, status, control socket and command line.
