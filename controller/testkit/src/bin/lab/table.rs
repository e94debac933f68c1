//! What the person at the terminal sees.

use std::io::{IsTerminal as _, Write as _};

/// Widths of the columns but the last two, and of the last.
const WIDTHS: [usize; 3] = [40, 8, 24];
const LAST_WIDTH: usize = 15;
const HEADINGS: [&str; 5] = ["probe", "expected", "seen", "rule that decided", "its packets"];

/// One line of the table.
pub(crate) struct Line {
    /// Probe, expected, seen, rule.
    pub(crate) cells: [String; 4],
    /// By how much the rule's counter moved, and where it stands; `None` where no counter is meant.
    pub(crate) counter: Option<(u64, u64)>,
    /// What is not as expected; none = all is well.
    pub(crate) complaints: Vec<String>,
}

/// Prints as things happen and remembers what went wrong.
pub(crate) struct Table {
    colours: bool,
    rule_width: usize,
    lines: usize,
    failed: Vec<String>,
}

impl Table {
    /// Colours only where a person looks.
    pub(crate) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours, rule_width: 35, lines: 0, failed: Vec::new() }
    }

    /// Number of lines so far.
    pub(crate) fn lines(&self) -> usize {
        self.lines
    }

    /// Probes that went wrong.
    pub(crate) fn failed(&self) -> &[String] {
        &self.failed
    }

    /// Cells of four columns, each padded.
    fn row(&self, cells: &[&str; 4]) -> String {
        let widths = WIDTHS.iter().chain([&self.rule_width]);
        cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$} ")).collect()
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A plain line.
    pub(crate) fn say(&self, text: &str) {
        // A reader who closes the pipe early misses the rest; that is no failure of the firewall.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// A line of less importance.
    pub(crate) fn remark(&self, text: &str) {
        self.say(&self.paint("2", text));
    }

    /// The first line of all.
    pub(crate) fn title(&self, text: &str) {
        self.say(&self.paint("1", text));
    }

    /// A heading.
    pub(crate) fn heading(&self, text: &str) {
        self.say(&format!("\n{}", self.paint("1", text)));
    }

    /// Names of the columns; that of the rules is this wide from now on.
    pub(crate) fn columns(&mut self, rule_width: usize) {
        self.rule_width = rule_width;
        let [probe, expected, seen, rule, packets] = HEADINGS;
        let cells = self.row(&[probe, expected, seen, rule]);
        self.say(&self.paint("2", &format!("    {cells}{packets:>LAST_WIDTH$}")));
    }

    /// A probe.
    pub(crate) fn line(&mut self, line: &Line) {
        self.lines += 1;
        let counter = match line.counter {
            Some((moved, now)) => format!("{} (+{})", thousands(now), thousands(moved)),
            None => String::new(),
        };
        let [probe, expected, seen, rule] = &line.cells;
        let cells = self.row(&[probe, expected, seen, rule]);
        let mark = if line.complaints.is_empty() { self.paint("32", "ok") } else { self.paint("31;1", "NO") };
        self.say(format!("{mark}  {cells}{counter:>LAST_WIDTH$}").trim_end());
        for complaint in &line.complaints {
            self.say(&self.paint("31", &format!("      {complaint}")));
        }
        if !line.complaints.is_empty() {
            self.failed.push(probe.clone());
        }
    }

    /// A statement about the whole that must hold.
    pub(crate) fn sum(&mut self, text: &str, complaint: Option<String>) {
        self.lines += 1;
        let mark = if complaint.is_none() { self.paint("32", "ok") } else { self.paint("31;1", "NO") };
        self.say(&format!("{mark}  {text}"));
        if let Some(complaint) = complaint {
            self.say(&self.paint("31", &format!("      {complaint}")));
            self.failed.push(text.to_owned());
        }
    }

    /// The last line of all.
    pub(crate) fn verdict(&self, text: &str) {
        let colour = if self.failed.is_empty() { "32;1" } else { "31;1" };
        self.say(&format!("\n{}", self.paint(colour, text)));
    }
}

/// `12,345`
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
