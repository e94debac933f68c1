//! Names: real DNS servers, the real binary, real packets, in every mode of the data path.

mod answers;
mod basics;
mod corpus;
mod drift;
mod early;
mod encrypted;
pub(crate) mod field;
mod interception;
mod kills;
pub(crate) mod knocker;
mod mask;
mod oracle;
mod refusals;
mod removal;
mod restart;
mod rotation;
mod spoofing;
pub(crate) mod steps;
mod storm;
