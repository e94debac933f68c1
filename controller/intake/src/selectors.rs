//! `toFQDNs`: names, patterns and regular expressions.

use fw_policy::FqdnSelector;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use regex::bytes::RegexBuilder;

use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::report::Report;
use crate::text::{one_line, quoted};

const KEYS: [&str; 3] = ["matchName", "matchPattern", "matchRegex"];
const VOID: &str = "the entry matches nothing";

/// How many regular expressions a policy may still have: each has to be compiled before it is believed.
pub(crate) struct Expressions {
    left: usize,
}

impl Default for Expressions {
    fn default() -> Self {
        Self { left: fw_crds::MAX_REGEXES }
    }
}

/// Reads the selectors of a rule. However few are left, the rule never means "any destination".
pub(crate) fn read_selectors(
    field: &Field<'_>,
    expressions: &mut Expressions,
    report: &mut Report,
) -> Vec<FqdnSelector> {
    let list = field.list(fw_crds::MAX_SELECTORS, report);
    if list.empty {
        report.warning(
            &field.path,
            Reason::InvalidSelector,
            "is empty, so the rule matches no destination",
            "name a destination, or remove toFQDNs if every destination is meant",
        );
    }
    let mut selectors: Vec<FqdnSelector> =
        list.entries.iter().flat_map(|(_, entry)| read_entry(entry, expressions, report)).collect();
    selectors.sort();
    selectors.dedup();
    selectors
}

/// One entry: a name, a pattern, an expression, or several of them, which then all count.
fn read_entry(entry: &Field<'_>, expressions: &mut Expressions, report: &mut Report) -> Vec<FqdnSelector> {
    if !entry.map(report) || entry.refuse_unknown(&KEYS, VOID, report) {
        return Vec::new();
    }
    let fields = KEYS.map(|key| entry.get(key));
    let [name, pattern, regex] = &fields;
    let written = [name, pattern, regex].map(|field| non_empty(field.text(report)));
    let given: Vec<&str> = KEYS
        .into_iter()
        .zip(&written)
        .filter(|(_, read)| matches!(read, Read::Valid(_)))
        .map(|(key, _)| key)
        .collect();
    if written.iter().all(|read| *read == Read::Missing) {
        report.error(
            &entry.path,
            Reason::InvalidSelector,
            format_args!("has none of {}; {VOID}", KEYS.join(", ")),
            "write one of them",
        );
    }
    if given.len() > 1 {
        report.warning(
            &entry.path,
            Reason::InvalidSelector,
            format_args!("has {}; each counts", given.join(" and ")),
            "write them as entries of their own",
        );
    }
    let [exact, wild, free] = written.map(Read::valid);
    let exact = exact.and_then(|text| read_name(name, text, false, report)).map(FqdnSelector::Name);
    let wild = wild.and_then(|text| read_name(pattern, text, true, report)).map(FqdnSelector::Pattern);
    let free = free.and_then(|text| read_regex(regex, text, expressions, report)).map(FqdnSelector::Regex);
    exact.into_iter().chain(wild).chain(free).collect()
}

/// The Go types wrote an unused selector as "".
fn non_empty(read: Read<&str>) -> Read<&str> {
    if read == Read::Valid("") { Read::Missing } else { read }
}

/// A name in its normal form, or `None` when it is none.
pub(crate) fn dns_name(text: &str) -> Option<String> {
    ascii(text).filter(|name| is_name(name, false))
}

/// A name or pattern in its normal form: A-labels, lower case, no trailing dot.
fn read_name(field: &Field<'_>, text: &str, pattern: bool, report: &mut Report) -> Option<String> {
    let name = ascii(text).filter(|name| is_name(name, pattern));
    if let Some(name) = &name {
        if pattern {
            warn_if_wide(field, name, report);
        }
    } else {
        report.error(
            &field.path,
            Reason::InvalidSelector,
            format_args!(
                "{} is not a DNS {}; {VOID}",
                quoted(text),
                if pattern { "pattern" } else { "name" }
            ),
            if pattern {
                "use letters, digits, '-', '_', '*' and dots, such as *.example.com"
            } else {
                "use letters, digits, '-', '_' and dots, such as www.example.com; '*' needs matchPattern"
            },
        );
    }
    name
}

