//! A server with a limit on the size of its files (`ulimit -f`).

use std::process::Command;

use super::{Ledger, serve_command};
use crate::support::{Home, Serve, bytes, copy_environment};

#[test]
fn file_size_limit_refuses_larger_writes_and_serves_on() {
    let mut home = Home::with(|home| {
        let server = serve_command(&home.join("server"));
        let mut limited = Command::new("sh");
        // In units of 512 bytes: 1 MiB, less than the size at which the database's log is
        // checkpointed.
        limited.args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\""]).arg(server.get_program());
        limited.args(server.get_args());
        copy_environment(&server, &mut limited);
        Serve::spawn(&mut limited)
    });
    let server = home.path("server");
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    let long = home.file("long", bytes("long", 2 << 20));
    let stderr = home.run(&["put", &long]).fails(1);
    assert!(stderr.contains("no room") && stderr.contains("File too large"), "{stderr}");
    assert!(stderr.contains(server.to_str().unwrap()), "{stderr}");

    // Small blobs fill the database's log, and then the database itself.
    let mut refused = 0;
    let mut acknowledged = 0;
    for n in 0..60 {
        let put = home.run(&["put", &home.file(&format!("small-{n}"), bytes("small", 60_000))]);
        if put.code == 0 {
            acknowledged += 1;
            continue;
        }
        refused += 1;
        let stderr = put.fails(1);
        assert!(stderr.contains("no room left: could not ") && stderr.contains("File too large"), "{stderr}");
        assert!(stderr.contains(server.join("store.sqlite").to_str().unwrap()), "{stderr}");
    }
    assert!(refused > 0);
    ledger.verify(&home);
    let there = home.ls("/").iter().filter(|name| name.starts_with("small-")).count();
    assert_eq!(there, acknowledged, "no more and no less than was acknowledged");
    ledger.survives_a_restart(&mut home, &server);
}
