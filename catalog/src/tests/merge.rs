//! Two writers at once: which edits merge, and which conflict.

use super::*;

#[test]
fn writers_of_one_directory_merge() {
    run(async {
        let memory = Memory::default();
        let first = prepare(&memory, &put(&["a", "d/x"])).await.unwrap();
        let second = prepare(&memory, &put(&["b", "d/y", "d/e/z"])).await.unwrap();
        finish(&memory, first).await.unwrap();
        finish(&memory, second).await.unwrap();
        assert_eq!(files(&memory).await, names(&["a", "b", "d/x", "d/y", "d/e/z"]));
        assert_eq!(memory.attempts.get(), 3, "one conflict");
    });
}

#[test]
fn writer_merges_after_several_faster_writers() {
    run(async {
        let memory = Memory::default();
        act(&memory, &put(&["0"])).await.unwrap();
        for i in 0..5 {
            memory.before_commit.borrow_mut().push(Box::new(move |memory| {
                run_nested(act(memory, &put(&[&format!("other{i}"), &format!("d/{i}")]))).unwrap();
            }));
        }
        act(&memory, &put(&["mine", "d/mine"])).await.unwrap();
        assert_eq!(files(&memory).await.len(), 1 + 5 * 2 + 2);
        assert_eq!(memory.attempts.get(), 1 + 5 + 6, "five conflicts");
    });
}

/// Runs a future on [`Memory`]. Such futures never wait, so one poll completes them.
fn run_nested<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => panic!("memory never waits"),
    }
}

#[test]
fn writer_merges_with_a_split_of_its_leaf() {
    run(async {
        let memory = Memory::default();
        let some: Vec<String> = (0..LEAF_NAMES).map(|i| format!("{i}")).collect();
        act(&memory, &some.iter().map(|name| Act::Put(name.clone())).collect::<Vec<_>>()).await.unwrap();
        let slow = prepare(&memory, &put(&["slow"])).await.unwrap();
        let removing = prepare(&memory, &remove("7")).await.unwrap();
        act(&memory, &put(&["one too many"])).await.unwrap();
        finish(&memory, slow).await.unwrap();
        finish(&memory, removing).await.unwrap();
        let found = files(&memory).await;
        assert_eq!(found.len(), LEAF_NAMES + 1);
        assert!(found.contains("slow") && found.contains("one too many") && !found.contains("7"));
    });
}

#[test]
fn two_splits_of_one_leaf_merge_without_leftovers() {
    run(async {
        let memory = Memory::default();
        let some: Vec<String> = (0..LEAF_NAMES).map(|i| format!("{i}")).collect();
        act(&memory, &some.iter().map(|name| Act::Put(name.clone())).collect::<Vec<_>>()).await.unwrap();
        let slow = prepare(&memory, &put(&["x", "new/y"])).await.unwrap();
        act(&memory, &put(&["z", "new/z"])).await.unwrap();
        finish(&memory, slow).await.unwrap();
        assert_eq!(files(&memory).await.len(), LEAF_NAMES + 4);
    });
}

#[test]
fn adding_one_name_twice_conflicts_with_both_revisions() {
    run(async {
        let memory = Memory::default();
        let slow = prepare(&memory, &put(&["d/f", "g"])).await.unwrap();
        let committed = act(&memory, &put(&["d/f"])).await.unwrap();
        let found = conflict(finish(&memory, slow).await);
        assert_eq!(found, [NameConflict { path: path("d/f"), base: Tid::ZERO, committed }]);
        assert_eq!(files(&memory).await, names(&["d/f"]), "nothing of the second is there");
    });
}

#[test]
fn revising_one_file_twice_conflicts_with_both_revisions() {
    run(async {
        let memory = Memory::default();
        let base = act(&memory, &put(&["f"])).await.unwrap();
        let slow = prepare(&memory, &put(&["f", "g"])).await.unwrap();
        let committed = act(&memory, &put(&["f"])).await.unwrap();
        let found = conflict(finish(&memory, slow).await);
        assert_eq!(found, [NameConflict { path: path("f"), base, committed }]);
        assert_eq!(memory.attempts.get(), 3, "it is not tried again");
    });
}

#[test]
fn removing_a_changed_or_removed_name_conflicts() {
    run(async {
        let memory = Memory::default();
        let base = act(&memory, &put(&["f", "d/g"])).await.unwrap();
        let slow = prepare(&memory, &remove("f")).await.unwrap();
        let committed = act(&memory, &put(&["f"])).await.unwrap();
        assert_eq!(
            conflict(finish(&memory, slow).await),
            [NameConflict { path: path("f"), base, committed }]
        );

        let slow = prepare(&memory, &remove("d/g")).await.unwrap();
        act(&memory, &remove("d")).await.unwrap();
        let gone = NameConflict { path: path("d/g"), base, committed: Tid::ZERO };
        assert!(gone.to_string().contains("was removed meanwhile"));
        assert_eq!(conflict(finish(&memory, slow).await), [gone]);
    });
}

#[test]
fn directory_with_an_unseen_file_is_not_removed() {
    run(async {
        let memory = Memory::default();
        act(&memory, &put(&["d/e/f"])).await.unwrap();
        let slow = prepare(&memory, &remove("d")).await.unwrap();
        let committed = act(&memory, &put(&["d/e/new"])).await.unwrap();
        let found = conflict(finish(&memory, slow).await);
        assert_eq!(found, [NameConflict { path: path("d/e/new"), base: Tid::ZERO, committed }]);
        assert_eq!(files(&memory).await, names(&["d/e/f", "d/e/new"]));
    });
}

#[test]
fn new_file_makes_a_removed_directory_again() {
    run(async {
        let memory = Memory::default();
        act(&memory, &put(&["d/f"])).await.unwrap();
        let slow = prepare(&memory, &put(&["d/new"])).await.unwrap();
        act(&memory, &remove("d")).await.unwrap();
        finish(&memory, slow).await.unwrap();
        assert_eq!(files(&memory).await, names(&["d/new"]));
    });
}

#[test]
fn file_and_directory_of_one_name_conflict() {
    run(async {
        let memory = Memory::default();
        let (file, directory) = (put(&["x"]), put(&["x/y"]));
        let slow = prepare(&memory, &directory).await.unwrap();
        act(&memory, &file).await.unwrap();
        assert_eq!(conflict(finish(&memory, slow).await)[0].path, path("x"));
        let Err(error) = prepare(&memory, &directory).await else { panic!("x is a file") };
        assert_eq!(error.to_string(), "`x` is a file, not a directory");
    });
}
