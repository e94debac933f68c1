//! Medians, spreads, goals and verdicts, in the columns of the controller's benchmarks.

use std::fmt::Write as _;

/// Rounds of every measurement; ours and the reference alternate.
pub(crate) const ROUNDS: usize = 7;

/// What the median must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// The ratio at most this.
    AtMost(f64),
    /// Ours at most this more than the reference.
    MoreBy(f64),
    /// Shown only.
    None,
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

struct Line {
    what: String,
    ours: Figure,
    reference: Figure,
    ratio: Figure,
    more: Figure,
    goal: Goal,
}

impl Line {
    fn met(&self) -> bool {
        match self.goal {
            Goal::AtMost(limit) => self.ratio.median <= limit,
            Goal::MoreBy(limit) => self.more.median <= limit,
            Goal::None => true,
        }
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

    /// Adds pairs (ours, reference), one a round. Ratio and difference are taken round by round.
    pub(crate) fn add(&mut self, what: &str, pairs: &[(f64, f64)], goal: Goal) {
        self.lines.push(Line {
            what: what.to_owned(),
            ours: Figure::of(pairs.iter().map(|(ours, _)| *ours)),
            reference: Figure::of(pairs.iter().map(|(_, reference)| *reference)),
            ratio: Figure::of(pairs.iter().map(|(ours, reference)| ours / reference)),
            more: Figure::of(pairs.iter().map(|(ours, reference)| ours - reference)),
            goal,
        });
    }

    pub(crate) fn print(&self) {
        let mut text = String::from("\nmedian [lowest..highest]\n");
        let header = ("what", "ours", "reference", "ratio", "goal");
        let _ = writeln!(
            text,
            "{:<60} {:>26} {:>24} {:>24} {:>9}",
            header.0, header.1, header.2, header.3, header.4
        );
        for line in &self.lines {
            let goal = match line.goal {
                Goal::AtMost(limit) => format!("<= {limit}"),
                Goal::MoreBy(limit) => format!("<= +{limit}"),
                Goal::None => String::new(),
            };
            let verdict = match line.goal {
                Goal::None => "",
                _ if line.met() => "met",
                _ => "MISSED",
            };
            let (ours, reference, ratio) = (line.ours.text(), line.reference.text(), line.ratio.text());
            let what = &line.what;
            let _ = writeln!(text, "{what:<60} {ours:>26} {reference:>24} {ratio:>24} {goal:>9} {verdict}");
        }
        println!("{text}");
    }

    pub(crate) fn all_met(&self) -> bool {
        self.lines.iter().all(Line::met)
    }
}
