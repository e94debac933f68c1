//! `from` and `to`: address blocks with exceptions.

use fw_policy::Block;
use ipnet::IpNet;

use crate::address::{CIDR_REMEDY, prefix, read_prefix};
use crate::field::{Field, List, Read};
use crate::finding::Reason;
use crate::report::Report;
use crate::text::quoted;

/// Reads the entries of a list that was written non-empty. What is invalid is left out, so that the rest matches.
pub(crate) fn read_blocks(list: &List<'_>, report: &mut Report) -> Vec<Block> {
    list.entries.iter().filter_map(|(index, entry)| read_block(*index, entry, report)).collect()
}

fn read_block(index: usize, entry: &Field<'_>, report: &mut Report) -> Option<Block> {
    if !entry.map(report) || entry.refuse_unknown(&["cidr", "except"], "the entry matches nothing", report) {
        return None;
    }
    // Both are read before one of them voids the block, so that the author sees all mistakes at once.
    let net = read_prefix(&entry.get("cidr"), "the entry matches nothing", report);
    let excepts = read_excepts(&entry.get("except"), report);
    let (net, excepts) = (net?, excepts?);
    let except = excepts.iter().filter_map(|except| place_except(net, except, report)).collect();
    Some(Block { index, net, except })
}

/// An exception as it was written.
struct Except<'v> {
    path: String,
    text: &'v str,
    net: IpNet,
}

/// All exceptions, or `None` when one of them is not usable: without it the block would open what
/// its author excluded, so the block is void.
fn read_excepts<'v>(field: &Field<'v>, report: &mut Report) -> Option<Vec<Except<'v>>> {
    let list = field.list(fw_crds::MAX_EXCEPTS, report);
    let (mut valid, mut readable) = (true, list.whole);
    let mut excepts = Vec::with_capacity(list.entries.len());
    for (_, entry) in list.entries {
        match entry.text(report) {
            Read::Valid(text) => match prefix(text) {
                Ok(net) => excepts.push(Except { path: entry.path, text, net }),
                Err(why) => {
                    valid = false;
                    let message = format_args!("{} {why}; its block matches nothing", quoted(text));
                    report.error(&entry.path, Reason::InvalidExcept, message, CIDR_REMEDY);
                }
            },
            Read::Missing | Read::Invalid => readable = false,
        }
    }
    if !readable {
        report.error(
            &field.path,
            Reason::InvalidExcept,
            "the exceptions cannot be read in full; their block matches nothing",
            "correct the list",
        );
    }
    (valid && readable).then_some(excepts)
}

/// Judges one exception against its block; one that has nothing to do with it is left out.
fn place_except(net: IpNet, except: &Except<'_>, report: &mut Report) -> Option<IpNet> {
    let Except { path, text, net: without } = except;
    // Host bits are cleared without a word, except where they may be what misled the author.
    let shown = without.to_string();
    let shown = if *text == shown { shown } else { format!("{text} means {shown}, which") };
    if without.contains(&net) {
        report.warning(
            path,
            Reason::ExceptCoversBlock,
            format_args!("{shown} covers the whole block {net}, so the block matches nothing"),
            "make the exception smaller than its block, or remove the block",
        );
        return Some(*without);
    }
    if !net.contains(without) {
        report.warning(
            path,
            Reason::ExceptOutsideBlock,
            format_args!("{shown} lies outside its block {net} and takes nothing from it"),
            "remove it: an exception counts for its own block only",
        );
        return None;
    }
    Some(*without)
}
