//! The transport depends on no async runtime.

use std::process::Command;

#[test]
fn no_async_runtime_is_among_the_dependencies() {
    const RUNTIMES: [&str; 9] = [
        "actix-rt",
        "async-executor",
        "async-io",
        "async-std",
        "futures-executor",
        "glommio",
        "monoio",
        "smol",
        "tokio",
    ];
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", env!("CARGO_PKG_NAME"), "--edges", "normal,build"])
        .args(["--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"mio"), "{tree}");
    let runtime = |name: &&&str| RUNTIMES.contains(*name) || name.starts_with("tokio-");
    assert_eq!(names.iter().find(runtime), None);
}
