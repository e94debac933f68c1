//! What is in `deploy/`: the service, and what a cluster gets.

mod door;
mod exporters;
mod service;
