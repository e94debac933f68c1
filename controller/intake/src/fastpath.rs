//! `fastpath`: where packets are judged before nftables.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use fw_policy::{Fastpath, FastpathMode, IfName};
use serde_json::Value;

use crate::field::Field;
use crate::finding::Reason;
use crate::network::read_interface;
use crate::report::Report;
use crate::text::shown;
use crate::values::read_choice_or;

const MODES: [(&str, FastpathMode); 5] = [
    ("auto", FastpathMode::Auto),
    ("native", FastpathMode::Native),
    ("generic", FastpathMode::Generic),
    ("tcx", FastpathMode::Tcx),
    ("off", FastpathMode::Off),
];

/// Bits that indexes need at least: 255 of them.
const MIN_MASK_BITS: u32 = 8;

pub(crate) fn read_fastpath(field: &Field<'_>, report: &mut Report) -> Fastpath {
    if field.map(report) {
        for path in field.unknown_keys(&["mode", "interfaces", "markMask"]) {
            let message = "is not a field of fastpath; it is ignored";
            report.warning(&path, Reason::UnknownField, message, "write mode, interfaces and markMask");
        }
    }
    Fastpath {
        mode: read_mode(&field.get("mode"), "the default holds", report).unwrap_or_default(),
        interfaces: read_interfaces(&field.get("interfaces"), report),
        mark_mask: read_mask(&field.get("markMask"), report).unwrap_or(Fastpath::default().mark_mask),
    }
}

/// What holds for an interface whose own mode is not usable.
const COMMON: &str = "the mode of all interfaces holds";

/// Tools that read YAML 1.1, kubectl among them, make `false` of an unquoted `off`.
fn read_mode(field: &Field<'_>, effect: &str, report: &mut Report) -> Option<FastpathMode> {
    if field.raw() == Some(&Value::Bool(false)) {
        return Some(FastpathMode::Off);
    }
    read_choice_or(field, &MODES, effect, report).valid()
}

fn read_interfaces(field: &Field<'_>, report: &mut Report) -> BTreeMap<IfName, FastpathMode> {
    let mut modes = BTreeMap::new();
    for (_, entry) in field.list(fw_crds::MAX_FASTPATH_INTERFACES, report).entries {
        let known = ["name", "mode"];
        if !entry.map(report) || entry.refuse_unknown(&known, "the entry is ignored", report) {
            continue;
        }
        let (name, mode) = (entry.get("name"), entry.get("mode"));
        if mode.is_missing() {
            let message = format_args!("is missing; {COMMON}");
            report.error(&mode.path, Reason::InvalidValue, message, "write auto, native, generic, tcx, off");
        }
        let (name, mode) = (read_interface(&name, report), read_mode(&mode, COMMON, report));
        let (Some(name), Some(mode)) = (name, mode) else { continue };
        match modes.entry(name) {
            Entry::Vacant(free) => {
                free.insert(mode);
            }
            Entry::Occupied(taken) => {
                let message =
                    format_args!("there is a mode for {} already; the first one counts", taken.key());
                report.error(&entry.path, Reason::DuplicateEntry, message, "remove one of the two");
            }
        }
    }
    modes
}

/// `0x00ffffff`, or the number that YAML makes of it. The bits must be adjacent, because an index is shifted there.
fn read_mask(field: &Field<'_>, report: &mut Report) -> Option<u32> {
    let value = field.raw()?;
    let mask = match value {
        Value::String(text) => text
            .strip_prefix("0x")
            .filter(|digits| (1..=8).contains(&digits.len()) && !digits.starts_with('+'))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok()),
        number => number.as_u64().and_then(|number| u32::try_from(number).ok()),
    };
    let is_usable = |mask: &u32| {
        let width =
            u32::BITS - mask.leading_zeros() - mask.trailing_zeros().min(u32::BITS - mask.leading_zeros());
        mask.count_ones() == width && width >= MIN_MASK_BITS
    };
    let usable = mask.filter(is_usable);
    if usable.is_none() {
        let message = format_args!("{} is no usable mask; the default holds", shown(value));
        let remedy = format_args!("write {MIN_MASK_BITS} or more adjacent bits, such as \"0x00ffffff\"");
        report.error(&field.path, Reason::InvalidValue, message, remedy);
    }
    usable
}
