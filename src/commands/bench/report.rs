//! The figures of a benchmark, with their limits and targets.
//!
//! A figure is the median of its rounds; its spread is their minimum and maximum. Its ratio says
//! how much of the limit it reaches: 1 is all of it, whether more is better or less. The ratio is
//! computed for each round, because the machine changes between rounds, and then the median is
//! taken. If the machine changes within a round, a value has its own limit, measured beside it.

use serde::Serialize;

use crate::format;
use crate::transport::Transport;

/// One row: what is measured.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The name for scripts.
    pub(super) figure: String,
    /// The name for people.
    pub(super) what: String,
    pub(super) unit: Unit,
    pub(super) target: Option<Target>,
}

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Millions of bytes per second.
    Rate,
    /// Events per second.
    PerSecond,
    Milliseconds,
    /// Seconds of processor time per GiB.
    CpuSeconds,
    Seconds,
    MiB,
    Bytes,
    /// A ratio of two counts.
    Each,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Rate => "MB/s",
            Unit::PerSecond => "1/s",
            Unit::Milliseconds => "ms",
            Unit::CpuSeconds => "s/GiB",
            Unit::Seconds => "s",
            Unit::MiB => "MiB",
            Unit::Bytes => "B",
            Unit::Each => "each",
        }
    }

    /// Returns whether more is better.
    fn more_is_better(self) -> bool {
        matches!(self, Unit::Rate | Unit::PerSecond | Unit::Each)
    }
}

/// The target of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// At least this part of its limit.
    Ratio(f64),
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn is_met(self, median: f64, ratio: Option<f64>) -> bool {
        match self {
            Target::Ratio(least) => ratio.is_some_and(|ratio| ratio >= least),
            Target::AtLeast(least) => median >= least,
            Target::AtMost(most) => median <= most,
        }
    }

    fn number(self) -> f64 {
        match self {
            Target::Ratio(number) | Target::AtLeast(number) | Target::AtMost(number) => number,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Target::Ratio(_) => "ratio at least",
            Target::AtLeast(_) => "at least",
            Target::AtMost(_) => "at most",
        }
    }

    fn plain(self) -> String {
        match self {
            Target::Ratio(least) => format!("ratio >= {least:.2}"),
            Target::AtLeast(least) => format!(">= {}", number(least)),
            Target::AtMost(most) => format!("<= {}", number(most)),
        }
    }
}

/// A row of a [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowId(usize);

/// All figures.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<(Row, Samples)>,
}

/// The rounds of a row.
#[derive(Debug, Default)]
struct Samples {
    limit: Vec<f64>,
    measured: Vec<Measured>,
}

/// The values of a row's rounds.
#[derive(Debug, Default)]
struct Measured {
    /// The transport; `None` for figures without one.
    by: Option<Transport>,
    values: Vec<f64>,
    /// The limit of each value, if each has its own.
    beside: Vec<f64>,
}

/// A figure in the JSON output.
#[derive(Debug, Serialize)]
pub(super) struct Figure<'a> {
    figure: &'a str,
    transport: Option<&'static str>,
    unit: &'static str,
    median: f64,
    low: f64,
    high: f64,
    limit: Option<f64>,
    ratio: Option<f64>,
    target: Option<f64>,
    target_is: Option<&'static str>,
    met: Option<bool>,
}

impl Report {
    /// Adds a row.
    pub(super) fn row(&mut self, row: Row) -> RowId {
        self.rows.push((row, Samples::default()));
        RowId(self.rows.len() - 1)
    }

    /// Returns the number of rows.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// A round's limit.
    pub(super) fn limit(&mut self, row: RowId, value: f64) {
        if let Some((_, samples)) = self.rows.get_mut(row.0) {
            samples.limit.push(value);
        }
    }

    /// What came of a round.
    pub(super) fn value(&mut self, row: RowId, transport: Option<Transport>, value: f64) {
        if let Some((_, samples)) = self.rows.get_mut(row.0) {
            samples.by(transport).values.push(value);
        }
    }

    /// Adds the value of a round, and the limit that was measured beside it.
    pub(super) fn value_beside(&mut self, row: RowId, transport: Transport, value: f64, limit: f64) {
        self.value(row, Some(transport), value);
        if let Some((_, samples)) = self.rows.get_mut(row.0) {
            samples.by(Some(transport)).beside.push(limit);
        }
        self.limit(row, limit);
    }

