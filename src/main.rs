//! The command `blobferry`.

fn main() {}
