//! The catalog as a whole, on objects in memory: names that are put are found, and damage is
//! reported.

mod merge;
mod model;
mod watch;

use std::collections::BTreeSet;

use blobferry_protocol::{Oid, RequestError, Tid};

use crate::memory::Memory;
use crate::record::LEAF_NAMES;
use crate::*;

type CatalogError = crate::CatalogError<RequestError>;

fn path(text: &str) -> NamePath {
    text.parse().unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// One action of a user.
#[derive(Clone, Debug)]
enum Act {
    Put(String),
    Remove(String),
}

/// An edit that is not committed yet.
struct Pending<'a> {
    view: View<'a, Memory>,
    edit: Edit,
    /// The files that it stores, with their base revisions.
    stores: Vec<(Oid, Tid)>,
}

async fn prepare<'a>(memory: &'a Memory, acts: &[Act]) -> Result<Pending<'a>, CatalogError> {
    let view = View::now(memory);
    let mut edit = Edit::default();
    let mut stores = Vec::new();
    for act in acts {
        match act {
            Act::Put(text) => match view.find(&path(text)).await? {
                None => {
                    let oid = memory.new_oids(1).await?[0];
                    edit.add_file(&path(text), oid);
                    stores.push((oid, Tid::ZERO));
                }
                Some(Entry::File { oid }) => {
                    let base = view.file(oid).await?.tid;
                    edit.revise_file(&path(text), oid, base);
                    stores.push((oid, base));
                }
                Some(Entry::Directory { .. }) => return Err(CatalogError::IsADirectory { path: path(text) }),
            },
            Act::Remove(text) => match view.get(&text.parse().unwrap()).await? {
                Entry::File { oid } => edit.remove_file(&path(text), oid, view.file(oid).await?.tid),
                Entry::Directory { oid } => {
                    let mut files = Vec::new();
                    for (path, oid) in view.files_below(&path(text), oid).await? {
                        files.push((path, oid, view.file(oid).await?.tid));
                    }
                    edit.remove_directory(&path(text), oid, files);
                }
            },
        }
    }
    Ok(Pending { view, edit, stores })
}

async fn finish(memory: &Memory, pending: Pending<'_>) -> Result<Tid, CatalogError> {
    let source = tempfile::NamedTempFile::new().unwrap();
    let mut txn = memory.begin();
    for (oid, base) in pending.stores {
        let data = Record::File(FileRecord { executable: false, modified: 0 }).encode();
        txn.store_file(oid, base, data, source.path(), |_| ()).await?;
    }
    commit(pending.view, &mut txn, &pending.edit).await
}

async fn act(memory: &Memory, acts: &[Act]) -> Result<Tid, CatalogError> {
    finish(memory, prepare(memory, acts).await?).await
}

fn put(names: &[&str]) -> Vec<Act> {
    names.iter().map(|name| Act::Put((*name).into())).collect()
}

fn remove(name: &str) -> Vec<Act> {
    vec![Act::Remove(name.into())]
}

/// Returns every file's path, and checks that the objects that exist are exactly the reachable
/// ones.
async fn files(memory: &Memory) -> BTreeSet<String> {
    let view = View::now(memory);
    let mut reached = BTreeSet::new();
    let mut todo = vec![Oid::ROOT];
    while let Some(oid) = todo.pop() {
        let Some(node) = view.node(oid).await.unwrap() else { continue };
        assert!(reached.insert(oid), "object {oid} is reached twice");
        match &node.directory {
            Directory::Branch(children) => todo.extend(children),
            Directory::Leaf(entries) => {
                assert!(entries.len() <= LEAF_NAMES);
                for entry in entries.values() {
                    match *entry {
                        Entry::File { oid } => assert!(reached.insert(oid), "file {oid} is reached twice"),
                        Entry::Directory { oid } => todo.push(oid),
                    }
                }
            }
        }
    }
    assert_eq!(memory.live(), reached.into_iter().collect::<Vec<_>>(), "objects that exist and are reached");
    let files = view.files_below(&NamePath::ROOT, Oid::ROOT).await.unwrap();
    files.into_iter().map(|(path, _)| path.to_string()).collect()
}

fn names(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|name| (*name).to_owned()).collect()
}