    /// Returns the figures of the rows from `from` on. A row that has only a limit is also a
    /// figure.
    pub(super) fn figures(&self, from: usize) -> impl Iterator<Item = Figure<'_>> {
        self.rows.iter().skip(from).flat_map(|(row, samples)| {
            let bare = samples.measured.is_empty().then(|| figure(row, None, &samples.limit, None));
            let measured = samples.measured.iter().map(|measured| samples.figure(row, measured));
            bare.into_iter().chain(measured).flatten()
        })
    }

    /// Formats the table for people.
    pub(super) fn table(&self, transports: &[Transport]) -> String {
        let mut head = vec!["what".to_owned(), "unit".into(), "limit".into()];
        for transport in transports {
            head.extend([transport.name().to_owned(), "ratio".into()]);
        }
        head.push("target".into());
        let rows = self.rows.iter().filter(|(_, samples)| !samples.is_empty());
        let rows = rows.map(|(row, samples)| line(row, samples, transports));
        format::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
    }

    /// Returns whether a figure misses its target.
    pub(super) fn has_missed(&self) -> bool {
        self.figures(0).any(|figure| figure.met == Some(false))
    }
}

impl Samples {
    fn is_empty(&self) -> bool {
        self.limit.is_empty() && self.measured.is_empty()
    }

    fn by(&mut self, transport: Option<Transport>) -> &mut Measured {
        let at = self.measured.iter().position(|measured| measured.by == transport);
        let at = at.unwrap_or_else(|| {
            self.measured.push(Measured { by: transport, ..Measured::default() });
            self.measured.len() - 1
        });
        &mut self.measured[at]
    }

    fn figure<'a>(&self, row: &'a Row, measured: &Measured) -> Option<Figure<'a>> {
        let Measured { by, values, beside } = measured;
        figure(row, *by, values, Some(if beside.is_empty() { &self.limit } else { beside }))
    }
}

fn figure<'a>(
    row: &'a Row,
    by: Option<Transport>,
    values: &[f64],
    limit: Option<&[f64]>,
) -> Option<Figure<'a>> {
    let Spread { median, low, high } = Spread::of(values)?;
    let ratio = limit.and_then(|limit| ratio(values, limit, row.unit.more_is_better()));
    Some(Figure {
        figure: &row.figure,
        transport: by.map(Transport::name),
        unit: row.unit.name(),
        median,
        low,
        high,
        limit: limit.and_then(Spread::of).map(|limit| limit.median),
        ratio,
        target: row.target.map(Target::number),
        target_is: row.target.map(Target::kind),
        met: row.target.map(|target| target.is_met(median, ratio)),
    })
}

fn line(row: &Row, samples: &Samples, transports: &[Transport]) -> Vec<String> {
    let spread = |values: &[f64]| Spread::of(values).map_or_else(|| "-".to_owned(), Spread::plain);
    let mut cells = vec![row.what.clone(), row.unit.name().to_owned(), spread(&samples.limit)];
    for (column, transport) in transports.iter().enumerate() {
        let of_column = |by: &Option<Transport>| *by == Some(*transport) || (by.is_none() && column == 0);
        let measured = samples.measured.iter().find(|measured| of_column(&measured.by));
        let figure = measured.and_then(|it| Some((&it.values, samples.figure(row, it)?)));
        let Some((values, figure)) = figure else {
            cells.extend(["-".to_owned(), "-".to_owned()]);
            continue;
        };
        let missed = if figure.met == Some(false) { " !" } else { "" };
        let ratio = figure.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        match row.target {
            Some(Target::Ratio(_)) => cells.extend([spread(values), format!("{ratio}{missed}")]),
            _ => cells.extend([format!("{}{missed}", spread(values)), ratio]),
        }
    }
    cells.push(row.target.map_or_else(|| "-".to_owned(), Target::plain));
    cells
}

/// The median, minimum and maximum of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Spread {
    /// Returns the spread of numbers; `None` if there are none.
    pub(super) fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let (below, above) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Spread { median: f64::midpoint(*below, *above), low, high })
    }

    /// Formats the median and the largest deviation from it: `812 ±4%`.
    fn plain(self) -> String {
        let far = (self.high - self.median).max(self.median - self.low) / self.median * 100.0;
        let text = number(self.median);
        if self.low < self.high && far.is_finite() { format!("{text} ±{far:.0}%") } else { text }
    }
}

/// Returns how much of the limit is reached.
fn ratio(values: &[f64], limit: &[f64], more_is_better: bool) -> Option<f64> {
    let each = |(value, limit): (&f64, &f64)| if more_is_better { value / limit } else { limit / value };
    let ratios: Vec<f64> = values.iter().zip(limit).map(each).filter(|ratio| ratio.is_finite()).collect();
    Spread::of(&ratios).map(|spread| spread.median)
}

