//! Reads every byte of a file and compares it with what was written.
//!
//! Payloads are compared with their CRCs. What lies between them has no checksum, but torch writes
//! nothing there that does not follow from the records' names, sizes and CRCs: it is made again
//! and compared. A file is read, never mapped: a bad disk gives an error then, not a SIGBUS.

use std::collections::HashMap;
use std::iter;
use std::mem;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use fastckpt_format::framing::{self, Framing};
use fastckpt_format::index::{Checksums, Index, Kind};

use crate::error::{Error, Phase, Result};
use crate::files::Files;
use crate::job::{Observer, default_threads, lock};
use crate::read::{Archive, Inspection, Mismatch, Selection, intersection, merge_near, within};
use crate::source::HandOn;

/// How a file is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerifyOptions {
    /// Only the structure: no payload is read.
    pub quick: bool,
    /// Number of workers; `None` takes [`default_threads`].
    pub threads: Option<NonZeroUsize>,
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The record it concerns, without the root folder.
    pub record: Option<String>,
    /// The tensors that lie in that record, where its payload is damaged.
    pub tensors: Vec<String>,
    /// The first byte: of the payload, or of what differs outside the payloads.
    pub offset: u64,
    /// How many bytes: the whole payload (a CRC locates no finer), or what differs.
    pub nbytes: u64,
    /// For a payload, the CRC-32 that is stored.
    pub expected: Option<u32>,
    /// For a payload, the CRC-32 of what is there.
    pub found: Option<u32>,
    /// What is wrong, in words.
    pub detail: String,
}

/// What verifying a file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// Size of the file in bytes.
    pub nbytes: u64,
    /// Number of records; 0 where the directory cannot be read.
    pub records: usize,
    /// Which records have a CRC; all, as far as can be known, where the directory cannot be read.
    pub checksums: Checksums,
    /// Whether the bytes outside the payloads were compared too: only in torch's own framing.
    pub headers_covered: bool,
    /// What is wrong, in file order.
    pub damages: Vec<Damage>,
}

/// Verifies the archive at `path`.
///
/// # Errors
/// Where the file cannot be read. What is wrong with its bytes is in the report.
pub fn verify_file(
    files: &dyn Files,
    path: &Path,
    options: &VerifyOptions,
    observer: &mut dyn Observer,
) -> Result<FileReport> {
    let file = files.open(path).map_err(Error::io(Phase::Open, path))?;
    let nbytes = file
        .metadata()
        .map_err(Error::io(Phase::Open, path))?
        .nbytes;
    let archive = Archive::from_file(file, path.to_owned());
    match archive.and_then(|archive| verify_archive(&archive, options, observer)) {
        Err(Error::Format { source, .. }) => Ok(FileReport::unreadable(nbytes, source.to_string())),
        other => other,
    }
}

/// Verifies an archive that is open already.
///
/// # Errors
/// Where it cannot be read. What is wrong with its bytes is in the report.
pub fn verify_archive(
    archive: &Archive,
    options: &VerifyOptions,
    observer: &mut dyn Observer,
) -> Result<FileReport> {
    verify_on(archive, options, observer, &|_buffer, _chunk| Ok(()))
}

