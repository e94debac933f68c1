//! What operators see: a real Prometheus that scrapes the lab, and dashboards with its answers drawn as a picture.
//!
//! * [`prometheus`]: the server in a namespace, and its answers.
//! * [`dashboard`]: Grafana's JSON, as far as it says what is asked and shown.
//! * [`picture`]: both together as SVG.
//! * [`promtool`]: what Prometheus' own tool thinks of metrics.

pub mod dashboard;
pub mod picture;
pub mod prometheus;
mod promtool;

pub use dashboard::{Dashboard, Kind, Panel, Query};
pub use prometheus::{Prometheus, Series};
pub use promtool::promtool;
