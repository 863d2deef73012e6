//! Runs the README's tour: every command works and prints what the README shows.
//!
//! Text that differs from run to run (transaction ids, times, cache paths) is replaced by a
//! placeholder on both sides before the comparison.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::Home;

/// A command of the tour and its expected output.
struct Step {
    command: String,
    output: Vec<String>,
}

/// Returns the commands of all `console` blocks.
fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        match (line, inside) {
            ("```console", _) => inside = true,
            ("```", _) => inside = false,
            (_, false) => {}
            (line, true) => match line.strip_prefix("$ ") {
                Some(command) => steps.push(Step { command: command.into(), output: Vec::new() }),
                None => steps.last_mut().unwrap().output.push(line.into()),
            },
        }
    }
    steps
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Replaces a word that differs from run to run by a placeholder.
fn normalize(word: &str) -> &str {
    match word {
        tid if tid.len() == 16 && is_hex(tid) => "TID",
        time if time.len() == 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T' => "TIME",
        path if path.starts_with('/') && path.ends_with(".blob") => "CACHED",
        word => word,
    }
}

fn normalize_line(line: &str) -> String {
    line.split(['\t', ' ']).map(normalize).collect::<Vec<_>>().join(" ")
}

/// Runs a command line with `sh` in `dir`; returns both outputs in one text.
fn shell(home: &Home, dir: &Path, command: &str) -> String {
    let bin = Path::new(env!("CARGO_BIN_EXE_blobferry")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .current_dir(dir)
        .env("PATH", path)
        .env("USER", "ada")
        .env("BLOBFERRY_SERVER", &home.server.address)
        .env("BLOBFERRY_CACHE", home.path("cache"))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn file(name: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn every_readme_command_prints_what_the_readme_says() {
    let steps = steps(&file("README.md"));
    assert!(steps.len() > 15, "the tour is missing");
    let home = Home::new();
    let dir = home.path("tour");
    fs::create_dir(&dir).unwrap();
    // The tids in the README and those of this run.
    let mut tids: Vec<(String, String)> = Vec::new();
    for Step { command, output: expected } in steps {
        if command.starts_with("blobferry serve") {
            assert_eq!(expected, ["listening on 127.0.0.1:7420"]);
            continue;
        }
        let command = tids.iter().fold(command, |command, (theirs, ours)| command.replace(theirs, ours));
        let printed = shell(&home, &dir, &command);
        let normalized: Vec<String> = printed.lines().map(normalize_line).collect();
        let wanted: Vec<String> = expected.iter().map(|line| normalize_line(line)).collect();
        assert_eq!(normalized, wanted, "{command}");
        for (theirs, ours) in expected.iter().zip(printed.lines()) {
            let pairs = theirs.split('\t').zip(ours.split('\t'));
            let new = pairs.filter(|(theirs, _)| normalize(theirs) == "TID");
            tids.extend(new.map(|(theirs, ours)| (theirs.to_owned(), ours.to_owned())));
        }
    }
}

#[test]
fn readme_library_code_is_the_tested_example() {
    let readme = file("README.md");
    let (_, block) = readme.split_once("```rust\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let example: Vec<String> =
        file("examples/publish.rs").lines().map(|line| line.trim().to_owned()).collect();
    let shown: Vec<&str> = block.lines().map(str::trim).collect();
    assert!(shown.len() > 15, "the example is missing");
    assert!(example.windows(shown.len()).any(|lines| lines == shown), "the README shows another example");
}

/// Returns the text of all Rust sources of the project.
fn sources(dir: &std::path::Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() && !entry.ends_with("target") && !entry.ends_with(".git") {
            all += &sources(&entry);
        } else if entry.extension() == Some("rs".as_ref()) {
            all += &std::fs::read_to_string(entry).unwrap();
        }
    }
    all
}

#[test]
fn every_promise_names_an_existing_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (text, sources) = (std::fs::read_to_string(root.join("README.md")).unwrap(), sources(root));
    let (_, promises) = text.split_once("## When things break").unwrap();
    let (promises, _) = promises.split_once("\n## ").unwrap();
    let rows: Vec<&str> = promises.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 20);
    for row in rows {
        let tests: Vec<&str> = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            let there = sources.contains(&format!("fn {test}(")) || sources.contains(&format!("mod {test};"));
            assert!(there, "{test}");
        }
    }
}

/// Every numbered invariant of ARCHITECTURE.md names a test, and every file that a change touches is there.
#[test]
fn architecture_names_existing_tests_and_files() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (text, sources) = (file("ARCHITECTURE.md"), sources(root));
    let is_numbered =
        |line: &&str| line.split_once(". **").is_some_and(|(number, _)| number.parse::<u8>().is_ok());
    let invariants: Vec<&str> = text.lines().filter(is_numbered).collect();
    assert!(invariants.len() > 40, "{}", invariants.len());
    for invariant in invariants.into_iter().filter(|line| !is_a_step(line)) {
        let (_, named) = invariant.split_once("Test").unwrap_or_else(|| panic!("{invariant}"));
        let test = named.split('`').nth(1).unwrap();
        let exists = if test.contains('/') {
            root.join(test).is_file()
        } else {
            sources.contains(&format!("fn {test}("))
        };
        assert!(exists, "{test}");
    }
    let (_, changes) = text.split_once("## Where a change goes").unwrap();
    for path in changes.split('`').skip(1).step_by(2).filter(|path| path.contains('/')) {
        let exists = path.contains('*') || path.contains("::") || root.join(path).exists();
        assert!(exists, "{path}");
    }
}

/// Returns whether a line is a step in the life of a blob, not an invariant.
fn is_a_step(line: &str) -> bool {
    ["Store", "Receive", "Commit", "Load"].iter().any(|step| line.contains(&format!("**{step}.**")))
}
