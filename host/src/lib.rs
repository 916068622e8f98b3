//! What runs the store on Linux.

pub mod daemon;
mod engine;
mod fake_domains;
mod guest_ring;
#[cfg(feature = "simulation")]
pub mod sim;
