//! What benchmarks print: ours beside a reference, with medians, spreads, goals and verdicts.

use std::fmt::Write as _;

/// Rounds of every measurement; ours and the reference alternate.
pub const ROUNDS: usize = 7;

/// What the median must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The ratio at most this.
    AtMost(f64),
    /// The ratio at least this.
    AtLeast(f64),
    /// Ours at most this more than the reference, in the unit of the line.
    MoreBy(f64),
    /// Shown only.
    None,
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {limit:.3}"),
            Self::AtLeast(limit) => format!(">= {limit:.3}"),
            Self::MoreBy(limit) => format!("<= +{limit}"),
            Self::None => "-".to_owned(),
        }
    }
}

/// Median and spread of one quantity.
#[derive(Clone, Copy, Debug)]
struct Figure {
    low: f64,
    median: f64,
    high: f64,
}

impl Figure {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self { low: at(0), median: at(sorted.len() / 2), high: at(sorted.len().saturating_sub(1)) }
    }

    fn text(self) -> String {
        format!("{:.3} [{:.3}..{:.3}]", self.median, self.low, self.high)
    }
}

/// One line of the table.
#[derive(Debug)]
struct Line {
    what: String,
    ours: Figure,
    reference: Figure,
    ratio: Figure,
    more: Figure,
    goal: Goal,
}

impl Line {
    /// A figure that is missing (NaN) meets no goal.
    fn met(&self) -> bool {
        match self.goal {
            Goal::AtMost(limit) => self.ratio.median <= limit,
            Goal::AtLeast(limit) => self.ratio.median >= limit,
            Goal::MoreBy(limit) => self.more.median <= limit,
            Goal::None => true,
        }
    }

    fn verdict(&self) -> &'static str {
        match self.goal {
            Goal::None => "-",
            _ if self.met() => "met",
            _ => "MISSED",
        }
    }
}

/// All measurements of a run.
#[derive(Debug, Default)]
pub struct Table {
    lines: Vec<Line>,
}

impl Table {
    /// No line yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds pairs (ours, reference), one a round. Ratio and difference are taken round by round.
    pub fn add(&mut self, what: &str, pairs: &[(f64, f64)], goal: Goal) {
        self.lines.push(Line {
            what: what.to_owned(),
            ours: Figure::of(pairs.iter().map(|(ours, _)| *ours)),
            reference: Figure::of(pairs.iter().map(|(_, reference)| *reference)),
            ratio: Figure::of(pairs.iter().map(|(ours, reference)| ours / reference)),
            more: Figure::of(pairs.iter().map(|(ours, reference)| ours - reference)),
            goal,
        });
    }

    /// The table as text.
    pub fn text(&self) -> String {
        let mut text = String::from("\nmedian [lowest..highest]\n");
        let header = ("what", "ours", "reference", "ratio", "goal");
        let _ = writeln!(
            text,
            "{:<60} {:>27} {:>27} {:>22} {:>9}",
            header.0, header.1, header.2, header.3, header.4
        );
        for line in &self.lines {
            let (ours, reference, ratio) = (line.ours.text(), line.reference.text(), line.ratio.text());
            let (what, goal, verdict) = (&line.what, line.goal.text(), line.verdict());
            let _ = writeln!(text, "{what:<60} {ours:>27} {reference:>27} {ratio:>22} {goal:>9} {verdict}");
        }
        text
    }

    /// True when no goal was missed.
    pub fn all_met(&self) -> bool {
        self.lines.iter().all(Line::met)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_the_ratios_decides_and_a_missing_figure_misses() {
        let verdict = |pairs: &[(f64, f64)], goal| {
            let mut table = Table::new();
            table.add("x", pairs, goal);
            table.all_met()
        };
        // Ratios 0.5, 2 and 4, differences -1, 1 and 3; the ratio of the medians would be 1.
        let pairs = [(1.0, 2.0), (2.0, 1.0), (4.0, 1.0)];
        assert!(verdict(&pairs, Goal::AtMost(2.0)) && !verdict(&pairs, Goal::AtMost(1.9)));
        assert!(verdict(&pairs, Goal::AtLeast(2.0)) && !verdict(&pairs, Goal::AtLeast(2.1)));
        assert!(verdict(&pairs, Goal::MoreBy(1.0)) && !verdict(&pairs, Goal::MoreBy(0.9)));
        assert!(verdict(&pairs, Goal::None));
        assert!(!verdict(&[], Goal::AtMost(1.0)) && !verdict(&[(f64::NAN, 1.0)], Goal::AtLeast(0.0)));
    }
}
