//! Random policies and packets that are worth comparing.
//!
//! Everything hangs on the seed: the same seed gives the same policies and packets. The caller prints it, and
//! [`Mix`] says what was generated and refuses to be useless (too few accepts, overlaps or IPv6).
//!
//! ```no_run
//! # use fw_testkit::{r#gen::{self, Rng, World}, topology::LabSpec};
//! # fn main() -> anyhow::Result<()> {
//! let seed = r#gen::seed();
//! let (mut rng, world) = (Rng::new(seed), World::of(&LabSpec::standard("oracle")?)?);
//! let set = r#gen::policy_set(&mut rng, &world, 40, 10)?;
//! let packets = r#gen::packets(&mut rng, &world, &set, 2000)?;
//! let mix = r#gen::Mix::of(&set, &packets);
//! mix.check().map_err(|error| error.context(format!("seed {seed}: {mix}")))?;
//! # Ok(()) }
//! ```

mod edits;
mod manifests;
mod mix;
mod names;
mod packets;
mod policies;
mod rng;
mod world;

pub use edits::{Edit, edit};
pub use manifests::{firewall_manifest, manifests, policy_file_name, policy_manifest, service_manifest};
pub use mix::Mix;
pub use names::{Answers, add_names, names_policy, selectors_of};
pub use packets::{packets, packets_with};
pub use policies::{policy, policy_set, service};
pub use rng::{Rng, seed};
pub use world::World;
