//! System calls of a client that fail while it fills its cache.
//!
//! The client names the operation and the file, leaves no incomplete blob, and the next client
//! fetches it.

use std::fs;
use std::process::Command;

use crate::strace;
use crate::support::{Home, Ran, bytes};

/// System calls, whether they fail only on the file of the download, and the error.
const FAULTS: [(&str, bool, &str); 11] = [
    ("fallocate", true, "ENOSPC"),
    ("fallocate", true, "EDQUOT"),
    ("fallocate", true, "EIO"),
    ("write", true, "ENOSPC"),
    ("write", true, "EDQUOT"),
    ("write", true, "EFBIG"),
    ("write", true, "EIO"),
    ("fchmod", true, "EROFS"),
    ("rename,renameat,renameat2", true, "EIO"),
    ("rename,renameat,renameat2", true, "EROFS"),
    ("mkdir,mkdirat", false, "EROFS"),
];

/// Runs `get` with failing calls; returns the number of failures, or `None` if `strace` does not
/// work here.
fn get(home: &Home, calls: &str, path: Option<&str>, error: &str) -> Option<(Ran, usize)> {
    let mut strace = Command::new("strace");
    strace.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:error={error}")]);
    strace.args(path.into_iter().flat_map(|path| ["-P", path]));
    let get = home.command(&["get", "blob"]);
    let (output, seen) = strace::run(&mut strace, &get, &home.path("strace"))?;
    Some((output.into(), strace::injected(&seen)))
}

#[test]
fn failing_cache_disk_names_file_and_next_get_succeeds() {
    let home = Home::new();
    let whole = bytes("blob", 300_000);
    let put = home.run(&["put", &home.file("blob", &whole)]).ok();
    let mut fields = put.split('\t');
    let name = format!("{}.{}.part", fields.next().unwrap(), fields.next().unwrap());
    let cache = home.path("cache");
    let partial = cache.join("tmp/partial").join(name);
    for (calls, on_partial, error) in FAULTS {
        // Each round fills a new cache.
        let _ = fs::remove_dir_all(&cache);
        let path = on_partial.then(|| partial.to_str().unwrap());
        let Some((ran, failed)) = get(&home, calls, path, error) else { return };
        assert!(failed > 0, "{calls} {error}: nothing failed: {ran:?}");
        let stderr = ran.fails(1);
        assert!(
            ["cannot ", "no room "].iter().any(|words| stderr.contains(words)),
            "{calls} {error}: {stderr}"
        );
        assert!(stderr.contains(cache.to_str().unwrap()), "{calls} {error}: {stderr}");
        let got = home.run(&["get", "blob"]).ok();
        assert!(fs::read(got.trim_end()).unwrap() == whole, "{calls} {error}");
        assert!(!partial.exists(), "{calls} {error}");
    }
}
