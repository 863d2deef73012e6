//! What is special to this transport. What every transport promises is tested at the root of the workspace.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod calls;
mod dependencies;
mod descriptors;
mod idle;
mod support;
mod waiting;
