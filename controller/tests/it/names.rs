//! Names: real DNS servers, the real binary, real packets, in every mode of the data path.

mod basics;
mod encrypted;
mod field;
