//! Numbers and words with bounds.

use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::report::Report;
use crate::text::quoted;

/// A number in bounds; otherwise the default holds, and a finding says so.
pub(crate) fn read_bounded<T>(field: &Field<'_>, min: T, max: T, report: &mut Report) -> Option<T>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display + Copy,
{
    let number = field.integer(report).valid()?;
    let value = T::try_from(number).ok().filter(|value| *value >= min && *value <= max);
    if value.is_none() {
        let message = format_args!("{number} is out of bounds; the default holds");
        report.error(&field.path, Reason::InvalidValue, message, format_args!("write {min} to {max}"));
    }
    value
}

/// One of some words; otherwise the default holds, and a finding says so.
pub(crate) fn read_choice<T: Copy>(
    field: &Field<'_>,
    choices: &[(&str, T)],
    report: &mut Report,
) -> Option<T> {
    read_choice_or(field, choices, "the default holds", report).valid()
}

/// One of some words; the finding about another one says what becomes of it.
pub(crate) fn read_choice_or<T: Copy>(
    field: &Field<'_>,
    choices: &[(&str, T)],
    effect: &str,
    report: &mut Report,
) -> Read<T> {
    let text = match field.text_or(effect, report) {
        Read::Valid(text) => text,
        Read::Missing => return Read::Missing,
        Read::Invalid => return Read::Invalid,
    };
    let choice = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    if choice.is_none() {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let message = format_args!("{} is none of the choices; {effect}", quoted(text));
        report.error(&field.path, Reason::InvalidValue, message, format_args!("write {}", words.join(", ")));
    }
    choice.map_or(Read::Invalid, Read::Valid)
}
