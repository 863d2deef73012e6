//! The sizes and counts of a benchmark: from the command line, or defaults.

use std::num::NonZero;
use std::time::Duration;

use crate::cli::{BenchArgs, Global, Section};
use crate::transport::Transport;

/// The default sections: those that take neither long nor thousands of descriptors.
const DEFAULT_SECTIONS: [Section; 7] = [
    Section::Large,
    Section::Memory,
    Section::Clients,
    Section::Small,
    Section::Objects,
    Section::Hits,
    Section::Ping,
];

/// The sizes and counts of a benchmark.
pub(super) struct Plan {
    pub(super) sections: Vec<Section>,
    pub(super) transports: Vec<Transport>,
    pub(super) rounds: usize,
    /// The sizes of large blobs, and the number of each. The last is the largest.
    pub(super) sizes: Vec<(u64, usize)>,
    /// The size of the largest blob.
    pub(super) largest: u64,
    /// The size of the blobs that several clients load.
    pub(super) shared: u64,
    /// The time that callers make small calls.
    pub(super) time: Duration,
    /// The number of small blobs to load.
    pub(super) blobs: usize,
    /// The numbers of bare round trips and bare syncs. Their figure is the mean.
    pub(super) trips: usize,
    pub(super) syncs: usize,
    /// The number of idle connections.
    pub(super) connections: u64,
    /// The number of blobs and names in the full store.
    pub(super) count: usize,
}

impl Plan {
    /// Returns the plan of the command line, with defaults.
    pub(super) fn new(args: &BenchArgs, global: &Global) -> Plan {
        let mut sections =
            if args.sections.is_empty() { DEFAULT_SECTIONS.to_vec() } else { args.sections.clone() };
        sections.sort_unstable();
        sections.dedup();
        let transports = if global.explicit.transport {
            vec![global.transport]
        } else {
            vec![Transport::Mio, Transport::Tokio]
        };
        let rounds = args.rounds.map(|rounds| rounds.get() as usize);
        let largest = args.size.map(|size| size.0.max(1));
        let sizes = |smaller: [(u64, usize); 2], usual: u64| {
            let largest = largest.unwrap_or(usual);
            let mut sizes = smaller.to_vec();
            sizes.retain(|(size, _)| *size < largest);
            sizes.push((largest, 1));
            (sizes, largest)
        };
        let (all, most) = sizes([(1 << 20, 16), (64 << 20, 3)], 1 << 30);
        let common = Plan {
            sections,
            transports,
            rounds: rounds.unwrap_or(3),
            sizes: all,
            largest: most,
            shared: 256 << 20,
            time: Duration::from_millis(1500),
            blobs: 10_000,
            trips: 4000,
            syncs: 100,
            connections: u64::from(args.connections.map_or(10_000, NonZero::get)),
            count: args.count.map_or(1_000_000, |count| count.get() as usize),
        };
        if !args.quick {
            return common;
        }
        let (all, most) = sizes([(1 << 20, 2), (8 << 20, 1)], 32 << 20);
        Plan {
            rounds: rounds.unwrap_or(1),
            sizes: all,
            largest: most,
            shared: 8 << 20,
            time: Duration::from_millis(100),
            blobs: 200,
            trips: 100,
            syncs: 5,
            connections: u64::from(args.connections.map_or(200, NonZero::get)),
            count: args.count.map_or(2000, |count| count.get() as usize),
            ..common
        }
    }

    /// Returns whether a section is measured.
    pub(super) fn has(&self, section: Section) -> bool {
        self.sections.contains(&section)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn plan(arguments: &str) -> Plan {
        let cli = Cli::try_parse_from(format!("blobferry bench {arguments}").split_whitespace()).unwrap();
        let Command::Bench(args) = &cli.command else { panic!("not a benchmark") };
        Plan::new(args, &cli.global)
    }

    #[test]
    fn slow_sections_are_only_measured_on_request() {
        let usual = plan("");
        assert!(usual.has(Section::Large) && !usual.has(Section::Idle) && !usual.has(Section::Scale));
        let asked = plan("scale hits hits");
        assert_eq!(asked.sections, [Section::Hits, Section::Scale], "in order, and once");
        assert_eq!(asked.transports.len(), 2);
    }

    #[test]
    fn sizes_are_unique_and_at_most_the_largest() {
        let sizes = |arguments| plan(arguments).sizes.iter().map(|(size, _)| *size).collect::<Vec<_>>();
        assert_eq!(sizes(""), [1 << 20, 64 << 20, 1 << 30]);
        assert_eq!(sizes("--size 64M"), [1 << 20, 64 << 20]);
        assert_eq!(sizes("--size 10k"), [10 << 10]);
        assert_eq!(sizes("--quick"), [1 << 20, 8 << 20, 32 << 20]);
    }

    #[test]
    fn quick_is_less_except_for_explicit_options() {
        let (quick, usual) = (plan("--quick"), plan(""));
        assert!(quick.rounds < usual.rounds && quick.time < usual.time && quick.count < usual.count);
        assert_eq!((plan("--quick --rounds 7").rounds, plan("--quick --count 9").count), (7, 9));
    }
}
