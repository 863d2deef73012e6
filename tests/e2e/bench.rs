//! The benchmark measures every figure that it promises. These tests do not check speed.

use std::collections::BTreeSet;
use std::process::Output;

use serde_json::Value;

use crate::support::{Ran, Serve, blobferry, run};

/// Figures of every transport with `--quick`.
const OF_TRANSPORTS: &[&str] = &[
    "load-1-MiB",
    "load-1-MiB-first",
    "load-1-MiB-beside-hash",
    "store-1-MiB",
    "load-8-MiB",
    "load-8-MiB-first",
    "load-8-MiB-beside-hash",
    "store-8-MiB",
    "load-32-MiB",
    "load-32-MiB-first",
    "load-32-MiB-beside-hash",
    "store-32-MiB",
    "memory-load-server",
    "memory-load-client",
    "processors-load",
    "memory-store-server",
    "memory-store-client",
    "processors-store",
    "load-4-clients-8-MiB",
    "load-4-clients-8-MiB-beside-hash",
    "commit-blobs-1",
    "commits-a-sync-1",
    "syncs-a-batch-1",
    "load-bytes-1",
    "load-blobs-1",
    "commit-objects-1",
    "load-objects-1",
    "commit-blobs-16",
    "commits-a-sync-16",
    "syncs-a-batch-16",
    "load-bytes-16",
    "load-blobs-16",
    "commit-objects-16",
    "load-objects-16",
    "commit-blobs-64",
    "commits-a-sync-64",
    "syncs-a-batch-64",
    "load-bytes-64",
    "load-blobs-64",
    "commit-objects-64",
    "load-objects-64",
    "ping-same-p50",
    "ping-same-p99",
    "ping-other-p50",
    "ping-other-p99",
];

/// Figures that belong to no transport.
const OF_THE_MACHINE: &[&str] = &["bare-hash", "bare-sync", "bare-round-trip", "cache-hits"];

/// Figures that may be missing: too short for the system's clock in a quick run, or in need of more
/// memory.
const OPTIONAL: &[&str] = &["processors-load", "processors-store", "store-32-MiB-in-memory"];

fn bench(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let output = blobferry(&["bench", "--quick", "--dir"]).arg(home.path()).args(arguments).output().unwrap();
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "no file is left");
    output
}

/// Returns the JSON objects that `bench` prints, without the first, which describes the machine.
fn objects(arguments: &[&str]) -> Vec<Value> {
    let stdout = Ran::from(bench(&[arguments, &["--json"]].concat())).ok();
    let mut objects: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let machine = objects.remove(0);
    assert!(machine["processors"].as_u64().unwrap() > 0 && machine["file_system"].is_string(), "{machine}");
    objects
}

/// Checks that a figure is consistent.
fn check(figure: &Value) {
    let number = |name: &str| figure[name].as_f64().unwrap();
    assert!(number("low") <= number("median") && number("median") <= number("high"), "{figure}");
    assert!(figure["unit"].is_string() && figure["median"].is_number(), "{figure}");
    if !OPTIONAL.contains(&figure["figure"].as_str().unwrap()) {
        assert!(number("low") > 0.0, "{figure}");
        assert!(figure["limit"].is_null() || number("ratio") > 0.0, "{figure}");
    }
    assert_eq!(figure["target"].is_null(), figure["met"].is_null(), "{figure}");
}

/// Returns the figure's name and its transport.
fn name(figure: &Value) -> (String, Option<String>) {
    let text = |name: &str| figure[name].as_str().map(str::to_owned);
    (text("figure").unwrap(), text("transport"))
}

#[test]
fn bench_measures_every_figure_of_both_transports() {
    let figures = objects(&[]);
    let figures: Vec<&Value> = figures.iter().filter(|object| object["left_out"].is_null()).collect();
    figures.iter().for_each(|figure| check(figure));
    let measured: BTreeSet<_> = figures.iter().map(|figure| name(figure)).collect();
    assert_eq!(measured.len(), figures.len(), "each once");
    for figure in OF_TRANSPORTS {
        for transport in ["mio", "tokio"] {
            let name = ((*figure).to_owned(), Some(transport.to_owned()));
            assert!(measured.contains(&name) || OPTIONAL.contains(figure), "{name:?} is missing");
        }
    }
    for figure in OF_THE_MACHINE {
        assert!(measured.contains(&((*figure).to_owned(), None)), "{figure} is missing");
    }
}

#[test]
fn bench_measures_only_the_chosen_section_and_transport() {
    let figures = objects(&["ping", "--transport", "mio", "--size", "2M"]);
    let measured: Vec<_> = figures.iter().map(name).collect();
    let mio = |figure: &str| (figure.to_owned(), Some("mio".to_owned()));
    let all = ["ping-same-p50", "ping-same-p99", "ping-other-p50", "ping-other-p99"].map(mio);
    assert_eq!(measured, all);
}

#[test]
fn idle_and_scale_sections_are_measured_on_request() {
    let figures =
        objects(&["idle", "scale", "--transport", "tokio", "--count", "300", "--connections", "50"]);
    let measured: Vec<String> = figures.iter().map(|figure| name(figure).0).collect();
    assert_eq!(measured, ["idle-connection", "scale-fill", "scale-open", "scale-commit", "scale-load"]);
    figures.iter().skip(1).for_each(check);
}

#[test]
fn a_running_server_is_measured_as_far_as_possible() {
    let dir = tempfile::tempdir().unwrap();
    let server = Serve::start(dir.path());
    let arguments = ["large", "memory", "small", "--size", "2M", "--transport", "tokio"];
    let objects = objects(&[&arguments[..], &["--server", &server.address]].concat());
    let left_out: Vec<&str> = objects.iter().filter_map(|object| object["left_out"].as_str()).collect();
    assert_eq!(left_out, ["store-2-MiB-in-memory", "memory"]);
    let figures: Vec<&Value> = objects.iter().filter(|object| object["left_out"].is_null()).collect();
    figures.iter().for_each(|figure| check(figure));
    let measured: BTreeSet<String> = figures.iter().map(|figure| name(figure).0).collect();
    for figure in ["store-2-MiB", "load-2-MiB", "commit-blobs-16", "load-blobs-64"] {
        assert!(measured.contains(figure), "{figure} is missing: {measured:?}");
    }
    let needs_own_server = |figure: &String| figure.starts_with("memory") || figure.ends_with("-first");
    assert!(!measured.iter().any(needs_own_server), "{measured:?}");
}

#[test]
fn table_output_has_one_line_per_figure() {
    let stdout = Ran::from(bench(&["hits", "large", "--size", "2M"])).ok();
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("blobferry ") && lines[0].contains("processors"), "{stdout}");
    let head = lines.iter().find(|line| line.starts_with("what ")).unwrap();
    assert!(head.contains("mio") && head.contains("tokio"), "{stdout}");
    for what in ["load 1 MiB, verified", "store 2 MiB, durable", "cache hits"] {
        assert_eq!(lines.iter().filter(|line| line.starts_with(what)).count(), 1, "{what}: {stdout}");
    }
}

#[test]
fn invalid_bench_arguments_are_refused() {
    for arguments in [&["nonsense"][..], &["--rounds", "0"], &["--size", "much"], &["--transport", "smoke"]] {
        let (code, stdout, stderr) = run(&[&["bench"], arguments].concat());
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains("--help"), "{arguments:?}: {stderr}");
    }
    let (code, stdout, stderr) = run(&["bench", "--dir", "/nonexistent"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("/nonexistent"), "{stderr}");
}
