//! Examines what is left after a fault: recovers it, and compares it with the ledger.

mod cache;
mod server;

pub(crate) use self::cache::examine_cache;
pub(crate) use self::server::examine_server;

#[cfg(test)]
mod tests {
    //! Tests that the examination finds what it has to find.

    use blobferry_platform::blobdir::Layout;
    use blobferry_platform::sync::Mutex;
    use blobferry_protocol::{BlobId, Oid, Tid, TxnId};
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::ledger::{Change, Ledger, Statement};
    use crate::workload::{Role, cache, prepare, server};

    /// Makes a sound store or cache.
    fn sound(role: Role, dir: &Path) -> Ledger {
        let statements = Mutex::new(Vec::new());
        prepare(role, dir, &|statement| statements.lock().push(statement)).unwrap();
        let mut ledger = Ledger::default();
        let statements = std::mem::take(&mut *statements.lock());
        statements.into_iter().for_each(|statement| ledger.record(statement).unwrap());
        ledger
    }

    fn first_file(dir: &Path) -> (BlobId, std::path::PathBuf) {
        Layout::open_existing(dir).unwrap().blobs().next().unwrap().unwrap()
    }

    fn finds(ledger: &mut Ledger, dir: &Path, what: &str) {
        let found = examine_server(dir, ledger).unwrap_err().0;
        assert!(found.contains(what), "{found}");
    }

    #[test]
    fn sound_store_passes_repeated_examinations() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = sound(Role::Server, dir.path());
        for _ in 0..3 {
            examine_server(dir.path(), &mut ledger).unwrap();
        }
    }

    #[test]
    fn a_lost_commit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = sound(Role::Server, dir.path());
        let (txn, tid) = (TxnId([9; 16]), Tid(ledger.last_tid().0 + 1));
        let changes = vec![Change { oid: Oid(5), record: Some(10), blob: None }];
        ledger.record(Statement::Intends { txn, changes }).unwrap();
        ledger.record(Statement::Committed { txn, tid }).unwrap();
        finds(&mut ledger, dir.path(), "is lost");
    }

    #[test]
    fn refused_and_unintended_commits_are_found() {
        let dir = tempfile::tempdir().unwrap();
        sound(Role::Server, dir.path());
        finds(&mut Ledger::default(), dir.path(), "these were never committed");
    }

    #[test]
    fn torn_and_missing_blobs_are_found() {
        for (tear, what) in [(true, "is torn"), (false, "cannot be read")] {
            let dir = tempfile::tempdir().unwrap();
            let mut ledger = sound(Role::Server, dir.path());
            let (_, path) = first_file(&server(dir.path()).join("blobs"));
            let size = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
            fs::remove_file(&path).unwrap();
            if tear {
                fs::write(&path, vec![0; size]).unwrap();
            }
            finds(&mut ledger, dir.path(), what);
        }
    }

    #[test]
    fn torn_and_missing_cached_blobs_are_found() {
        for (tear, what) in [(true, "is torn in the cache"), (false, "is not any more")] {
            let dir = tempfile::tempdir().unwrap();
            let ledger = sound(Role::Client, dir.path());
            examine_cache(dir.path(), &ledger).unwrap();
            let (blob, path) = first_file(&cache(dir.path()));
            assert!(ledger.cached().contains(&blob));
            fs::remove_file(&path).unwrap();
            if tear {
                fs::write(&path, "torn").unwrap();
            }
            let found = examine_cache(dir.path(), &ledger).unwrap_err().0;
            assert!(found.contains(what), "{found}");
        }
    }
}
