//! Dropped and accepted packets as records: NFLOG in, compatible lines out
