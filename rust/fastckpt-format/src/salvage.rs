//! The records of a damaged archive, as far as what is left of it vouches for them.
//!
//! An archive says most things twice: a record's name and place in its local header and in the
//! directory, its CRC in its data descriptor and in the directory. Here each structure is found by its
//! signature and read by itself, and what they say is put together. Nothing of it is trusted: a record
//! counts only where its bytes have a CRC that the file states for it, and where its name is certain.
//!
//! [`Search`] looks through the file, [`Candidates`] says which bytes have to be summed, and
//! [`Candidates::judge`] what the sums show. Nothing here reads a file.

mod chain;
mod claims;
mod layout;
mod listing;
mod naming;
mod traces;

use std::collections::HashMap;

use self::claims::{Assembly, Claim, assemble};
use self::naming::settle;
use self::traces::Traces;
use crate::archive::{SERIALIZATION_ID_NBYTES, SaveMark, serialization_id};
use crate::index::{Entry, Index};
use crate::layout::MAX_NAME_NBYTES;
use crate::zip::{CENTRAL_NBYTES, DESCRIPTOR64_NBYTES};

/// How many bytes [`Search::look`] wants to see behind those that it looks for structures in: the
/// longest entry of a directory, without its comment.
pub const LOOKAHEAD_NBYTES: usize = CENTRAL_NBYTES
    .saturating_add(MAX_NAME_NBYTES)
    .saturating_add(u16::MAX as usize);

/// Records whose two CRCs differ and of which the bytes match neither are tried both ways against the
/// hash over all CRCs, up to so many.
const MAX_UNDECIDED: usize = 8;
const PICKLE: &str = "data.pkl";
/// The record with a hash over the CRCs of all others, and its size: two halves of 20 digits.
const HASH_RECORD: &str = ".data/serialization_id";
/// Where in it the hash begins.
const HASH_START: usize = 20;

/// Looks through a file for zip structures.
#[derive(Debug, Default)]
pub struct Search {
    traces: Traces,
}

impl Search {
    /// Looks for structures that begin in the first `step` bytes of `window`, which are those of the
    /// file from `offset` on, up to [`LOOKAHEAD_NBYTES`] more than `step` of them. To be called in file
    /// order, each position once.
    pub fn look(&mut self, offset: u64, window: &[u8], step: usize) {
        self.traces.look(offset, window, step);
    }

    /// The place of data.pkl, which torch writes first: the sizes of the storages stand in it.
    #[must_use]
    pub fn pickle(&self, file_nbytes: u64) -> Option<Entry> {
        let assembly = assemble(&self.traces, file_nbytes, &HashMap::new());
        let first = assembly.claims.into_iter().next()?;
        (first.any_name() == PICKLE).then(|| entry(&first, PICKLE.to_owned()))
    }

    /// Puts together what was found in a file of this size. `sizes` are those of storages by their
    /// keys, as far as data.pkl says them: with them, more records can be told from parts of tensors.
    #[must_use]
    pub fn finish(self, file_nbytes: u64, sizes: &HashMap<String, u64>) -> Candidates {
        let assembly = assemble(&self.traces, file_nbytes, sizes);
        let names = settle(&assembly);
        Candidates {
            assembly,
            names,
            file_nbytes,
        }
    }
}

/// The records that a damaged file may have.
#[derive(Debug)]
pub struct Candidates {
    assembly: Assembly,
    names: Vec<Option<String>>,
    file_nbytes: u64,
}

/// A record that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Its name, without the root folder; empty where that is lost too.
    pub record: String,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its size in bytes, if that is known.
    pub nbytes: Option<u64>,
    /// The CRC-32 that the file states.
    pub expected: Option<u32>,
    /// The CRC-32 of the bytes that are there.
    pub found: Option<u32>,
    /// Why.
    pub reason: String,
}

/// What can be had of a damaged file.
#[derive(Debug)]
pub struct Salvage {
    /// The records whose bytes and names are certain.
    pub index: Index,
    /// All others that something is known of, in file order.
    pub lost: Vec<Lost>,
    /// Whether a hash over the CRCs of all records, which is a record itself, shows that none is
    /// missing and that each is the one that was written in its place.
    pub is_complete: bool,
}

