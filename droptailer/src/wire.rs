//! What clients and servers say to each other: `droptailer/proto/droptailer.proto`, generated.

#[rustfmt::skip]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_imports,
    reason = "made by prost and tonic; the proto file says what it is"
)]
mod generated;

pub use generated::droptailer_client::DroptailerClient;
pub use generated::droptailer_server::{Droptailer, DroptailerServer};
pub use generated::{Ack, Batch, Drop, Void};

/// Bytes of one record on the wire; a larger one is refused. A kernel's record has about 600.
pub const MOST_RECORD_BYTES: usize = 16 << 10;

/// Bytes of one batch on the wire; a larger one ends the stream.
pub const MOST_BATCH_BYTES: usize = 256 << 10;

/// Bytes of a session's name.
pub const SESSION_BYTES: usize = 16;

/// The name in a server's certificate.
pub const SERVER_NAME: &str = "droptailer";

/// Where servers listen.
pub const PORT: u16 = 50051;
