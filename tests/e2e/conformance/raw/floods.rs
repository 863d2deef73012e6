//! Floods against a server in a process of its own: while several attackers do their worst, another client stores and
//! loads as ever; and when they are gone the server has no more memory than before.

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::thread::scope;

use super::attacks::{self, Target};
use super::client::Client;
use super::decode::Answer;
use super::encode::request;
use crate::support::{Serve, blobferry, bytes};

/// Who does the same at once.
const ATTACKERS: usize = 3;
/// Bytes that a server may have more than after an attack of the same kind before.
const MORE: u64 = 1 << 20;
/// Attacks that may be needed until everything that is kept, for a good reason, is there: buffers and pages that come
/// back, threads, transactions whose client may come back (and no more than 1,000 of them).
const ATTACKS: usize = 12;
/// Bytes that a server may have at any time, whatever is done to it by so many.
const MOST: u64 = 100 << 20;

/// Writes attacks down as tests of a server on each transport.
macro_rules! for_every_attack {
    ($($test:ident: $attack:ident),* $(,)?) => {
        mod raw_tokio { $(
            #[test]
            fn $test() {
                super::is_survived("tokio", super::attacks::$attack);
            }
        )* }
        mod raw_mio { $(
            #[test]
            fn $test() {
                super::is_survived("mio", super::attacks::$attack);
            }
        )* }
    };
}

for_every_attack!(
    ping_flood_is_survived: pings,
    cancel_flood_is_survived: cancels,
    begin_flood_is_survived: begins,
    query_flood_is_survived: questions,
    unread_answers_are_bounded: requests_whose_answers_are_not_read,
    unread_downloads_are_bounded: downloads_that_are_not_read,
    byte_by_byte_uploads_are_survived: uploads_byte_by_byte,
    announced_but_missing_uploads_are_survived: uploads_that_do_not_come,
    lengths_of_4_gib_are_survived: lengths_of_4_gib,
    unfinished_long_frames_cost_only_what_arrived: long_frames_that_do_not_end,
    garbage_is_survived: garbage,
    crowd_of_silent_connections_is_survived: a_crowd_that_says_nothing,
    clients_that_leave_mid_download_are_survived: callers_that_leave_at_once,
);

/// Stores and loads; all of it is done.
fn is_served(client: &mut Client, round: usize) {
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

/// Dropped, it ends the attack, also where the test has failed.
struct Over<'a>(&'a Target);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

fn is_survived(transport: &str, attack: fn(&Target)) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = blobferry(&["serve", "--listen", "127.0.0.1:0", "--transport", transport]);
    // It has much to say about its callers.
    command.arg("--dir").arg(dir.path().join("server")).stderr(Stdio::null());
    let server = Serve::spawn(&mut command);
    let mut other = Client::new(&server.address);
    let blob = other.put_blob([1; 16], &bytes("blob", 3_000_000));
    let oid = other.new_oid();
    other.put([2; 16], oid, 0, &bytes("record", 100_000));
    let mut most = 0;
    for round in 0..ATTACKS {
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
            let over = Over(&target);
            is_served(&mut other, round);
            drop(over);
        });
        while other.counter("connections") > 1 {}
        let now = server.memory();
        println!("{transport}, attack {round}: {} KiB", now >> 10);
        let peak = server.peak_memory();
        assert!(peak < MOST, "{peak} bytes at some time");
        if round > 1 && now < most + MORE {
            return;
        }
        most = most.max(now);
    }
    panic!("{most} bytes, and more after every attack");
}