impl Candidates {
    /// All of them under made-up names, to take their CRCs. Where one has the CRC that stands here, that
    /// is what [`Candidates::judge`] wants to hear of it.
    #[must_use]
    pub fn index(&self) -> Index {
        let claims = self.assembly.claims.iter().enumerate();
        let entries = claims.map(|(position, claim)| entry(claim, position.to_string()));
        Index::of_records(
            self.assembly.root.clone(),
            entries.collect(),
            self.file_nbytes,
        )
    }

    /// The position of the record that the hash of all CRCs is in, and that hash has to be read from.
    #[must_use]
    pub fn hash_record(&self) -> Option<usize> {
        let is_it = |name: &Option<String>| name.as_deref() == Some(HASH_RECORD);
        let position = self.names.iter().position(is_it)?;
        let claim = self.assembly.claims.get(position)?;
        (claim.nbytes == Some(SERIALIZATION_ID_NBYTES as u64)).then_some(position)
    }

    /// Decides which of the records are good.
    ///
    /// `found` holds the CRC of each record of [`Candidates::index`], `id` the contents of the record
    /// at [`Candidates::hash_record`], if that is there.
    #[must_use]
    pub fn judge(self, found: &[u32], id: Option<&[u8]>) -> Salvage {
        let hash = self
            .hash_record()
            .and_then(|position| self.confirm(found, position, id?));
        let is_complete = matches!(hash, Some(Hash::Confirmed(_)));
        let mut entries = Vec::new();
        let mut lost = Vec::new();
        let claims = self.assembly.claims.iter().zip(&self.names).zip(found);
        for (position, ((claim, name), found)) in claims.enumerate() {
            let problem = match name {
                None => Some(nameless(claim)),
                Some(_) => problem(claim, *found, hash.as_ref(), position),
            };
            match (problem, name) {
                (None, Some(name)) => entries.push(Entry {
                    crc32: *found,
                    ..entry(claim, name.clone())
                }),
                (problem, _) => lost.push(Lost {
                    found: Some(*found),
                    ..Lost::of(claim, problem.unwrap_or_default())
                }),
            }
        }
        for (claim, reason) in &self.assembly.rejected {
            lost.push(Lost::of(claim, (*reason).to_owned()));
        }
        lost.sort_by_key(|lost| lost.offset);
        Salvage {
            index: Index::of_records(self.assembly.root, entries, self.file_nbytes),
            lost,
            is_complete,
        }
    }

    /// Compares the CRCs of all records in front of the hash with it. `None` where some are unknown, or
    /// its own bytes are not those that were written.
    fn confirm(&self, found: &[u32], position: usize, id: &[u8]) -> Option<Hash> {
        let own = self.assembly.claims.get(position)?;
        let own_crc32 = *found.get(position)?;
        if ![own.listed_crc32, own.header_crc32].contains(&Some(own_crc32)) {
            return None;
        }
        let claims = self.assembly.claims.get(..position)?;
        let mut end = 0_u64;
        let mut options = Vec::with_capacity(position);
        for (claim, found) in claims.iter().zip(found) {
            if claim.header_offset != end {
                return None;
            }
            end = claim.end().saturating_add(descriptor_nbytes(claim));
            options.push((possible_crc32s(claim, *found), claim.nbytes.unwrap_or(0)));
        }
        if own.header_offset != end {
            return None;
        }
        let Some(mut confirmed) = matching(&options, id.get(HASH_START..)?) else {
            return Some(Hash::Contradicted);
        };
        // It confirms itself: other bytes would have been another hash.
        confirmed.push(own_crc32);
        Some(Hash::Confirmed(confirmed))
    }
}

/// What the hash over all CRCs shows.
#[derive(Debug)]
enum Hash {
    /// These are the CRCs of the records up to the hash itself.
    Confirmed(Vec<u32>),
    /// Some record is not the one that was written in its place; which, is not known.
    Contradicted,
}

