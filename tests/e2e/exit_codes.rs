//! Every kind of failure has its exit code and prints advice.

use super::support::{blobferry, run};

/// An address at which no server can listen.
const NO_SERVER: &str = "127.0.0.1:0";

#[test]
fn invalid_command_line_exits_2() {
    for arguments in [&["put"][..], &["nonsense"], &["get", "a//b"], &["--json"], &["pack", "--before", "1"]]
    {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}: {stderr}");
    }
    let (code, _, stderr) = run(&["put", "src", "--server", NO_SERVER]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("src is a directory: put it with -r"), "{stderr}");
}

#[test]
fn unreadable_file_exits_1_before_connecting() {
    let (code, stdout, stderr) = run(&["put", "/nonexistent", "--server", NO_SERVER]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("blobferry: /nonexistent: No such file"), "{stderr}");
}

#[test]
fn missing_server_exits_5_with_advice() {
    let cache = tempfile::tempdir().unwrap();
    let output = blobferry(&["status"])
        .env("BLOBFERRY_SERVER", NO_SERVER)
        .env("BLOBFERRY_CACHE", cache.path())
        .output();
    let output = output.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(
        stderr.contains("no server at 127.0.0.1:0") && stderr.contains("blobferry serve --dir"),
        "{stderr}"
    );
}

#[test]
fn help_exits_0_and_lists_exit_codes() {
    let (code, stdout, _) = run(&["--help"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("conflict: another transaction changed"), "{stdout}");
    assert!(!stdout.contains("demo-worker") && !stdout.contains("bench-worker"), "hidden");
}
