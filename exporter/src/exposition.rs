//! Prometheus' text format (version 0.0.4) as others write it: nothing of theirs may break a scrape.
//!
//! One line that Prometheus cannot read, or one series given twice, and it refuses the whole scrape. So a text is taken
//! as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a text at most.
pub const MAX_TEXT: usize = 8 << 20;
/// Samples of a text at most.
const MAX_SAMPLES: usize = 100_000;

/// Why a text is not taken. Line numbers count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// More bytes or samples than are taken.
    #[error("it is too long")]
    TooLong,
    /// Not what the format says.
    #[error("line {0} is no line of Prometheus' text format")]
    Line(usize),
    /// A name of somebody else.
    #[error("line {0} has a name that does not begin with {1}")]
    Prefix(usize, String),
    /// The lines of a family do not stand together, or it has two types.
    #[error("line {0} belongs to a family that ended before")]
    Scattered(usize),
    /// A series stands there twice.
    #[error("line {0} repeats a series")]
    Duplicate(usize),
}

/// Checks a text whose names must all begin with `prefix`; gives it back without other comments and empty lines.
pub fn check(text: &str, prefix: &str) -> Result<String, Invalid> {
    if text.len() > MAX_TEXT {
        return Err(Invalid::TooLong);
    }
    let mut checker = Checker { prefix, ..Checker::default() };
    let mut out = String::with_capacity(text.len() + 1);
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if checker.line(index + 1, line)? {
            out.push_str(line);
            out.push('\n');
        }
    }
    Ok(out)
}

#[derive(Default)]
struct Checker<'a> {
    prefix: &'a str,
    /// The family whose lines stand here, and its type.
    current: Option<(String, String)>,
    /// Families that ended.
    ended: BTreeSet<String>,
    /// What HELP and TYPE were given for.
    told: BTreeSet<(String, String)>,
    series: BTreeSet<(String, BTreeMap<String, String>)>,
}

impl Checker<'_> {
    /// True when the line is to be kept.
    fn line(&mut self, number: usize, line: &str) -> Result<bool, Invalid> {
        let wrong = || Invalid::Line(number);
        if line.trim().is_empty() {
            return Ok(false);
        }
        if let Some(comment) = line.strip_prefix('#') {
            return self.comment(number, comment);
        }
        let (name, labels) = sample(line).ok_or_else(wrong)?;
        self.owned(number, &name)?;
        let family = self.family_of(&name);
        self.enter(number, &family)?;
        if !self.series.insert((name, labels)) {
            return Err(Invalid::Duplicate(number));
        }
        if self.series.len() > MAX_SAMPLES { Err(Invalid::TooLong) } else { Ok(true) }
    }

    fn comment(&mut self, number: usize, comment: &str) -> Result<bool, Invalid> {
        let mut words = comment.trim_start().splitn(3, ' ');
        let keyword = words.next().unwrap_or_default();
        if !matches!(keyword, "HELP" | "TYPE") {
            return Ok(false);
        }
        let name = words.next().filter(|name| is_name(name, true)).ok_or(Invalid::Line(number))?;
        let rest = words.next().unwrap_or_default();
        self.owned(number, name)?;
        self.enter(number, name)?;
        if !self.told.insert((name.to_owned(), keyword.to_owned())) {
            return Err(Invalid::Scattered(number));
        }
        if keyword == "TYPE" {
            let known = matches!(rest, "counter" | "gauge" | "histogram" | "summary" | "untyped");
            // A type after samples of its family is an error of Prometheus' own reader.
            let late = self.series.iter().any(|(series, _)| series == name);
            if !known || late {
                return Err(Invalid::Line(number));
            }
            self.current = Some((name.to_owned(), rest.to_owned()));
        }
        Ok(true)
    }

    fn owned(&self, number: usize, name: &str) -> Result<(), Invalid> {
        let owned = name.starts_with(self.prefix);
        if owned { Ok(()) } else { Err(Invalid::Prefix(number, self.prefix.to_owned())) }
    }

    /// Of a histogram `x` samples are called `x_bucket`, `x_sum`, `x_count`; of a summary `x`, `x_sum`, `x_count`.
    fn family_of(&self, name: &str) -> String {
        let Some((family, kind)) = &self.current else { return name.to_owned() };
        let suffix = name.strip_prefix(family.as_str());
        let inside = match kind.as_str() {
            "histogram" => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
            "summary" => matches!(suffix, Some("" | "_sum" | "_count")),
            _ => false,
        };
        if inside { family.clone() } else { name.to_owned() }
    }

    fn enter(&mut self, number: usize, family: &str) -> Result<(), Invalid> {
        if self.current.as_ref().is_some_and(|(current, _)| current == family) {
            return Ok(());
        }
        if let Some((before, _)) = self.current.replace((family.to_owned(), String::new())) {
            self.ended.insert(before);
        }
        if self.ended.contains(family) { Err(Invalid::Scattered(number)) } else { Ok(()) }
    }
}

