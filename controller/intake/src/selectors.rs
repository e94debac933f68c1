//! `toFQDNs`: names and patterns.

use fw_policy::FqdnSelector;

use crate::field::{Field, Read};
use crate::finding::Reason;
use crate::report::Report;
use crate::text::quoted;

const VOID: &str = "the entry matches nothing";

/// Reads the selectors of a rule. However few are left, the rule never means "any destination".
pub(crate) fn read_selectors(field: &Field<'_>, report: &mut Report) -> Vec<FqdnSelector> {
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
        list.entries.iter().flat_map(|(_, entry)| read_entry(entry, report)).collect();
    selectors.sort();
    selectors.dedup();
    selectors
}

/// One entry: a name, a pattern, or both, which then both count.
fn read_entry(entry: &Field<'_>, report: &mut Report) -> Vec<FqdnSelector> {
    if !entry.map(report) || entry.refuse_unknown(&["matchName", "matchPattern"], VOID, report) {
        return Vec::new();
    }
    let (name, pattern) = (entry.get("matchName"), entry.get("matchPattern"));
    let written = [&name, &pattern].map(|field| non_empty(field.text(report)));
    match &written {
        [Read::Missing, Read::Missing] => report.error(
            &entry.path,
            Reason::InvalidSelector,
            format_args!("has neither matchName nor matchPattern; {VOID}"),
            "write one of them",
        ),
        [Read::Valid(_), Read::Valid(_)] => report.warning(
            &entry.path,
            Reason::InvalidSelector,
            "has both matchName and matchPattern; both count",
            "write them as two entries",
        ),
        _ => {}
    }
    let [exact, wild] = written;
    let exact = exact.valid().and_then(|text| read_name(&name, text, false, report)).map(FqdnSelector::Name);
    let wild =
        wild.valid().and_then(|text| read_name(&pattern, text, true, report)).map(FqdnSelector::Pattern);
    exact.into_iter().chain(wild).collect()
}

/// The Go types wrote an unused selector as "".
fn non_empty(read: Read<&str>) -> Read<&str> {
    if read == Read::Valid("") { Read::Missing } else { read }
}

/// A name or pattern in its normal form: lower case, no trailing dot.
fn read_name(field: &Field<'_>, text: &str, pattern: bool, report: &mut Report) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || (pattern && c == '*');
    let labels = name.split('.').all(|label| !label.is_empty() && label.chars().all(allowed));
    // RFC 1035: 63 bytes a label, 253 characters a name. A `*` may stand for dots, so labels of patterns are open.
    let lengths = name.len() <= 253 && (pattern || name.split('.').all(|label| label.len() <= 63));
    if !labels || !lengths {
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
        return None;
    }
    if pattern {
        warn_if_wide(field, &name, report);
    }
    Some(name)
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
