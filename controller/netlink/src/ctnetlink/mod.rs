//! Connection tracking: its entries (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

mod entry;
mod table;

pub use entry::{Entry, TcpState, Transport, Tuple, status};
pub use table::{Conntrack, ConntrackError, Direction};