/// The same, and hands each chunk on once it has been looked at: what is handed on is what the
/// report is about, byte for byte.
pub(crate) fn verify_on(
    archive: &Archive,
    options: &VerifyOptions,
    observer: &mut dyn Observer,
    hand_on: HandOn<'_>,
) -> Result<FileReport> {
    let index = archive.index();
    // Without torch's layout, the index has read the local headers itself.
    let headers_owed = index.layout().is_some();
    let everything = Selection::new((0..index.entries().len()).collect(), headers_owed);
    let payloads = Inspection::new(index, &everything, !options.quick);
    let framing = Framing::new(index);
    let gaps = GapInspection::new(&framing);
    let ranges = if options.quick {
        gaps.ranges()
    } else {
        iter::once(0..archive.nbytes()).collect()
    };
    let threads = options
        .threads
        .map_or_else(default_threads, NonZeroUsize::get);
    let look = |offset: u64, bytes: &[u8]| {
        payloads.look(offset, bytes);
        gaps.look(offset, bytes);
    };
    archive
        .source()
        .sweep_on(&ranges, threads, observer, &look, hand_on)?;
    let gap_damages = gaps.finish(index);
    // Where torch did not write the file, nothing is known of what lies between its records.
    let headers_covered = framing.is_torch(gap_damages.len());
    let verdict = payloads.finish();
    let mut damages = payload_damages(archive, &verdict.mismatches);
    if headers_covered {
        damages.extend(gap_damages);
    } else if let Some(contradiction) = verdict.bad_header {
        // Whoever wrote it, nothing loads a file whose local headers contradict its directory.
        damages.push(Damage::whole_file(
            archive.nbytes(),
            contradiction.to_string(),
        ));
    }
    damages.extend(missing_record(archive));
    damages.sort_by_key(|damage| damage.offset);
    Ok(FileReport {
        nbytes: archive.nbytes(),
        records: index.entries().len(),
        checksums: index.checksums(),
        headers_covered,
        damages,
    })
}

impl Damage {
    fn whole_file(nbytes: u64, detail: String) -> Self {
        Self {
            record: None,
            tensors: Vec::new(),
            offset: 0,
            nbytes,
            expected: None,
            found: None,
            detail,
        }
    }
}

impl FileReport {
    /// Of a file at which nobody looked.
    pub(crate) fn unchecked(nbytes: u64) -> Self {
        Self {
            nbytes,
            records: 0,
            checksums: Checksums::None,
            headers_covered: false,
            damages: Vec::new(),
        }
    }

    /// Of a file whose directory cannot be read.
    pub(crate) fn unreadable(nbytes: u64, detail: String) -> Self {
        Self {
            nbytes,
            records: 0,
            checksums: Checksums::All,
            headers_covered: false,
            damages: vec![Damage::whole_file(nbytes, detail)],
        }
    }
}

/// The damage of an archive whose records are sound, and which nothing loads.
fn missing_record(archive: &Archive) -> Option<Damage> {
    let kind = archive.index().kind();
    let detail = match kind {
        Kind::Unknown => format!("the archive has no data.pkl: it is {kind}"),
        // Every reader asks for the version, too.
        Kind::Checkpoint => archive.index().require_checkpoint().err()?.to_string(),
        _ => return None,
    };
    Some(Damage::whole_file(archive.nbytes(), detail))
}

fn payload_damages(archive: &Archive, mismatches: &[Mismatch]) -> Vec<Damage> {
    // Naming tensors takes data.pkl: not for files that are good.
    let mut tensors = if mismatches.is_empty() {
        HashMap::new()
    } else {
        archive.tensors_by_record()
    };
    let entries = archive.index().entries();
    let describe = |mismatch: &Mismatch| {
        let entry = &entries[mismatch.entry];
        Damage {
            record: Some(entry.name.clone()),
            tensors: tensors.remove(&entry.name).unwrap_or_default(),
            offset: entry.payload_offset,
            nbytes: entry.nbytes,
            expected: Some(entry.crc32),
            found: Some(mismatch.found),
            detail: "checksum mismatch".to_owned(),
        }
    };
    mismatches.iter().map(describe).collect()
}

/// Compares the gaps between the payloads with what torch writes there, in pieces, in any order
/// and from several threads.
#[derive(Debug)]
struct GapInspection<'a> {
    framing: &'a Framing,
    /// What of each gap is compared, which is all of it, or as much as torch would write there
    /// where that is less: another tool may leave a hole as large as a tensor.
    compared: Vec<Range<u64>>,
    found: Mutex<FoundInGaps>,
}

