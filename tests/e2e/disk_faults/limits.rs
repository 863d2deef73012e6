//! A server that may not write files as long as it wants (`ulimit -f`).

use std::process::Command;

use super::super::support::{Home, Serve, bytes, copy_environment};
use super::{Ledger, serving};

#[test]
fn file_size_limit_refuses_larger_writes_and_serves_on() {
    let mut home = Home::with(|home| {
        let server = serving(&home.join("server"));
        let mut limited = Command::new("sh");
        // In units of 512 bytes: 1 MiB, less than the database's log may have before it is emptied.
        limited.args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\""]).arg(server.get_program());
        limited.args(server.get_args());
        copy_environment(&server, &mut limited);
        Serve::spawn(&mut limited)
    });
    let server = home.path("server");
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    let long = home.file("long", bytes("long", 2 << 20));
    let said = home.run(&["put", &long]).fails(1);
    assert!(said.contains("no room") && said.contains("File too large"), "{said}");
    assert!(said.contains(server.to_str().unwrap()), "{said}");

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
        let said = put.fails(1);
        assert!(said.contains("no room left: could not ") && said.contains("File too large"), "{said}");
        assert!(said.contains(server.join("store.sqlite").to_str().unwrap()), "{said}");
    }
    assert!(refused > 0);
    ledger.is_right(&home);
    let there = home.ls("/").iter().filter(|name| name.starts_with("small-")).count();
    assert_eq!(there, acknowledged, "no more and no less than was acknowledged");
    ledger.survives_a_restart(&mut home, &server);
}