/// Lower case, without trailing dot, and labels with letters beyond ASCII as their A-labels (RFC 5891, by the mapping
/// of UTS 46). `None` where there is no such form.
fn ascii(text: &str) -> Option<String> {
    if text.is_ascii() {
        return Some(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase());
    }
    // As far as a name can be long; the conversion is not linear.
    if text.len() > 4 * MAX_NAME {
        return None;
    }
    let uts46 = Uts46::new();
    let converted =
        uts46.to_ascii(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore).ok()?;
    Some(converted.strip_suffix('.').unwrap_or(&converted).to_owned())
}

/// RFC 1035: 63 bytes a label, 253 characters a name. A `*` may stand for dots, so labels of patterns are open; an
/// A-label with a `*` in it is none.
fn is_name(name: &str, pattern: bool) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || (pattern && c == '*');
    let label = |label: &str| {
        !label.is_empty()
            && label.chars().all(allowed)
            && (pattern || label.len() <= 63)
            && !(label.starts_with("xn--") && label.contains('*'))
    };
    name.len() <= MAX_NAME && name.split('.').all(label)
}

/// Characters of a name.
const MAX_NAME: usize = 253;

/// An expression that an engine linear in the name can match, within bounds on its text and its automaton.
fn read_regex(
    field: &Field<'_>,
    text: &str,
    expressions: &mut Expressions,
    report: &mut Report,
) -> Option<String> {
    let Some(left) = expressions.left.checked_sub(1) else {
        let message = format_args!("the policy has more than {} expressions; {VOID}", fw_crds::MAX_REGEXES);
        report.error(&field.path, Reason::TooMany, message, "use matchPattern, or split the policy");
        return None;
    };
    expressions.left = left;
    let error = |message: &str, report: &mut Report| {
        report.error(
            &field.path,
            Reason::InvalidSelector,
            format_args!("{message}; {VOID}"),
            r"write an expression over the whole name, such as [a-z]+[0-9]*\.example\.com; no look-around, no back-references",
        );
    };
    if text.len() > fw_crds::MAX_REGEX {
        error(&format!("has {} characters, more than {}", text.len(), fw_crds::MAX_REGEX), report);
        return None;
    }
    // By itself, and once more as it is matched: `a)|(?:b` would otherwise leave its group.
    for text in [text, &format!(r"\A(?:{text})\z")] {
        let built = RegexBuilder::new(text).unicode(false).size_limit(REGEX_SIZE).build();
        if let Err(reason) = built {
            // The last line tells what is wrong, those before it show where.
            let reason = reason.to_string();
            let last = reason.lines().last().unwrap_or_default();
            error(
                &format!(
                    "is no regular expression: {}",
                    one_line(last.trim_start_matches("error: ").trim_end_matches('.'))
                ),
                report,
            );
            return None;
        }
    }
    if has_capital(text) {
        let message = "has capitals, which no name has: names are compared in lower case";
        report.warning(&field.path, Reason::InvalidSelector, message, "write it in lower case");
    }
    Some(text.to_owned())
}

/// Octets of a compiled expression; the bound of the matcher.
const REGEX_SIZE: usize = 256 * 1024;

/// True for a capital that stands for itself, as in `API` and not in `\W`.
fn has_capital(regex: &str) -> bool {
    let mut escaped = false;
    regex.chars().any(|c| {
        let capital = c.is_ascii_uppercase() && !escaped;
        escaped = c == '\\' && !escaped;
        capital
    })
}

fn warn_if_wide(field: &Field<'_>, pattern: &str, report: &mut Report) {
    let Some(rest) = pattern.strip_prefix('*') else { return };
    if rest.bytes().all(|byte| byte == b'*') {
        let message = "a lone * matches every name there is";
        report.warning(
            &field.path,
            Reason::WideSelector,
            message,
            "write *.example.com for the names of one domain",
        );
    } else if !rest.starts_with(['.', '*']) {
        report.warning(
            &field.path,
            Reason::WideSelector,
            format_args!("{} also matches names of other domains such as bad{rest}", quoted(pattern)),
            format_args!("write *.{rest} for the names below {rest}"),
        );
    }
}
