//! How blobferry is tried as a whole, beyond what tests of single parts can show.

pub mod simulator;
