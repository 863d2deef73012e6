//! Claims of one process, and of two, under many schedules.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;

use blobferry_protocol::{BlobId, Digest, Oid, Tid};
use bytes::Bytes;

use blobferry_platform::sync::testing::Alone;

use super::Home;
use crate::{Cache, Claim, Download, SmallClaim};
use blobferry_platform::blobdir::integrity;
use blobferry_platform::blobdir::integrity::BootId;
use blobferry_platform::sync::{Arc, Mutex, explore, mpsc, thread};

const BYTES: &[u8] = b"what the blob is";

/// Two blobs of one bucket, and one of another.
const BLOBS: [BlobId; 3] = [
    BlobId { oid: Oid(3), tid: Tid(1) },
    BlobId { oid: Oid(3), tid: Tid(2) },
    BlobId { oid: Oid(4), tid: Tid(1) },
];

/// Processes that use one cache. (The scheduler has only one process: each has in-flight tables of
/// its own.)
#[derive(Clone)]
struct Machine {
    caches: Vec<Cache>,
    /// Which thread downloads, and how often the blob was downloaded.
    downloads: Arc<BTreeMap<BlobId, (Alone, Mutex<u32>)>>,
}

impl Machine {
    fn new(home: &Home, processes: usize) -> Machine {
        let open = |_| home.open();
        let caches = (0..processes).map(open).collect();
        let downloads = BLOBS.iter().map(|blob| (*blob, Default::default())).collect();
        Machine { caches, downloads: Arc::new(downloads) }
    }

    /// Uses the answer to a claim: reads the blob, or downloads it, or gives up.
    fn answered(&self, claim: Claim, gives_up: bool) {
        match claim {
            Claim::Hit(cached) => {
                let mut bytes = Vec::new();
                let mut file = cached.into_file();
                file.rewind().unwrap();
                file.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes, BYTES);
            }
            Claim::Download(download) => {
                let blob = download.blob();
                let (alone, times) = &self.downloads[&blob];
                let download = alone.act(|| if gives_up { download } else { fill(download) });
                if !gives_up {
                    let mut download = download;
                    download.finish(digest()).unwrap();
                    *times.lock() += 1;
                }
            }
        }
    }

    /// Asserts that no claim is in flight, and no bucket is locked.
    fn check(self) {
        for cache in &self.caches {
            assert!(cache.0.is_idle());
        }
        for blob in BLOBS {
            assert!(*self.downloads[&blob].1.lock() <= 1, "downloaded twice");
            assert!(self.caches[0].0.try_lock(blob.bucket()).unwrap().is_some(), "a lock was not released");
            _ = std::fs::remove_file(self.blob_path(blob));
        }
    }

    fn blob_path(&self, blob: BlobId) -> std::path::PathBuf {
        self.caches[0].layout().blob_path(blob)
    }
}

fn digest() -> Digest {
    Digest(*blake3::hash(BYTES).as_bytes())
}

fn fill(mut download: Download) -> Download {
    download.start(0, BYTES.len() as u64).unwrap();
    download.write(BYTES).unwrap();
    download
}