/// Formats a number with three or four significant digits.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(figure: &str, unit: Unit, target: Option<Target>) -> Row {
        Row { figure: figure.into(), what: format!("the {figure}"), unit, target }
    }

    fn spread(values: &[f64]) -> (f64, f64, f64) {
        let Spread { median, low, high } = Spread::of(values).unwrap();
        (median, low, high)
    }

    #[test]
    fn median_is_the_middle_or_between_the_two_middle_values() {
        assert_eq!(spread(&[7.0]), (7.0, 7.0, 7.0));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), (2.0, 1.0, 9.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 100.0]), (3.0, 1.0, 100.0));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratio_is_the_median_of_each_rounds_ratio() {
        // The machine was twice as fast in the second round. The ratio stays the same.
        assert_eq!(ratio(&[50.0, 100.0, 40.0], &[100.0, 200.0, 100.0], true), Some(0.5));
        assert_eq!(ratio(&[4.0], &[1.0], false), Some(0.25), "four times the time is a quarter");
        assert_eq!(ratio(&[4.0], &[], true), None);
        assert_eq!(ratio(&[4.0], &[0.0], true), None);
    }

    #[test]
    fn value_is_compared_with_the_limit_beside_it() {
        let mut report = Report::default();
        let load = report.row(row("load", Unit::PerSecond, None));
        for (slow, mio, tokio) in [(1.0, 60.0, 40.0), (2.0, 30.0, 20.0)] {
            report.value_beside(load, Transport::Mio, mio, 100.0 / slow);
            report.value_beside(load, Transport::Tokio, tokio, 50.0 / slow);
        }
        let figures: Vec<_> = report.figures(0).map(|figure| (figure.limit, figure.ratio)).collect();
        assert_eq!(figures, [(Some(75.0), Some(0.6)), (Some(37.5), Some(0.8))]);
        let table = report.table(&[Transport::Mio, Transport::Tokio]);
        assert!(table.contains("50.0 ±100%"), "the limit is the median of all: {table}");
    }

    #[test]
    fn targets_compare_the_ratio_or_the_figure() {
        assert!(Target::Ratio(0.8).is_met(1.0, Some(0.8)));
        assert!(!Target::Ratio(0.8).is_met(1.0, Some(0.79)));
        assert!(!Target::Ratio(0.8).is_met(1.0, None));
        assert!(
            Target::AtLeast(4000.0).is_met(4000.0, None) && !Target::AtLeast(4000.0).is_met(3999.0, None)
        );
        assert!(Target::AtMost(16.0).is_met(16.0, None) && !Target::AtMost(16.0).is_met(16.1, None));
    }

    #[test]
    fn json_has_a_figure_per_transport_and_bare_limit() {
        let mut report = Report::default();
        let bare = report.row(row("bare", Unit::Milliseconds, None));
        report.limit(bare, 2.0);
        let load = report.row(row("load", Unit::Rate, Some(Target::Ratio(0.8))));
        for (limit, mio, tokio) in [(100.0, 90.0, 70.0), (200.0, 180.0, 140.0)] {
            report.limit(load, limit);
            report.value(load, Some(Transport::Mio), mio);
            report.value(load, Some(Transport::Tokio), tokio);
        }
        report.row(row("left out", Unit::Rate, None));
        let figures: Vec<_> = report.figures(0).map(|figure| serde_json::to_value(figure).unwrap()).collect();
        assert_eq!(figures.len(), 3, "{figures:?}");
        assert_eq!((&figures[0]["figure"], &figures[0]["median"]), (&"bare".into(), &2.0.into()));
        assert!(figures[0]["transport"].is_null() && figures[0]["limit"].is_null());
        let tokio = &figures[2];
        assert_eq!((&tokio["transport"], &tokio["unit"]), (&"tokio".into(), &"MB/s".into()));
        assert_eq!((&tokio["median"], &tokio["low"]), (&105.0.into(), &70.0.into()));
        assert_eq!((&tokio["limit"], &tokio["ratio"]), (&150.0.into(), &0.7.into()));
        assert_eq!((&tokio["target"], &tokio["met"]), (&0.8.into(), &false.into()));
        assert_eq!(figures[1]["met"], true);
        assert_eq!(report.figures(1).count(), 2);
        assert!(report.has_missed());
    }

    #[test]
    fn table_has_a_line_per_row_and_marks_missed_targets() {
        let mut report = Report::default();
        let load = report.row(row("load", Unit::Rate, Some(Target::Ratio(0.8))));
        report.limit(load, 1000.0);
        report.value(load, Some(Transport::Mio), 900.0);
        report.value(load, Some(Transport::Tokio), 500.0);
        let hits = report.row(row("hits", Unit::PerSecond, Some(Target::AtLeast(100.0))));
        report.value(hits, None, 90.0);
        report.value(hits, None, 45.0);
        report.row(row("left out", Unit::Rate, None));
        let table = report.table(&[Transport::Mio, Transport::Tokio]);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0].join(" "), "what unit limit mio ratio tokio ratio target");
        assert_eq!(lines[1].join(" "), "the load MB/s 1000 900 0.90 500 0.50 ! ratio >= 0.80");
        assert_eq!(lines[2].join(" "), "the hits 1/s - 67.5 ±33% ! - - - >= 100");
        assert_eq!(lines.len(), 3);
    }
}
