//! NFLOG: packets that rules log, as `log group N` sends them (include/uapi/linux/netfilter/nfnetlink_log.h).

mod packet;
mod reader;

pub use packet::{Config, Packet};
pub use reader::{Loss, NflogError, Options, Reader};
