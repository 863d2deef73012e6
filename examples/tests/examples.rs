//! Runs the examples as programs. Each one checks its own work, and prints a line of success.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::process::Command;

/// Runs an example, and returns what it printed.
fn output_of(executable: &str) -> String {
    let output = Command::new(executable).output().unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{executable} ended with {}:\n{printed}{errors}", output.status);
    printed.into_owned()
}

#[test]
fn a_blocking_client_downloads_uploads_and_commits() {
    let printed = output_of(env!("CARGO_BIN_EXE_blocking_std"));
    assert!(printed.contains("the server has them, with the same digest"), "{printed}");
}

#[test]
fn machines_in_memory_resume_a_cut_download() {
    let printed = output_of(env!("CARGO_BIN_EXE_in_memory"));
    assert!(printed.contains("all 100000 bytes have arrived; the digest is right"), "{printed}");
}

#[test]
fn io_uring_downloads_a_blob_if_the_kernel_allows_it() {
    let printed = output_of(env!("CARGO_BIN_EXE_io_uring"));
    // Exactly one of the two.
    assert!(printed.contains("the digest is right") != printed.starts_with("skipped: "), "{printed}");
}

#[test]
fn payload_is_spliced_past_user_space() {
    let printed = output_of(env!("CARGO_BIN_EXE_splice"));
    assert!(printed.contains("8388608 bytes went from the socket to the file in the kernel"), "{printed}");
    assert!(printed.contains("the digest is right"), "{printed}");
}

#[test]
fn a_session_loads_a_blob_on_async_io() {
    let printed = output_of(env!("CARGO_BIN_EXE_async_io"));
    assert!(printed.contains("the digest is right"), "{printed}");
}

#[test]
fn the_cache_is_filled_over_http() {
    let printed = output_of(env!("CARGO_BIN_EXE_cache_over_http"));
    assert!(printed.contains("one download continued at byte 400000"), "{printed}");
}

#[test]
fn both_machines_share_an_event_loop() {
    let printed = output_of(env!("CARGO_BIN_EXE_polling"));
    assert!(printed.contains("received all 8388608 bytes; the digest is right"), "{printed}");
}
