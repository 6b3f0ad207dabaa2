//! Which name a record has, where its local header and the directory disagree or one of them is lost.
//!
//! A name has no checksum. Two that agree are believed. One alone is believed where it fits in between
//! its neighbours: torch numbers storages in the order in which it writes them. (Before 2.1 it wrote them
//! in the order of their numbers as text.)

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use super::claims::{Assembly, Claim};
use crate::zip::DESCRIPTOR64_NBYTES;

/// The records that torch writes beside the storages, in any of its versions.
const FIXED: [&str; 8] = [
    "data.pkl",
    ".format_version",
    ".storage_alignment",
    "byteorder",
    "version",
    ".data/version",
    ".data/serialization_id",
    "constants.pkl",
];

/// Settles the name of each claim; `None` where it cannot be known, or where two have the same.
pub(super) fn settle(assembly: &Assembly) -> Vec<Option<String>> {
    let mut names = names_by_order(assembly);
    drop_duplicates(&mut names, &assembly.claims);
    names
}

fn names_by_order(assembly: &Assembly) -> Vec<Option<String>> {
    // Records whose size is lost have names all the same, and show which their neighbours have.
    let rejected = assembly.rejected.iter().map(|(claim, _)| (claim, false));
    let claims = assembly.claims.iter().map(|claim| (claim, true));
    let mut all: Vec<(&Claim, bool)> = claims.chain(rejected).collect();
    all.sort_by_key(|(claim, _)| claim.header_offset);
    let before = |position: usize| {
        let (own, _) = all.get(position)?;
        let (before, _) = all.get(position.checked_sub(1)?)?;
        are_adjacent(before, own).then(|| before.any_name())
    };
    let after = |position: usize| {
        let (own, _) = all.get(position)?;
        let (after, _) = all.get(position.checked_add(1)?)?;
        are_adjacent(own, after).then(|| after.any_name())
    };
    let pairs = (0..all.len()).filter_map(|position| {
        let own = all.get(position)?.0.any_name();
        Some((own, after(position)?))
    });
    let order = Order::of(all.iter().map(|(claim, _)| claim.any_name()), pairs);
    let placed = all.iter().enumerate().filter(|(_, (_, placed))| *placed);
    placed
        .map(|(position, (claim, _))| {
            let fits = |name: &str| order.fits(name, before(position), after(position));
            name_of(claim, fits)
        })
        .collect()
}

/// Whether one record follows the other, with no more than a descriptor between them.
fn are_adjacent(before: &Claim, after: &Claim) -> bool {
    let gap = after.header_offset.checked_sub(before.end());
    before.nbytes.is_some() && gap.is_some_and(|gap| gap <= DESCRIPTOR64_NBYTES)
}

fn name_of(claim: &Claim, fits: impl Fn(&str) -> bool) -> Option<String> {
    if claim.has_two_witnesses() {
        return claim.listed_name.clone();
    }
    let mut fitting = [&claim.listed_name, &claim.header_name]
        .into_iter()
        .flatten()
        .filter(|name| fits(name));
    match (fitting.next(), fitting.next()) {
        (Some(name), None) => Some(name.clone()),
        _ => None,
    }
}

/// In which order the storages of a file lie.
enum Order<'a> {
    /// 9, 10, 11.
    Numbers,
    /// 1, 10, 11, 2: whatever keys there are, sorted as text.
    Text(BTreeSet<&'a str>),
}

impl<'a> Order<'a> {
    /// Numbers, unless the pairs of neighbours show otherwise: a wrong name contradicts both orders.
    fn of(
        names: impl Iterator<Item = &'a str>,
        pairs: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let (mut not_numbers, mut not_text, mut is_text) = (0_usize, 0_usize, false);
        let keys = pairs.filter_map(|(before, after)| key(before).zip(key(after)));
        for (before, after) in keys {
            not_numbers = not_numbers.saturating_add(usize::from(!follows(before, after)));
            not_text = not_text.saturating_add(usize::from(before >= after));
            is_text |= after.strip_suffix('0') == Some(before);
        }
        // Behind 1 comes 10 in any file in the order of text, and damage makes no name longer.
        if is_text && not_numbers >= not_text.saturating_mul(4) {
            Self::Text(names.filter_map(key).collect())
        } else {
            Self::Numbers
        }
    }

    /// Whether a name fits in between its neighbours; `None` where nothing is known of one.
    fn fits(&self, name: &str, before: Option<&str>, after: Option<&str>) -> bool {
        if FIXED.contains(&name) {
            return true;
        }
        let Some(own) = key(name) else {
            return false;
        };
        match (before.map(key), after.map(key)) {
            (Some(Some(before)), Some(Some(after))) => {
                self.is_next(before, own) && self.is_next(own, after)
            }
            (Some(Some(before)), _) => self.is_next(before, own),
            (Some(None), Some(Some(after))) => own == "0" && self.is_next(own, after),
            (Some(None), _) => own == "0",
            (None, Some(Some(after))) => self.is_next(own, after),
            (None, _) => false,
        }
    }

    fn is_next(&self, before: &str, after: &str) -> bool {
        match self {
            Self::Numbers => follows(before, after),
            Self::Text(keys) => {
                let behind = (Bound::Excluded(before), Bound::Unbounded);
                keys.range::<str, _>(behind).next() == Some(&after)
            }
        }
    }
}

/// The key of a storage.
fn key(name: &str) -> Option<&str> {
    let key = name.strip_prefix("data/")?;
    let is_number = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(key)
}

fn follows(before: &str, after: &str) -> bool {
    let number = |key: &str| key.parse::<u64>().ok();
    number(before)
        .and_then(|number| number.checked_add(1))
        .is_some_and(|next| number(after) == Some(next))
}

/// How many records have each name, which readers look up without regard to ASCII case.
fn counts(names: &[Option<String>]) -> HashMap<String, usize> {
    let mut counts: HashMap<String, usize> = HashMap::with_capacity(names.len());
    for name in names.iter().flatten() {
        let count = counts.entry(name.to_ascii_lowercase()).or_default();
        *count = count.saturating_add(1);
    }
    counts
}

/// Of several records of one name, keeps the one that header and directory agree on.
fn drop_duplicates(names: &mut [Option<String>], claims: &[Claim]) {
    let all = counts(names);
    let is_witnessed = |claim: &Claim| claim.has_two_witnesses();
    let witnessed: Vec<Option<String>> = names
        .iter()
        .zip(claims)
        .map(|(name, claim)| name.clone().filter(|_| is_witnessed(claim)))
        .collect();
    let witnessed = counts(&witnessed);
    for (slot, claim) in names.iter_mut().zip(claims) {
        let Some(name) = slot.as_ref().map(|name| name.to_ascii_lowercase()) else {
            continue;
        };
        let is_only_one = all.get(&name) == Some(&1);
        let is_believed = is_witnessed(claim) && witnessed.get(&name) == Some(&1);
        if !is_only_one && !is_believed {
            *slot = None;
        }
    }
}