/// Each thread claims its blobs one after the other. `gives_up` selects the threads that fail to
/// download.
fn claim_all(machine: &Machine, threads: &[&[usize]], gives_up: fn(usize) -> bool) {
    let threads: Vec<_> = threads
        .iter()
        .enumerate()
        .map(|(thread, blobs)| {
            let (machine, blobs) = (machine.clone(), blobs.to_vec());
            let cache = machine.caches[thread % machine.caches.len()].clone();
            thread::spawn(move || {
                for blob in blobs {
                    machine.answered(cache.claim(BLOBS[blob]).unwrap(), gives_up(thread));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn all_threads_get_the_blob_that_one_of_them_downloads() {
    let home = Home::new();
    explore(1000, move || {
        let machine = Machine::new(&home, 1);
        claim_all(&machine, &[&[0], &[0], &[0], &[1, 0]], |_| false);
        assert_eq!(*machine.downloads[&BLOBS[0]].1.lock(), 1);
        machine.check();
    });
}

#[test]
fn a_leader_that_gives_up_hands_over() {
    let home = Home::new();
    explore(1000, move || {
        let machine = Machine::new(&home, 1);
        claim_all(&machine, &[&[0], &[0, 1], &[0, 2], &[0]], |thread| thread < 3);
        assert_eq!(*machine.downloads[&BLOBS[0]].1.lock(), 1, "the last one downloads it");
        machine.check();
    });
}

#[test]
fn two_processes_download_a_blob_once() {
    let home = Home::new();
    explore(1000, move || {
        let machine = Machine::new(&home, 2);
        claim_all(&machine, &[&[0], &[0], &[1], &[0, 1]], |_| false);
        assert_eq!(*machine.downloads[&BLOBS[0]].1.lock(), 1);
        assert_eq!(*machine.downloads[&BLOBS[1]].1.lock(), 1);
        machine.check();
    });
}

#[test]
fn a_leader_hands_over_to_another_process() {
    let home = Home::new();
    explore(1000, move || {
        let machine = Machine::new(&home, 2);
        claim_all(&machine, &[&[0], &[0], &[0], &[0]], |thread| thread % 2 == 0);
        assert_eq!(*machine.downloads[&BLOBS[0]].1.lock(), 1);
        machine.check();
    });
}

/// The callers have gone, so their answers are dropped while other answers are given.
#[test]
fn dropped_answers_hand_over_as_well() {
    let home = Home::new();
    explore(1000, move || {
        let machine = Machine::new(&home, 1);
        let claims: Vec<_> = (0..4)
            .map(|_| {
                let (cache, (answer, answered)) = (machine.caches[0].clone(), mpsc::channel());
                let claim = move || cache.claim_with(BLOBS[0], move |claim| _ = answer.send(claim));
                (thread::spawn(claim), answered)
            })
            .collect();
        let (mut threads, mut answers) = (Vec::new(), Vec::new());
        for (at, (thread, answered)) in claims.into_iter().enumerate() {
            threads.push(thread);
            // The other callers have gone; their answers may exist already.
            if at == 3 {
                answers.push(answered);
            }
        }
        for answered in answers {
            machine.answered(answered.recv().unwrap().unwrap(), false);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        machine.check();
    });
}

/// Three threads claim the bytes of a small blob, and one claims its file. The bytes are written
/// later.
#[test]
fn a_small_blob_is_handed_out_before_it_is_written() {
    let home = Home::new();
    explore(500, move || {
        let machine = Machine::new(&home, 2);
        let writers = Arc::new(Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..4)
            .map(|at| {
                let (machine, writers) = (machine.clone(), writers.clone());
                thread::spawn(move || {
                    let cache = &machine.caches[at % 2];
                    if at == 3 {
                        return machine.answered(cache.claim(BLOBS[0]).unwrap(), false);
                    }
                    match cache.claim_small(BLOBS[0]).unwrap() {
                        SmallClaim::Bytes(bytes) => assert_eq!(bytes, BYTES),
                        SmallClaim::File(cached) => machine.answered(Claim::Hit(cached), false),
                        SmallClaim::Download(download) => {
                            let (alone, times) = &machine.downloads[&BLOBS[0]];
                            alone.act(|| *times.lock() += 1);
                            let run = |write: blobferry_platform::os::Job| {
                                writers.lock().push(thread::spawn(write))
                            };
                            download.finish_small(&Bytes::from_static(BYTES), digest(), run).unwrap();
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let writers = std::mem::take(&mut *writers.lock());
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(*machine.downloads[&BLOBS[0]].1.lock(), 1);
        let segments = machine.caches[0].layout().segments_dir().to_owned();
        machine.check();
        _ = std::fs::remove_dir_all(segments);
    });
}

/// The blob is evicted while waiting claims are answered: they begin again, and one of them
/// downloads it again.
#[test]
fn a_blob_that_is_removed_at_once_is_downloaded_again() {
    let home = Home::new();
    explore(100, move || {
        let machine = Machine::new(&home, 2);
        let cache = machine.caches[1].clone();
        let removes = thread::spawn(move || {
            thread::yield_now();
            cache.clear().unwrap();
        });
        let threads: Vec<_> = (0..3)
            .map(|at| {
                let cache = machine.caches[at % 2].clone();
                thread::spawn(move || match cache.claim(BLOBS[0]).unwrap() {
                    Claim::Hit(cached) => assert_eq!(cached.size(), BYTES.len() as u64),
                    Claim::Download(download) => drop(fill(download).finish(digest()).unwrap()),
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        removes.join().unwrap();
        machine.check();
    });
}

/// After a boot files are verified, by one thread that comes and goes.
#[test]
fn claims_of_unverified_files_are_answered() {
    let home = Home::new();
    explore(1000, move || {
        let machine = Machine::new(&home, 1);
        for (blob, bytes) in [(BLOBS[0], BYTES), (BLOBS[1], b"torn"), (BLOBS[2], BYTES)] {
            machine.caches[0].layout().create_bucket(blob.bucket()).unwrap();
            put(&machine.blob_path(blob), bytes);
        }
        claim_all(&machine, &[&[0, 1], &[1, 2], &[2, 0]], |_| false);
        let times = |blob: usize| *machine.downloads[&BLOBS[blob]].1.lock();
        assert_eq!((times(0), times(1), times(2)), (0, 1, 0));
        machine.check();
    });
}

/// Creates a file as an earlier boot would have left it.
fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    let file = std::fs::File::open(path).unwrap();
    integrity::write(&file, digest(), BootId([7; 16])).unwrap();
}
