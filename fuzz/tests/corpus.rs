//! What fuzzing has found worth keeping is replayed, whatever the toolchain: the corpora, and what once went wrong.

// All of this is tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use blobferry_fuzz::{TARGETS, seeds::seeds};

/// The inputs in a directory of this package; none where it is not there.
fn inputs(dir: &str, target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join(target);
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

/// Replays inputs, and says which of them went wrong.
fn replay(dir: &str) {
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        for input in inputs(dir, name) {
            let data = fs::read(&input).unwrap();
            if catch_unwind(|| target(&data)).is_err() {
                failed.push(input);
            }
        }
    }
    assert!(failed.is_empty(), "broken by {failed:#?}");
}

#[test]
fn every_target_has_a_corpus() {
    for (name, _) in TARGETS {
        assert!(inputs("corpus", name).len() > 20, "{name} has no corpus to speak of");
    }
}

#[test]
fn every_input_and_every_regression_is_of_a_target() {
    for dir in ["corpus", "regressions"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        for entry in fs::read_dir(dir).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(TARGETS.iter().any(|(target, _)| *target == name), "there is no target {name:?}");
        }
    }
}

#[test]
fn every_target_is_built_for_libfuzzer_too() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&format!("path = \"{path}\"")), "{path} is not in Cargo.toml");
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists());
    }
}

#[test]
fn the_corpora_are_replayed() {
    replay("corpus");
}

#[test]
fn what_went_wrong_once_does_not_again() {
    replay("regressions");
}

#[test]
fn the_inputs_to_begin_with_break_nothing() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() > 100, "{name}");
        // A few of each kind: fuzzing takes all of them.
        seeds.iter().step_by(seeds.len() / 40).for_each(|seed| target(seed));
    }
}
