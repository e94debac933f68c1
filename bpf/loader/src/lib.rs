//! Loads, attaches, pins and adopts the eBPF programs; reads and writes their maps.
