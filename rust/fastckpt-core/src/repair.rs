//! Finds in a damaged file the records that are whole.
//!
//! The file is read twice: once for the zip structures that are left, once to sum what they say are
//! records. What can be had then looks like any other archive, of fewer records, and is read in the same
//! way: each CRC is taken again when a record is read.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;

use fastckpt_format::checksum::crc32;
use fastckpt_format::index::{Entry, Index};
use fastckpt_format::pickle::{self, Graph, Limits, PickleError};
use fastckpt_format::salvage::{Candidates, LOOKAHEAD_NBYTES, Search};

pub use fastckpt_format::salvage::Lost;

use crate::error::{Error, Phase, Result};
use crate::files::Files;
use crate::job::{Observer, default_threads};
use crate::read::{Archive, Inspection, Selection, merge_near};
use crate::source::{Source, in_memory};

/// Searched at a time. Larger than what has to be seen behind it, which is read twice.
const STEP_NBYTES: u64 = 4 << 20;
/// Positions in a pickle are 32 bits in the decoder.
const MAX_PICKLE_NBYTES: u64 = u32::MAX as u64;
const PICKLE: &str = "data.pkl";

/// What can be had of a damaged file.
#[derive(Debug)]
pub struct Salvaged {
    /// The file, as an archive of its good records.
    pub archive: Archive,
    /// The other records that something is known of, in file order.
    pub lost: Vec<Lost>,
    /// Whether the file itself shows that no record is missing without a trace.
    pub is_complete: bool,
}

/// Finds the records of the file at `path` whose bytes have a CRC that the file states for them.
///
/// # Errors
/// Where the file cannot be read. A file without a single record is no error.
pub fn salvage(
    files: &dyn Files,
    path: &Path,
    threads: Option<NonZeroUsize>,
    observer: &mut dyn Observer,
) -> Result<Salvaged> {
    let file = files.open(path).map_err(Error::io(Phase::Open, path))?;
    let source = Source::new(file, path.to_owned())?;
    let total = source.nbytes().saturating_mul(2);
    let search = search(&source, &mut |done| poll(observer, done, total))?;
    let sizes = search
        .pickle(source.nbytes())
        .and_then(|entry| storage_sizes(&source, &entry));
    let candidates = search.finish(source.nbytes(), &sizes.unwrap_or_default());
    let mut second = SecondHalf {
        observer,
        first_nbytes: source.nbytes(),
        total,
    };
    let found = checksums(&source, &candidates.index(), threads, &mut second)?;
    let hash = read_hash(&source, &candidates)?;
    let salvage = candidates.judge(&found, hash.as_deref());
    Ok(Salvaged {
        archive: Archive::of_records(source, salvage.index),
        lost: salvage.lost,
        is_complete: salvage.is_complete,
    })
}

/// Decodes `data.pkl` alone, whatever has become of the other records.
///
/// # Errors
/// Where it is lost, cannot be read, or is no pickle that torch.save writes for tensors, and
/// [`Error::Interrupted`].
pub fn decode(archive: &Archive, observer: &mut dyn Observer) -> Result<Graph> {
    let refused = |source| match source {
        PickleError::Stopped => Error::Interrupted,
        source => Error::Pickle {
            path: archive.path().to_owned(),
            source,
        },
    };
    // Refused by its size, before memory is asked for.
    if let Some((_, entry)) = archive.index().find(PICKLE)
        && entry.nbytes > MAX_PICKLE_NBYTES
    {
        return Err(refused(PickleError::TooLarge {
            nbytes: in_memory(entry.nbytes),
            limit: in_memory(MAX_PICKLE_NBYTES),
        }));
    }
    let data = archive.read_record(PICKLE, true)?;
    pickle::decode_while(data, Limits::default(), || observer.poll(0, 0).is_ok()).map_err(refused)
}

/// Looks through the whole file; `done` is told how far it is.
fn search(source: &Source, done: &mut dyn FnMut(u64) -> Result<()>) -> Result<Search> {
    let mut search = Search::default();
    let mut offset = 0;
    while offset < source.nbytes() {
        done(offset)?;
        let step = STEP_NBYTES.min(source.nbytes() - offset);
        let nbytes = (step + LOOKAHEAD_NBYTES as u64).min(source.nbytes() - offset);
        let window = source.read_exact(offset, in_memory(nbytes))?;
        search.look(offset, &window, in_memory(step));
        offset += step;
    }
    Ok(search)
}

/// The sizes of storages by their keys, as data.pkl has them; `None` where it cannot be had. What is wrong
/// with it is said when it is wanted for itself.
fn storage_sizes(source: &Source, entry: &Entry) -> Option<HashMap<String, u64>> {
    if entry.nbytes > MAX_PICKLE_NBYTES {
        return None;
    }
    let data = source
        .read_exact(entry.payload_offset, in_memory(entry.nbytes))
        .ok()?;
    let is_good = crc32(&data) == entry.crc32;
    let graph = is_good.then(|| pickle::decode(data, Limits::default()))?;
    let storages = graph.ok()?.storages().to_vec();
    Some(
        storages
            .into_iter()
            .map(|storage| (storage.key, storage.nbytes))
            .collect(),
    )
}

/// The CRC of each record.
fn checksums(
    source: &Source,
    index: &Index,
    threads: Option<NonZeroUsize>,
    observer: &mut dyn Observer,
) -> Result<Vec<u32>> {
    let entries = index.entries();
    let everything = Selection::new((0..entries.len()).collect(), false);
    let inspection = Inspection::new(index, &everything, true);
    let ranges = merge_near(entries.iter().map(|entry| everything.range(entry)));
    let threads = threads.map_or_else(default_threads, NonZeroUsize::get);
    source.sweep(&ranges, threads, observer, &|offset, bytes| {
        inspection.look(offset, bytes);
    })?;
    let mut found: Vec<u32> = entries.iter().map(|entry| entry.crc32).collect();
    for mismatch in inspection.finish().mismatches {
        found[mismatch.entry] = mismatch.found;
    }
    Ok(found)
}

/// Reads the record with the hash over all CRCs.
fn read_hash(source: &Source, candidates: &Candidates) -> Result<Option<Vec<u8>>> {
    let Some(position) = candidates.hash_record() else {
        return Ok(None);
    };
    let index = candidates.index();
    let Some(entry) = index.entries().get(position) else {
        return Ok(None);
    };
    let nbytes = in_memory(entry.nbytes);
    source.read_exact(entry.payload_offset, nbytes).map(Some)
}

fn poll(observer: &mut dyn Observer, done: u64, total: u64) -> Result<()> {
    observer
        .poll(done, total)
        .map_err(|_it_knows_why| Error::Interrupted)
}

/// Reports a job as the second half of a larger one.
struct SecondHalf<'a> {
    observer: &'a mut dyn Observer,
    first_nbytes: u64,
    total: u64,
}

impl Observer for SecondHalf<'_> {
    fn poll(&mut self, done: u64, _total: u64) -> std::result::Result<(), crate::job::Stop> {
        let done = self.first_nbytes.saturating_add(done).min(self.total);
        self.observer.poll(done, self.total)
    }
}
