//! Replays the corpora and the regressions of all fuzz targets, on any toolchain.

// This file contains only tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use blobferry_fuzz::{TARGETS, seeds::seeds};

/// Returns the inputs in a directory of this package, or none if it does not exist.
fn inputs(dir: &str, target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join(target);
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

/// Replays inputs, and reports which of them failed.
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
fn every_input_and_regression_belongs_to_a_target() {
    for dir in ["corpus", "regressions"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        for entry in fs::read_dir(dir).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(TARGETS.iter().any(|(target, _)| *target == name), "there is no target {name:?}");
        }
    }
}

#[test]
fn every_target_is_built_for_libfuzzer() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&format!("path = \"{path}\"")), "{path} is not in Cargo.toml");
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists());
    }
}

#[test]
fn corpora_are_replayed() {
    replay("corpus");
}

#[test]
fn regressions_stay_fixed() {
    replay("regressions");
}

#[test]
fn seed_inputs_break_nothing() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() > 100, "{name}");
        // A sample of each kind; fuzzing starts with all of them.
        seeds.iter().step_by(seeds.len() / 40).for_each(|seed| target(seed));
    }
}
