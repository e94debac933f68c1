//! A second reader: rustables lists from the kernel what we wrote to it.
