//! What runs the store on Linux.

pub mod daemon;