fn conflict(result: Result<Tid, CatalogError>) -> Vec<NameConflict> {
    match result {
        Err(CatalogError::Conflict(conflicts)) => conflicts,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

#[test]
fn put_names_are_found_and_removed_names_are_not() {
    run(async {
        let memory = Memory::default();
        assert!(files(&memory).await.is_empty());
        let first = act(&memory, &put(&["a", "d/e/f", "d/g"])).await.unwrap();
        assert_eq!(files(&memory).await, names(&["a", "d/e/f", "d/g"]));
        act(&memory, &remove("d/g")).await.unwrap();
        act(&memory, &remove("a")).await.unwrap();
        assert_eq!(files(&memory).await, names(&["d/e/f"]));
        act(&memory, &remove("d")).await.unwrap();
        assert_eq!(files(&memory).await, names(&[]));

        let before = View::at(&memory, first).unwrap();
        assert!(matches!(before.find(&path("d/g")).await, Ok(Some(Entry::File { .. }))));
        let error = View::now(&memory).get(&"d/g".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("there is no `d/g`"), "{error}");
        assert!(matches!(View::at(&memory, Tid::MAX), Err(CatalogError::NotYet { .. })));
    });
}

#[test]
fn new_file_revision_does_not_change_its_directory() {
    run(async {
        let memory = Memory::default();
        let first = act(&memory, &put(&["d/f"])).await.unwrap();
        let second = act(&memory, &put(&["d/f"])).await.unwrap();
        let view = View::now(&memory);
        assert_eq!(view.node(Oid::ROOT).await.unwrap().unwrap().tid, first);
        assert_eq!(view.get_file(&"d/f".parse().unwrap()).await.unwrap().tid, second);
    });
}

#[test]
fn large_directory_is_many_small_records() {
    run(async {
        let memory = Memory::default();
        let all: Vec<String> = (0..5000).map(|i| format!("d/{i:05}")).collect();
        for part in all.chunks(1700) {
            act(&memory, &part.iter().map(|name| Act::Put(name.clone())).collect::<Vec<_>>()).await.unwrap();
        }
        assert_eq!(files(&memory).await, all.iter().cloned().collect());
        let view = View::now(&memory);
        assert!(view.find(&path("d/04999")).await.unwrap().is_some());
        assert!(view.find(&path("d/05000")).await.unwrap().is_none());
        let Ok(Some(Entry::Directory { oid })) = view.find(&path("d")).await else { panic!("d is gone") };
        let listed: Vec<String> =
            view.list(oid).await.unwrap().keys().map(|name| format!("d/{name}")).collect();
        assert_eq!(listed, all);
        act(&memory, &remove("d")).await.unwrap();
        assert_eq!(memory.live(), [Oid::ROOT]);
    });
}

#[test]
fn damaged_record_names_its_object() {
    run(async {
        let memory = Memory::default();
        act(&memory, &put(&["f"])).await.unwrap();
        let Ok(Some(Entry::File { oid })) = View::now(&memory).find(&path("f")).await else { panic!("no f") };
        memory.damage(oid, b"\x01nonsense");
        let error = View::now(&memory).file(oid).await.unwrap_err();
        assert!(matches!(error, CatalogError::Damaged { oid: found, .. } if found == oid), "{error}");
        memory.damage(Oid::ROOT, b"\x02");
        let error = View::now(&memory).find(&path("f")).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("newer blobferry"), "{cause}");
    });
}

#[test]
fn cyclic_trie_is_damage() {
    run(async {
        let memory = Memory::default();
        act(&memory, &put(&["f"])).await.unwrap();
        memory.damage(Oid::ROOT, &Record::Directory(Directory::Branch([Oid::ROOT; 16])).encode());
        let view = View::now(&memory);
        assert!(matches!(view.find(&path("f")).await, Err(CatalogError::Damaged { .. })));
        assert!(matches!(view.list(Oid::ROOT).await, Err(CatalogError::Damaged { .. })));
        assert!(view.files_below(&NamePath::ROOT, Oid::ROOT).await.is_err());
    });
}

#[test]
fn packed_away_differs_from_damaged() {
    run(async {
        let memory = Memory::default();
        let first = act(&memory, &put(&["d/a"])).await.unwrap();
        act(&memory, &put(&["d/b"])).await.unwrap();
        memory.pack();
        let then = View::at(&memory, first).unwrap();
        assert!(matches!(then.find(&path("d/a")).await, Err(CatalogError::PackedAway { .. })));
        assert!(View::now(&memory).find(&path("d/a")).await.unwrap().is_some());
        assert!(matches!(View::now(&memory).missing(Oid(5)), CatalogError::Missing { .. }));
    });
}

#[test]
fn unreadable_source_is_an_error_of_the_source() {
    run(async {
        let memory = Memory::default();
        let missing = std::path::Path::new("/nonexistent");
        let error =
            memory.begin().store_file(Oid(1), Tid::ZERO, Vec::new(), missing, |_| ()).await.unwrap_err();
        assert!(matches!(error, RequestError::Source { .. }));
    });
}
