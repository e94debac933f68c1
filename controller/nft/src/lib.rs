//! Applies a typed ruleset to the kernel in one transaction
