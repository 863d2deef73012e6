//! Every way to end has its exit code, and says what to do next.

use super::support::{blobferry, run};

/// Nobody can ever listen there.
const NOBODY: &str = "127.0.0.1:0";

#[test]
fn a_command_line_that_can_not_be_meant_is_2() {
    for arguments in [&["put"][..], &["nonsense"], &["get", "a//b"], &["--json"], &["pack", "--before", "1"]]
    {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}: {stderr}");
    }
    let (code, _, stderr) = run(&["put", "src", "--server", NOBODY]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("src is a directory: put it with -r"), "{stderr}");
}

#[test]
fn a_file_that_can_not_be_read_is_1_before_a_server_is_asked() {
    let (code, stdout, stderr) = run(&["put", "/nonexistent", "--server", NOBODY]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("blobferry: /nonexistent: No such file"), "{stderr}");
}

#[test]
fn no_server_is_5_and_says_how_to_start_one() {
    let cache = tempfile::tempdir().unwrap();
    let output =
        blobferry(&["status"]).env("BLOBFERRY_SERVER", NOBODY).env("BLOBFERRY_CACHE", cache.path()).output();
    let output = output.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(
        stderr.contains("no server at 127.0.0.1:0") && stderr.contains("blobferry serve --dir"),
        "{stderr}"
    );
}

#[test]
fn help_is_0_and_tells_the_exit_codes() {
    let (code, stdout, _) = run(&["--help"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("conflict: somebody else changed"), "{stdout}");
    assert!(!stdout.contains("demo-worker") && !stdout.contains("bench-worker"), "hidden");
}
