//! Medians, spreads, goals and verdicts, in the columns of `make bench`.

/// What the median of a ratio must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At least this.
    AtLeast(f64),
}

/// Median and spread of one quantity.
#[derive(Clone, Copy, Debug)]
struct Figure {
    low: f64,
    median: f64,
    high: f64,
}

impl Figure {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { low: at(0), median: at(values.len() / 2), high: at(values.len().saturating_sub(1)) }
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
    goal: Option<Goal>,
}

impl Line {
    fn met(&self) -> bool {
        self.goal.is_none_or(|Goal::AtLeast(limit)| self.ratio.median >= limit)
    }
}

/// All measurements of a run.
pub(crate) struct Table(Vec<Line>);

impl Table {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds pairs (ours, reference) in questions a second, one a round. The ratio is taken round by round.
    pub(crate) fn add(&mut self, what: &str, pairs: &[(f64, f64)], goal: Option<Goal>) {
        let column = |pick: fn(&(f64, f64)) -> f64| Figure::of(pairs.iter().map(pick).collect());
        self.0.push(Line {
            what: what.to_owned(),
            ours: column(|(ours, _)| ours / 1000.0),
            reference: column(|(_, reference)| reference / 1000.0),
            ratio: column(|(ours, reference)| ours / reference),
            goal,
        });
    }

    pub(crate) fn print(&self) {
        println!("\nmedian [lowest..highest]");
        let header = ("what", "ours", "reference", "ratio", "goal");
        println!("{:<52} {:>26} {:>26} {:>24} {:>9}", header.0, header.1, header.2, header.3, header.4);
        for line in &self.0 {
            let (goal, verdict) = match line.goal {
                Some(Goal::AtLeast(limit)) => {
                    (format!(">= {limit}"), if line.met() { "met" } else { "MISSED" })
                }
                None => ("-".to_owned(), "-"),
            };
            let (ours, reference, ratio) = (line.ours.text(), line.reference.text(), line.ratio.text());
            println!("{:<52} {ours:>26} {reference:>26} {ratio:>24} {goal:>9} {verdict}", line.what);
        }
    }

    pub(crate) fn all_met(&self) -> bool {
        self.0.iter().all(Line::met)
    }
}
