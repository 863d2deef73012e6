//! The examples do what they say: each is run as its reader would run it, and checks itself what it has done.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::process::Command;

/// Runs an example, and returns what it printed.
fn output_of(executable: &str) -> String {
    let output = Command::new(executable).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{executable} ended with {}:\n{said}{complained}", output.status);
    said.into_owned()
}

#[test]
fn a_client_in_one_thread_downloads_uploads_and_commits() {
    let said = output_of(env!("CARGO_BIN_EXE_blocking_std"));
    assert!(said.contains("the server has them, with the same digest"), "{said}");
}

#[test]
fn two_machines_in_memory_resume_a_download_that_was_cut() {
    let said = output_of(env!("CARGO_BIN_EXE_in_memory"));
    assert!(said.contains("all 100000 bytes have arrived; the digest is right"), "{said}");
}

#[test]
fn an_io_uring_downloads_a_blob_where_the_kernel_allows_one() {
    let said = output_of(env!("CARGO_BIN_EXE_io_uring"));
    // One or the other.
    assert!(said.contains("the digest is right") != said.starts_with("skipped: "), "{said}");
}

#[test]
fn payload_is_spliced_past_user_space() {
    let said = output_of(env!("CARGO_BIN_EXE_splice"));
    assert!(said.contains("8388608 bytes went from the socket to the file in the kernel"), "{said}");
    assert!(said.contains("the digest is right"), "{said}");
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
