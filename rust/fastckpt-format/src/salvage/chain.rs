//! Which records follow each other from the beginning of the file on.
//!
//! Without a directory, a header tells of a record only where a record has to be: behind the one before.
//! Anywhere else it may be part of a tensor. Records that are damaged are passed over where their sizes
//! are known from data.pkl, since torch's layout follows from names and sizes.

use std::collections::{HashMap, HashSet};

use super::claims::Claim;
use crate::archive::{SERIALIZATION_ID_NBYTES, fixed_payload};
use crate::canonical::Placed;
use crate::layout::Alignment;

/// Lengths of what may lie between two records: nothing, or a descriptor of one of its forms.
const GAPS_NBYTES: [u64; 5] = [0, 16, 24, 12, 20];

/// The largest element there is, a complex128: a record may be longer than its storage by less than one.
const MAX_ITEM_NBYTES: u64 = 16;

/// What is the same for all records.
pub(super) struct Archive<'a> {
    pub(super) root: &'a str,
    pub(super) alignment: Alignment,
    /// Of the storages, by their keys; empty where data.pkl is lost.
    pub(super) sizes: &'a HashMap<String, u64>,
}

/// The place behind a record.
#[derive(Default)]
struct Place {
    /// Where the record's payload ends.
    end: u64,
    /// Size of the descriptor that torch writes there.
    descriptor_nbytes: u64,
    /// The name of the record that torch writes next, if that is known.
    next: Option<String>,
    /// Whether the place follows from the layout alone. Where the bytes in between are of another number,
    /// it may be a place inside a tensor: what is there has to be the record that is expected.
    is_computed: bool,
}

impl Archive<'_> {
    /// The header offsets of the records that the chain leads to.
    pub(super) fn chained(&self, claims: &[Claim]) -> HashSet<u64> {
        let by_offset: HashMap<u64, &Claim> = claims
            .iter()
            .map(|claim| (claim.header_offset, claim))
            .collect();
        let mut offsets = HashSet::new();
        let mut place = Place::default();
        loop {
            let at = |gap: &u64| by_offset.get(&place.end.checked_add(*gap)?);
            let is_next = |claim: &&&Claim| {
                let is_expected = place.next.as_deref() == Some(claim.any_name());
                self.has_right_size(claim) && (is_expected || !place.is_computed)
            };
            let claim = GAPS_NBYTES.iter().find_map(at).filter(is_next);
            place = if let Some(claim) = claim {
                offsets.insert(claim.header_offset);
                // At least a header further, so this ends.
                self.behind(
                    claim.any_name(),
                    claim.header_offset,
                    claim.nbytes.unwrap_or(0),
                    claim.end(),
                )
            } else if let Some(behind) = self.pass_over(&place) {
                behind
            } else {
                return offsets;
            };
        }
    }

    fn behind(&self, name: &str, header_offset: u64, nbytes: u64, end: u64) -> Place {
        let placed = Placed {
            root: self.root,
            name,
            nbytes,
            header_offset,
        };
        Place {
            end,
            descriptor_nbytes: placed.descriptor_nbytes(),
            next: self.name_behind(name),
            is_computed: false,
        }
    }

    /// The place behind the next record, which is not there.
    fn pass_over(&self, place: &Place) -> Option<Place> {
        let name = place.next.as_deref()?;
        let header_offset = place.end.checked_add(place.descriptor_nbytes)?;
        let nbytes = self.nbytes(name)?;
        let placed = Placed {
            root: self.root,
            name,
            nbytes,
            header_offset,
        };
        let end = placed.payload_offset(self.alignment)?.checked_add(nbytes)?;
        Some(Place {
            is_computed: true,
            ..self.behind(name, header_offset, nbytes, end)
        })
    }

    fn nbytes(&self, name: &str) -> Option<u64> {
        match name.strip_prefix("data/") {
            Some(key) => self.sizes.get(key).copied(),
            None if name == SERIALIZATION_ID => Some(SERIALIZATION_ID_NBYTES as u64),
            None => fixed_payload(name, self.alignment).map(|payload| payload.len() as u64),
        }
    }

    /// Whether a record is as long as data.pkl says, if that says it.
    fn has_right_size(&self, claim: &Claim) -> bool {
        let key = claim.any_name().strip_prefix("data/");
        let stated = key.and_then(|key| self.sizes.get(key));
        let found = claim.nbytes.unwrap_or(0);
        stated.is_none_or(|stated| {
            found
                .checked_sub(*stated)
                .is_some_and(|more| more < MAX_ITEM_NBYTES)
        })
    }

    /// What torch writes behind a record, if data.pkl says which storages there are.
    fn name_behind(&self, name: &str) -> Option<String> {
        let storage = |number: u64| {
            let key = number.to_string();
            if self.sizes.contains_key(&key) {
                format!("data/{key}")
            } else {
                "version".to_owned()
            }
        };
        let fixed = match name {
            _ if self.sizes.is_empty() => return None,
            "data.pkl" => ".format_version",
            ".format_version" => ".storage_alignment",
            ".storage_alignment" => "byteorder",
            "version" => SERIALIZATION_ID,
            "byteorder" => return Some(storage(0)),
            _ => {
                let number: u64 = name.strip_prefix("data/")?.parse().ok()?;
                return Some(storage(number.checked_add(1)?));
            }
        };
        Some(fixed.to_owned())
    }
}

const SERIALIZATION_ID: &str = ".data/serialization_id";
