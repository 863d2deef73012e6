//! How the server process starts and stops.

use rustix::process::Signal;

use super::support::{Home, Serve, bytes, run};

#[test]
fn serve_refuses_a_directory_in_use() {
    let home = Home::new();
    let dir = home.path("server");
    let (code, stdout, stderr) = run(&["serve", "--dir", dir.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("is in use by another server"), "{stderr}");
    assert_eq!(home.ls("/"), [""; 0], "the first server still serves");
}

#[test]
fn taken_address_exits_1_and_is_named() {
    let home = Home::new();
    let dir = home.path("second");
    let (code, _, stderr) = run(&["serve", "--dir", dir.to_str().unwrap(), "--listen", &home.server.address]);
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("listening on {}: ", home.server.address)), "{stderr}");
}

#[test]
fn sigterm_and_sigint_stop_cleanly_and_keep_data() {
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
fn stopped_server_exits_5_with_its_address() {
    let mut home = Home::new();
    home.server.end(Signal::TERM);
    let stderr = home.run(&["ls"]).fails(5);
    assert!(stderr.contains(&format!("no server at {}: ", home.server.address)), "{stderr}");
}
