//! Resident memory of a process. The command promises that it does not depend on the size of files.

use std::path::Path;

/// Returns the peak resident memory of this process, in bytes; `None` if the system does not report
/// it.
pub(crate) fn peak() -> Option<u64> {
    read("/proc/self/status", "VmHWM:")
}

/// Returns the peak resident memory of another process, in bytes.
pub(crate) fn peak_of(process: u32) -> Option<u64> {
    read(format!("/proc/{process}/status"), "VmHWM:")
}

/// Returns the current resident memory of another process, in bytes.
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
    fn memory_is_parsed_from_proc_status() {
        let status = "Name:\tx\nVmPeak:\t   900 kB\nVmHWM:\t    12 kB\nVmRSS:\t    10 kB\n";
        assert_eq!(parse(status, "VmHWM:"), Some(12 << 10));
        assert_eq!(parse(status, "VmRSS:"), Some(10 << 10));
        assert_eq!(parse("Name:\tx\n", "VmHWM:"), None);
    }
}
