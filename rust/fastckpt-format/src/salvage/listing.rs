//! What is left of the directory, and which places its entries mean.

use std::collections::{HashMap, HashSet};

use super::layout::strip;
use super::traces::{Central, Traces};

/// Entries that are looked at for one place. More than two are made up.
const MAX_ALIKE: usize = 4;

/// The entries of the file's directory.
pub(super) struct Listing<'a> {
    pub(super) entries: Vec<&'a Central>,
    /// Whether none is missing. Then what they do not list is no record.
    pub(super) is_whole: bool,
    /// How many bytes further the directory lies than it says itself.
    moved: i64,
}

/// What header and descriptor say of a record: name, size and CRC.
type Identity<'a> = (&'a str, u64, u32);

impl<'a> Listing<'a> {
    /// The entries of the directory, if that is whole; else all that are left, but for those of archives
    /// inside tensors, as far as these are whole.
    pub(super) fn new(traces: &'a Traces, root: &str, file_nbytes: u64) -> Self {
        let directories = traces.directories(file_nbytes);
        let whole = directories.iter().rev().find(|found| found.is_ours);
        let mut is_ours = vec![whole.is_none(); traces.centrals.len()];
        for found in &directories {
            let is_it = whole.is_some_and(|whole| whole == found);
            if let Some(flags) = is_ours.get_mut(found.entries.clone()) {
                flags.fill(is_it);
            }
        }
        // A name with another folder in a whole directory is damaged, not another archive's.
        let is_listed = |central: &Central| whole.is_some() || strip(root, &central.name).is_some();
        let entries = traces.centrals.iter().zip(is_ours);
        let entries = entries.filter(|(central, is_ours)| *is_ours && is_listed(central));
        Self {
            entries: entries.map(|(central, _)| central).collect(),
            is_whole: whole.is_some(),
            moved: whole.map_or(0, |whole| whole.moved),
        }
    }

    /// The entries by the header offsets that they mean, the last first: a directory lies behind all
    /// records.
    pub(super) fn by_place(&self, traces: &Traces) -> HashMap<u64, Vec<&'a Central>> {
        let locals = traces.locals.iter();
        let headers: HashSet<u64> = locals.map(|local| local.header_offset).collect();
        let mut places: HashMap<u64, Vec<&Central>> = HashMap::new();
        let mut add = |offset: u64, central: &'a Central| {
            let same_place = places.entry(offset).or_default();
            if same_place.len() < MAX_ALIKE {
                same_place.push(central);
            }
        };
        let mut astray = Vec::new();
        for central in self.entries.iter().rev() {
            // Where bytes were cut out or put in, the records behind that place have moved.
            let stated = central.header_offset;
            let moved = stated.checked_add_signed(self.moved).unwrap_or(stated);
            if headers.contains(&moved) {
                add(moved, central);
            } else if headers.contains(&stated) {
                add(stated, central);
            } else {
                astray.push(*central);
            }
        }
        let identities = if self.is_whole && !astray.is_empty() {
            headers_by_identity(traces)
        } else {
            HashMap::new()
        };
        for central in astray {
            let identity = (central.name.as_str(), central.nbytes, central.crc32);
            match identities.get(&identity) {
                // It is the offset that is damaged.
                Some(Some(offset)) => add(*offset, central),
                _ => add(central.header_offset, central),
            }
        }
        places
    }
}

/// The header offsets of records by what headers and descriptors say of them; `None` where several say the
/// same.
fn headers_by_identity(traces: &Traces) -> HashMap<Identity<'_>, Option<u64>> {
    let mut identities = HashMap::new();
    for local in &traces.locals {
        for stated in local.descriptors.iter().chain(&local.stated) {
            let identity = (local.name.as_str(), stated.nbytes, stated.crc32);
            identities
                .entry(identity)
                .and_modify(|offset| *offset = None)
                .or_insert(Some(local.header_offset));
        }
    }
    identities
}
