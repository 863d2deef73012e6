//! How much memory this process has needed: the promise is that it does not depend on the size of the files.

use std::path::Path;

/// The most memory that this process ever had resident, in bytes; `None` where the system does not tell.
pub(crate) fn peak() -> Option<u64> {
    read("/proc/self/status", "VmHWM:")
}

/// The same of another process.
pub(crate) fn peak_of(process: u32) -> Option<u64> {
    read(format!("/proc/{process}/status"), "VmHWM:")
}

/// The memory that another process has resident now, in bytes.
pub(crate) fn resident_of(process: u32) -> Option<u64> {
    read(format!("/proc/{process}/status"), "VmRSS:")
}

fn read(path: impl AsRef<Path>, name: &str) -> Option<u64> {
    parse(&std::fs::read_to_string(path).ok()?, name)
}

fn parse(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_found_in_what_the_kernel_says() {
        let status = "Name:\tx\nVmPeak:\t   900 kB\nVmHWM:\t    12 kB\nVmRSS:\t    10 kB\n";
        assert_eq!(parse(status, "VmHWM:"), Some(12 << 10));
        assert_eq!(parse(status, "VmRSS:"), Some(10 << 10));
        assert_eq!(parse("Name:\tx\n", "VmHWM:"), None);
    }
}