impl Lost {
    fn of(claim: &Claim, reason: String) -> Self {
        Self {
            record: claim.any_name().to_owned(),
            offset: claim.header_offset,
            nbytes: claim.nbytes,
            expected: claim.listed_crc32.or(claim.header_crc32),
            found: None,
            reason,
        }
    }
}

fn entry(claim: &Claim, name: String) -> Entry {
    Entry {
        name,
        header_offset: claim.header_offset,
        payload_offset: claim.payload_offset,
        nbytes: claim.nbytes.unwrap_or(0),
        crc32: claim.listed_crc32.or(claim.header_crc32).unwrap_or(0),
    }
}

fn nameless(claim: &Claim) -> String {
    match (&claim.listed_name, &claim.header_name) {
        (Some(listed), Some(header)) if listed != header => {
            format!("its name is damaged: {listed:?} in the directory, {header:?} in its header")
        }
        _ => "which record it is cannot be known: its name does not fit in, or two have it"
            .to_owned(),
    }
}

/// Why a record with a name cannot be had; `None` if it can.
fn problem(claim: &Claim, found: u32, hash: Option<&Hash>, position: usize) -> Option<String> {
    let is_stated = [claim.listed_crc32, claim.header_crc32].contains(&Some(found));
    let confirmed = match hash {
        Some(Hash::Confirmed(crc32s)) => crc32s.get(position),
        _ => None,
    };
    if let Some(confirmed) = confirmed {
        return (*confirmed != found).then(|| "checksum mismatch".to_owned());
    }
    if !is_stated {
        return Some("checksum mismatch".to_owned());
    }
    match claim.listed_crc32 {
        Some(listed) if listed == found => None,
        Some(_) => Some("the directory has another checksum for it than its descriptor".to_owned()),
        None if matches!(hash, Some(Hash::Contradicted)) => Some(
            "the directory does not list it, and the hash over all records shows that some are not \
             in their places"
                .to_owned(),
        ),
        None => None,
    }
}

/// The CRCs that a record may have had: what its bytes have, if the file says so, else what it says.
fn possible_crc32s(claim: &Claim, found: u32) -> Vec<u32> {
    let mut stated: Vec<u32> = claim
        .listed_crc32
        .into_iter()
        .chain(claim.header_crc32)
        .collect();
    stated.dedup();
    match stated.as_slice() {
        [one, other] if one != other => stated,
        [one]
            if *one != found && !(claim.listed_crc32.is_some() && claim.header_crc32.is_some()) =>
        {
            vec![*one, found]
        }
        _ => stated,
    }
}

/// The choice of CRCs whose hash is this one.
fn matching(options: &[(Vec<u32>, u64)], hash: &[u8]) -> Option<Vec<u32>> {
    let undecided = options.iter().filter(|(crc32s, _)| crc32s.len() > 1);
    let undecided = undecided.count();
    if undecided > MAX_UNDECIDED {
        return None;
    }
    let choices = 1_usize.checked_shl(u32::try_from(undecided).ok()?)?;
    (0..choices).find_map(|choice| {
        let mut bits = choice;
        let mut records = Vec::with_capacity(options.len());
        for (crc32s, nbytes) in options {
            let is_second = crc32s.len() > 1 && bits & 1 == 1;
            if crc32s.len() > 1 {
                bits >>= 1;
            }
            records.push((*crc32s.get(usize::from(is_second))?, *nbytes));
        }
        let id = serialization_id(SaveMark::default(), &records);
        let is_same = id.get(HASH_START..) == Some(hash);
        is_same.then(|| records.into_iter().map(|(crc32, _)| crc32).collect())
    })
}

/// The descriptor that torch writes behind a record.
fn descriptor_nbytes(claim: &Claim) -> u64 {
    let is_big = |value: u64| value >= u64::from(u32::MAX);
    match claim.nbytes {
        None | Some(0) => 0,
        Some(nbytes) if is_big(nbytes) || is_big(claim.header_offset) => DESCRIPTOR64_NBYTES,
        Some(_) => crate::zip::DESCRIPTOR_NBYTES,
    }
}
