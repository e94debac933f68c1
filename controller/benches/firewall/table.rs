//! Medians, spreads, goals and verdicts.

use std::fmt::Write as _;

/// Rounds of every measurement; ours and the reference alternate.
pub(crate) const ROUNDS: usize = 7;

/// One line of the table.
struct Line {
    what: String,
    ours: Figure,
    reference: Figure,
    ratio: Figure,
    goal: Goal,
}

/// What the median of a ratio must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Goal {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(limit) => ratio <= limit,
            Self::AtLeast(limit) => ratio >= limit,
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
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self { low: at(0), median: at(sorted.len() / 2), high: at(sorted.len().saturating_sub(1)) }
    }

    fn text(self) -> String {
        format!("{:.3} [{:.3}..{:.3}]", self.median, self.low, self.high)
    }
}

/// All measurements of a run.
pub(crate) struct Table {
    lines: Vec<Line>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { lines: Vec::new() }
    }

    /// Adds pairs (ours, reference), one a round. The ratio is taken round by round.
    pub(crate) fn add(&mut self, what: &str, pairs: &[(f64, f64)], goal: Goal) {
        let column = |pick: fn(&(f64, f64)) -> f64| Figure::of(&pairs.iter().map(pick).collect::<Vec<_>>());
        self.lines.push(Line {
            what: what.to_owned(),
            ours: column(|(ours, _)| *ours),
            reference: column(|(_, reference)| *reference),
            ratio: column(|(ours, reference)| ours / reference),
            goal,
        });
    }

    pub(crate) fn print(&self) {
        let mut text = String::from("\nmedian [lowest..highest]\n");
        let header = ("what", "ours", "reference", "ratio", "goal");
        let _ = writeln!(
            text,
            "{:<52} {:>24} {:>26} {:>24} {:>9}",
            header.0, header.1, header.2, header.3, header.4
        );
        for line in &self.lines {
            let goal = match line.goal {
                Goal::AtMost(limit) => format!("<= {limit}"),
                Goal::AtLeast(limit) => format!(">= {limit}"),
            };
            let verdict = if line.goal.met(line.ratio.median) { "met" } else { "MISSED" };
            let _ = writeln!(
                text,
                "{:<52} {:>24} {:>26} {:>24} {goal:>9} {verdict}",
                line.what,
                line.ours.text(),
                line.reference.text(),
                line.ratio.text()
            );
        }
        println!("{text}");
    }

    pub(crate) fn all_met(&self) -> bool {
        self.lines.iter().all(|line| line.goal.met(line.ratio.median))
    }
}
