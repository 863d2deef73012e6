//! How much memory this process has needed: the promise is that it does not depend on the size of the files.

/// The most memory that this process ever had resident, in bytes; `None` where the system does not tell.
pub(crate) fn peak() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_found_in_what_the_kernel_says() {
        assert_eq!(parse("Name:\tx\nVmPeak:\t   900 kB\nVmHWM:\t    12 kB\n"), Some(12 << 10));
        assert_eq!(parse("Name:\tx\n"), None);
    }
}
