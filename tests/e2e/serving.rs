//! The server as a process: how it begins, and how it ends.

use rustix::process::Signal;

use super::support::{Home, Serve, bytes, run};

#[test]
fn a_directory_that_another_server_has_open_is_refused() {
    let home = Home::new();
    let dir = home.path("server");
    let (code, stdout, stderr) = run(&["serve", "--dir", dir.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("is in use by another server"), "{stderr}");
    assert_eq!(home.ls("/"), [""; 0], "the first one serves on");
}

#[test]
fn an_address_that_is_taken_is_1_and_says_which() {
    let home = Home::new();
    let dir = home.path("second");
    let (code, _, stderr) = run(&["serve", "--dir", dir.to_str().unwrap(), "--listen", &home.server.address]);
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("listening on {}: ", home.server.address)), "{stderr}");
}

#[test]
fn sigterm_and_sigint_stop_it_with_0_and_all_is_there_when_it_is_started_again() {
    let mut home = Home::new();
    let file = home.file("file", bytes("file", 200_000));
    home.put(&[&file]);
    for signal in [Signal::TERM, Signal::INT] {
        assert_eq!(home.server.end(signal), Some(0), "{signal:?}");
        home.server = Serve::start(&home.path("server"));
        assert_eq!(home.ls("/"), ["file"]);
        let got = home.run(&["get", "file"]).ok();
        assert_eq!(std::fs::read(got.trim_end()).unwrap(), bytes("file", 200_000));
    }
}

#[test]
fn a_client_is_told_when_the_server_is_gone() {
    let mut home = Home::new();
    home.server.end(Signal::TERM);
    let said = home.run(&["ls"]).fails(5);
    assert!(said.contains(&format!("no server at {}: ", home.server.address)), "{said}");
}
