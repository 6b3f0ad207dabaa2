//! What all records of a file have in common: the folder that they lie in, and their alignment.

use std::collections::BTreeMap;

use super::traces::{Central, Local, Traces};
use crate::canonical::Placed;
use crate::layout::Alignment;

/// A name without the root folder.
pub(super) fn strip<'n>(root: &str, name: &'n str) -> Option<&'n str> {
    name.strip_prefix(root)?.strip_prefix('/')
}

/// What stands where a name without the root folder does, whatever folder it is.
pub(super) fn below<'n>(root: &str, name: &'n str) -> Option<&'n str> {
    name.get(root.len().checked_add(1)?..)
}

fn folder(name: &str) -> &str {
    name.split_once('/').map_or("", |(folder, _)| folder)
}

/// The folder of the records: that of the first header and of the last entry of the directory. A
/// tensor may hold an archive, so the commonest folder counts only where those are damaged.
pub(super) fn likeliest_root(traces: &Traces) -> String {
    let first = traces.locals.first();
    let first = first.filter(|local| local.header_offset == 0);
    let first = first.map(|local| folder(&local.name));
    let last = traces.centrals.last().map(|central| folder(&central.name));
    if let Some(first) = first.filter(|_| first == last) {
        return first.to_owned();
    }
    let commonest = commonest_root(traces);
    let outer = [first, last].into_iter().flatten();
    let is_damaged = |name: &str| {
        let differing = name
            .bytes()
            .zip(commonest.bytes())
            .filter(|(one, other)| one != other);
        name.len() == commonest.len() && differing.count() <= 1
    };
    if outer.clone().any(is_damaged) {
        return commonest;
    }
    first.or(last).map_or(commonest, str::to_owned)
}

fn commonest_root(traces: &Traces) -> String {
    let locals = traces.locals.iter().map(|local| local.name.as_str());
    let centrals = traces.centrals.iter().map(|central| central.name.as_str());
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in locals.chain(centrals) {
        let count = counts.entry(folder(name)).or_default();
        *count = count.saturating_add(1);
    }
    let commonest = counts.into_iter().max_by_key(|(_, count)| *count);
    commonest.map_or_else(String::new, |(root, _)| root.to_owned())
}

/// The alignment that explains most of what is there, and whether it explains half of it: how far
/// payloads lie behind their headers, and the next headers behind them.
pub(super) fn likeliest_alignment(
    root: &str,
    locals: &[&Local],
    centrals: &[&Central],
) -> (Alignment, bool) {
    let explained = |alignment: Alignment| {
        let is_padded = |local: &&&Local| {
            let nbytes = local.descriptors.first().map_or(0, |found| found.nbytes);
            let placed = placed(root, &local.name, nbytes, local.header_offset);
            placed.payload_offset(alignment) == Some(local.payload_offset)
        };
        let is_followed = |(central, next): &(&&Central, &&Central)| {
            let placed = placed(root, &central.name, central.nbytes, central.header_offset);
            let end = placed.payload_offset(alignment).map(|offset| {
                offset
                    .saturating_add(central.nbytes)
                    .saturating_add(placed.descriptor_nbytes())
            });
            end == Some(next.header_offset)
        };
        let pairs = centrals.iter().zip(centrals.iter().skip(1));
        let padded = locals.iter().filter(is_padded).count();
        padded.saturating_add(pairs.filter(is_followed).count())
    };
    let default = Alignment::TORCH_DEFAULT;
    let mut best = (default, explained(default));
    for alignment in (0..=15).filter_map(|bit| Alignment::new(1 << bit).ok()) {
        let count = explained(alignment);
        if count > best.1 {
            best = (alignment, count);
        }
    }
    let pairs = centrals.len().saturating_sub(1);
    let all = locals.len().saturating_add(pairs);
    (best.0, best.1.saturating_mul(2) >= all)
}

fn placed<'a>(root: &'a str, name: &'a str, nbytes: u64, header_offset: u64) -> Placed<'a> {
    Placed {
        root,
        name: below(root, name).unwrap_or_default(),
        nbytes,
        header_offset,
    }
}
