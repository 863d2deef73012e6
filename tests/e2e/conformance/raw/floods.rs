//! Floods against a server process: another client stores and loads during the attack.
//!
//! After the attack, the server uses no more memory than before.

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::thread::scope;

use super::attacks::{self, Target};
use super::client::Client;
use super::decode::Answer;
use super::encode::request;
use crate::support::{Serve, blobferry, bytes};

/// Number of concurrent attackers.
const ATTACKERS: usize = 3;
/// Growth in bytes that counts as none between two attacks of the same kind.
const MAX_GROWTH: u64 = 1 << 20;
/// Number of attacks until memory must stop growing.
///
/// The server legitimately keeps reusable buffers and pages, threads, and at most 1,000 detached
/// transactions.
const MAX_ROUNDS: usize = 12;
/// Upper limit on the server's resident memory during an attack, in bytes.
const MAX_PEAK: u64 = 100 << 20;

/// Expands attacks to tests of a server on each transport.
macro_rules! for_every_attack {
    ($($test:ident: $attack:ident),* $(,)?) => {
        mod raw_tokio { $(
            #[test]
            fn $test() {
                super::survives("tokio", super::attacks::$attack);
            }
        )* }
        mod raw_mio { $(
            #[test]
            fn $test() {
                super::survives("mio", super::attacks::$attack);
            }
        )* }
    };
}

for_every_attack!(
    ping_flood_is_survived: pings,
    cancel_flood_is_survived: cancels,
    begin_flood_is_survived: begins,
    query_flood_is_survived: queries,
    unread_answers_are_bounded: unread_answers,
    unread_downloads_are_bounded: unread_downloads,
    byte_by_byte_uploads_are_survived: uploads_byte_by_byte,
    announced_but_missing_uploads_are_survived: missing_uploads,
    lengths_of_4_gib_are_survived: lengths_of_4_gib,
    unfinished_long_frames_cost_only_what_arrived: unfinished_long_frames,
    garbage_is_survived: garbage,
    crowd_of_silent_connections_is_survived: silent_crowd,
    clients_that_leave_mid_download_are_survived: disconnects_mid_download,
);

/// Stores and loads records and blobs; every call must succeed.
fn store_and_load(client: &mut Client, round: usize) {
    let whole = bytes("blob", 300_000);
    for n in 0..3 {
        let name = |kind: u8| [kind, round as u8, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let oid = client.new_oid();
        let tid = client.put(name(1), oid, 0, b"served");
        let Ok(Answer::Revision(loaded)) = client.call(request::load(oid)) else { panic!("no revision") };
        assert_eq!((loaded.tid, &loaded.data[..]), (tid, &b"served"[..]));
        let blob = client.put_blob(name(2), &whole);
        assert!(client.download(blob, 0, u64::MAX).unwrap().bytes == whole);
    }
}

/// Ends the attack when dropped, also if the test fails.
struct EndOnDrop<'a>(&'a Target);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// Attacks a server repeatedly until its memory no longer grows.
fn survives(transport: &str, attack: fn(&Target)) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = blobferry(&["serve", "--listen", "127.0.0.1:0", "--transport", transport]);
    // The server logs much about the attackers.
    command.arg("--dir").arg(dir.path().join("server")).stderr(Stdio::null());
    let server = Serve::spawn(&mut command);
    let mut other = Client::new(&server.address);
    let blob = other.put_blob([1; 16], &bytes("blob", 3_000_000));
    let oid = other.new_oid();
    other.put([2; 16], oid, 0, &bytes("record", 100_000));
    let mut most = 0;
    for round in 0..MAX_ROUNDS {
        let target = Target::new(&server.address, blob, oid);
        scope(|scope| {
            for _ in 0..ATTACKERS {
                scope.spawn(|| {
                    attack(&target);
                    while !target.is_over() {
                        attack(&target);
                    }
                });
            }
            let over = EndOnDrop(&target);
            store_and_load(&mut other, round);
            drop(over);
        });
        while other.counter("connections") > 1 {}
        let now = server.memory();
        println!("{transport}, attack {round}: {} KiB", now >> 10);
        let peak = server.peak_memory();
        assert!(peak < MAX_PEAK, "peak memory of {peak} bytes");
        if round > 1 && now < most + MAX_GROWTH {
            return;
        }
        most = most.max(now);
    }
    panic!("{most} bytes, growing after every attack");
}