#[derive(Debug, Default)]
struct FoundInGaps {
    differences: Vec<Difference>,
    /// Of gaps that arrived in several pieces.
    parts: Vec<GapPart>,
}

/// A gap that is not what torch writes.
#[derive(Debug)]
struct Difference {
    first: framing::Mismatch,
    /// From the first differing byte to the last.
    nbytes: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GapPart {
    gap: usize,
    offset: u64,
    bytes: Vec<u8>,
}

impl<'a> GapInspection<'a> {
    fn new(framing: &'a Framing) -> Self {
        let compared = |gap| {
            let range = framing.range(gap);
            let end = range.end.min(
                range
                    .start
                    .saturating_add(framing.expected(gap).len() as u64),
            );
            range.start..end
        };
        Self {
            framing,
            compared: (0..framing.gaps()).map(compared).collect(),
            found: Mutex::default(),
        }
    }

    /// The gaps in as few ranges as are worth a read of their own.
    fn ranges(&self) -> Vec<Range<u64>> {
        merge_near(self.compared.iter().cloned())
    }

    fn look(&self, offset: u64, bytes: &[u8]) {
        let piece = offset..offset + bytes.len() as u64;
        let first = self
            .compared
            .partition_point(|range| range.end <= piece.start);
        let mut found = FoundInGaps::default();
        for (gap, range) in self.compared.iter().enumerate().skip(first) {
            if range.start >= piece.end {
                break;
            }
            let part = intersection(range, &piece);
            let bytes = &bytes[within(&part, &piece)];
            if part == *range {
                found.differences.extend(self.compare(gap, bytes));
            } else if !part.is_empty() {
                found.parts.push(GapPart {
                    gap,
                    offset: part.start,
                    bytes: bytes.to_vec(),
                });
            }
        }
        if !found.differences.is_empty() || !found.parts.is_empty() {
            let mut all = lock(&self.found);
            all.differences.append(&mut found.differences);
            all.parts.append(&mut found.parts);
        }
    }

    fn compare(&self, gap: usize, found: &[u8]) -> Option<Difference> {
        let first = self.framing.compare(gap, found)?;
        let expected = self.framing.expected(gap);
        let last = iter::zip(&*expected, found).rposition(|(expected, found)| expected != found);
        let end = if first.expected.is_none() {
            // All is as it should be, and then there is more.
            self.framing.range(gap).end
        } else {
            self.compared[gap].start + last.map_or(0, |last| last as u64 + 1)
        };
        Some(Difference {
            first,
            nbytes: end.saturating_sub(first.offset).max(1),
        })
    }

    fn finish(self, index: &Index) -> Vec<Damage> {
        let mut found = mem::take(&mut *lock(&self.found));
        found.parts.sort_unstable();
        for parts in found.parts.chunk_by(|a, b| a.gap == b.gap) {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| &part.bytes).copied().collect();
            found.differences.extend(self.compare(parts[0].gap, &bytes));
        }
        found
            .differences
            .iter()
            .map(|difference| difference.describe(index))
            .collect()
    }
}

impl Difference {
    fn describe(&self, index: &Index) -> Damage {
        let Self { first, nbytes } = *self;
        let record = first
            .region
            .entry()
            .map(|position| index.entries()[position].name.clone());
        let of_record = record
            .as_ref()
            .map_or_else(String::new, |record| format!(" of {record}"));
        let difference = match (first.expected, first.found) {
            (Some(expected), Some(found)) => {
                format!("expected byte {expected:#04x}, found byte {found:#04x}")
            }
            (Some(_), None) => "bytes are missing".to_owned(),
            (None, _) => format!("{nbytes} bytes too many"),
        };
        Damage {
            tensors: Vec::new(),
            offset: first.offset,
            nbytes,
            expected: None,
            found: None,
            detail: format!("{}{of_record}: {difference}", first.region),
            record,
        }
    }
}
