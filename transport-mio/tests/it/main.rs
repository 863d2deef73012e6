//! Tests of this transport alone. The root of the workspace tests what every transport promises.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod calls;
mod dependencies;
mod descriptors;
mod idle;
mod support;
mod waiting;