fn is_name(text: &str, colon: bool) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || (colon && c == ':');
    text.starts_with(first) && text.chars().all(|c| first(c) || c.is_ascii_digit())
}

type Labelled = (String, BTreeMap<String, String>);

/// Name and labels of a sample; `None` when it is none.
pub fn sample(line: &str) -> Option<Labelled> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, true) {
        return None;
    }
    let (labels, rest) = match rest.trim_start().strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?;
    let finite =
        value.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c)) && value.parse::<f64>().is_ok();
    let special = matches!(value, "NaN" | "+Inf" | "-Inf" | "Inf");
    let stamp = words.next().is_none_or(|stamp| stamp.parse::<i64>().is_ok());
    ((finite || special) && stamp && words.next().is_none()).then(|| (name.to_owned(), labels))
}

/// Labels up to the closing brace, and what stands behind it.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((found, rest));
        }
        let (name, value) = rest.split_once('=')?;
        let (value, behind) = quoted(value.trim_start())?;
        let name = name.trim();
        if !is_name(name, false) || found.insert(name.to_owned(), value).is_some() {
            return None;
        }
        rest = behind.trim_start();
        match rest.strip_prefix(',') {
            Some(behind) => rest = behind.trim_start(),
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
}

/// A quoted value without its escapes, and what stands behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other @ ('\\' | '"') => value.push(other),
                _ => return None,
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::series::Labels;

    #[test]
    fn a_text_of_all_types_is_taken_and_comments_go() {
        let text = "# HELP x_a Help with \\ and words.\n# TYPE x_a counter\nx_a{b=\"c\",} 1\nx_a{b=\"d\"} +Inf 123\n\n\
            # anything\n# TYPE x_h histogram\nx_h_bucket{le=\"+Inf\"} 1\nx_h_sum 1e-3\nx_h_count 1\nx_untold 0.5";
        let kept = check(text, "x_").unwrap();
        assert_eq!(kept.lines().count(), 9, "{kept}");
        assert_eq!(check(&kept, "x_").as_deref(), Ok(kept.as_str()));
    }

    #[test]
    fn what_would_break_a_scrape_is_refused() {
        for (text, why) in [
            ("x_a 1\nx_a 2\n", Invalid::Duplicate(2)),
            ("x_a{a=\"1\",b=\"2\"} 1\nx_a{b=\"2\",a=\"1\"} 2\n", Invalid::Duplicate(2)),
            ("x_a 1\nx_b 1\nx_a{l=\"\"} 1\n", Invalid::Scattered(3)),
            ("# TYPE x_a counter\n# TYPE x_a gauge\n", Invalid::Scattered(2)),
            ("x_a 1\n# TYPE x_a gauge\n", Invalid::Line(2)),
            ("# TYPE x_a number\n", Invalid::Line(1)),
            ("y_a 1\n", Invalid::Prefix(1, "x_".to_owned())),
            ("# HELP nftables_up 1\n", Invalid::Prefix(1, "x_".to_owned())),
            ("x_a\n", Invalid::Line(1)),
            ("x_a one\n", Invalid::Line(1)),
            ("x_a 1 2 3\n", Invalid::Line(1)),
            ("x_a{b=\"c} 1\n", Invalid::Line(1)),
            ("x_a{b=\"c\\x\"} 1\n", Invalid::Line(1)),
            ("x_a{b=\"c\" d=\"e\"} 1\n", Invalid::Line(1)),
            ("x_a{b=\"1\",b=\"2\"} 1\n", Invalid::Line(1)),
            ("x-a 1\n", Invalid::Line(1)),
        ] {
            assert_eq!(check(text, "x_"), Err(why), "{text:?}");
        }
        assert_eq!(check(&"x".repeat(MAX_TEXT + 1), "x"), Err(Invalid::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_is_checked_without_panic_and_what_is_kept_is_kept_again(text in "(x_[ab]|[{}\"=,\\\\ \n#1]|TYPE|gauge|.){0,40}") {
            if let Ok(kept) = check(&text, "x_") {
                prop_assert_eq!(check(&kept, "x_"), Ok(kept.clone()));
            }
        }

        #[test]
        fn labels_that_are_written_read_back(values in prop::collection::vec(any::<String>(), 0..4)) {
            let mut text = String::from("x_a{");
            let mut labels = Labels::new(&mut text);
            let names = ["a", "b", "c", "d"];
            for (name, value) in names.iter().zip(&values) {
                labels.add(name, value);
            }
            text.push_str("} 7");
            let (_, read) = sample(&text).unwrap();
            prop_assert_eq!(read.into_values().collect::<Vec<_>>(), values);
        }
    }
}
