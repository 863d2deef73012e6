//! Files from before the machine's last start.

use crate::util::{blob, bytes, digest, download, finish, open, read};
use blobferry_cache::{Cache, Claim};
use blobferry_protocol::{BlobId, Digest};
use rustix::fs::XattrFlags;
use std::fs::{self, File};
use std::sync::mpsc;

/// Creates a file as an earlier boot would have left it. Returns `false` if the file system has no
/// attributes.
fn left_behind(cache: &Cache, blob: BlobId, bytes: &[u8], digest: Digest) -> bool {
    cache.layout().create_bucket(blob.bucket()).unwrap();
    let path = cache.layout().blob_path(blob);
    fs::write(&path, bytes).unwrap();
    let stamp = [&digest.0[..], &[0xee; 16]].concat();
    rustix::fs::fsetxattr(File::open(path).unwrap(), "user.blobferry", &stamp, XattrFlags::empty()).is_ok()
}

#[test]
fn an_undamaged_file_is_verified_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    if !left_behind(&cache, blob(1), &bytes(), digest(&bytes())) {
        return;
    }
    assert!(cache.get(blob(1)).unwrap().is_none(), "get does not read files");
    let Claim::Hit(cached) = cache.claim(blob(1)).unwrap() else { panic!() };
    assert_eq!(read(&cached), bytes());
    assert!(cache.get(blob(1)).unwrap().is_some());
    assert!(open(dir.path()).get(blob(1)).unwrap().is_some(), "other processes believe it, too");
}

#[test]
fn a_torn_file_is_downloaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut torn = bytes();
    torn[200_000..].fill(0);
    if !left_behind(&cache, blob(1), &torn, digest(&bytes())) {
        return;
    }
    let download = download(&cache, blob(1));
    assert!(!cache.layout().blob_path(blob(1)).exists());
    finish(download);
    assert_eq!(read(&cache.get(blob(1)).unwrap().unwrap()), bytes());
}

#[test]
fn all_claims_of_old_files_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (answer, answers) = mpsc::channel();
    for n in 0..20 {
        let content = if n % 2 == 0 { bytes() } else { b"torn".to_vec() };
        if !left_behind(&cache, blob(n), &content, digest(&bytes())) {
            return;
        }
        for _ in 0..5 {
            let answer = answer.clone();
            cache.claim_with(blob(n), move |claim| answer.send((n, claim.unwrap())).unwrap());
        }
    }
    drop(answer);
    let mut hits = 0;
    for (n, claim) in answers {
        match claim {
            Claim::Hit(cached) => {
                assert_eq!(read(&cached), bytes());
                hits += 1;
            }
            Claim::Download(download) => {
                assert_eq!(n % 2, 1);
                finish(download);
            }
        }
    }
    assert_eq!(hits, 10 * 5 + 10 * 4);
}

#[test]
fn a_file_of_python_without_a_stamp_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.layout().create_bucket(3).unwrap();
    fs::write(cache.layout().blob_path(blob(1)), "python's").unwrap();
    assert_eq!(read(&cache.get(blob(1)).unwrap().unwrap()), b"python's");
}
