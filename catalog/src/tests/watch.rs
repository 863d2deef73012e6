//! Watching a name: invalidations report exactly the changes of the name.

use super::*;

async fn watch(memory: &Memory, name: &str) -> Watch {
    Watch::new(memory, path(name)).await.unwrap()
}

/// Acts, and passes the commit to the watch with the objects that it changed; returns whether the
/// name changed.
async fn seen(memory: &Memory, watch: &mut Watch, acts: &[Act]) -> bool {
    let tid = act(memory, acts).await.unwrap();
    let oids = memory.changed_by(tid);
    watch.update(memory, tid, Some(&oids)).await.unwrap()
}

#[test]
fn watch_reports_new_revised_and_removed() {
    run(async {
        let memory = Memory::default();
        let mut watch = watch(&memory, "d/f").await;
        assert_eq!(watch.file(), None);
        assert!(seen(&memory, &mut watch, &put(&["d/f"])).await);
        let first = watch.file().unwrap();
        assert!(seen(&memory, &mut watch, &put(&["d/f"])).await);
        let second = watch.file().unwrap();
        assert!(second.oid == first.oid && second.tid > first.tid);
        assert!(!seen(&memory, &mut watch, &put(&["d/g"])).await, "another name");
        assert!(seen(&memory, &mut watch, &remove("d")).await);
        assert_eq!(watch.file(), None);
        assert!(!seen(&memory, &mut watch, &put(&["d"])).await, "a file in the directory's place");
    });
}

#[test]
fn watch_ignores_unrelated_and_old_invalidations() {
    run(async {
        let memory = Memory::default();
        let tid = act(&memory, &put(&["d/f", "e/g"])).await.unwrap();
        let watched = watch(&memory, "d/f").await;
        assert!(!watched.may_change(tid, None), "it was resolved as of this transaction");
        let later = Tid(tid.0 + 1);
        assert!(watched.may_change(later, None));
        let Ok(Some(Entry::File { oid })) = View::now(&memory).find(&path("e/g")).await else { panic!() };
        assert!(!watched.may_change(later, Some(&[oid])));
        assert!(watched.may_change(later, Some(&[oid, watched.file().unwrap().oid])));
    });
}

#[test]
fn watch_refuses_a_directory() {
    run(async {
        let memory = Memory::default();
        act(&memory, &put(&["d/f"])).await.unwrap();
        let error = Watch::new(&memory, path("d")).await.unwrap_err();
        assert!(matches!(error, CatalogError::IsADirectory { .. }));
    });
}
