//! Checks records whose bytes arrive in pieces, in any order and from several threads.

use std::mem;
use std::ops::Range;
use std::sync::Mutex;

use fastckpt_format::FormatError;
use fastckpt_format::checksum::{combine, crc32};
use fastckpt_format::index::{Entry, Index};

use super::extents::{Selection, payload_end};
use crate::job::lock;
use crate::source::in_memory;

/// Compares the bytes of the selected records with what the directory says of them.
#[derive(Debug)]
pub(crate) struct Inspection<'a> {
    index: &'a Index,
    selection: &'a Selection,
    /// Whether payloads are compared with their CRCs, or headers only.
    payloads: bool,
    found: Mutex<Found>,
}

/// What the pieces gave so far.
#[derive(Debug, Default)]
struct Found {
    mismatches: Vec<Mismatch>,
    bad_headers: Vec<(usize, FormatError)>,
    payload_parts: Vec<PayloadPart>,
    header_parts: Vec<HeaderPart>,
}

/// A record whose CRC is not the one that the directory has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mismatch {
    /// Position in `Index::entries`.
    pub(crate) entry: usize,
    /// The CRC of the bytes that are there.
    pub(crate) found: u32,
}

/// The CRC of a part of a payload that arrived in several pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PayloadPart {
    entry: usize,
    offset: u64,
    nbytes: u64,
    crc32: u32,
}

/// A part of a header that arrived in several pieces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct HeaderPart {
    entry: usize,
    offset: u64,
    bytes: Vec<u8>,
}

/// What an inspection came to.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// What is wrong with the first local header that contradicts the directory: then nothing is
    /// known of its record.
    pub(crate) bad_header: Option<FormatError>,
    /// The records whose bytes are wrong, in file order.
    pub(crate) mismatches: Vec<Mismatch>,
}

impl<'a> Inspection<'a> {
    pub(crate) fn new(index: &'a Index, selection: &'a Selection, payloads: bool) -> Self {
        Self {
            index,
            selection,
            payloads,
            found: Mutex::default(),
        }
    }

    /// Whether there is anything to look at.
    pub(crate) fn is_idle(&self) -> bool {
        !self.payloads && !self.selection.headers_owed
    }

    /// Where the bytes of a record begin that have to be looked at.
    pub(crate) fn start_of(&self, entry: &Entry) -> u64 {
        self.selection.range(entry).start
    }

    /// Looks at `bytes`, which are those of the file from `offset` on. Each byte of a selected
    /// record is shown once.
    pub(crate) fn look(&self, offset: u64, bytes: &[u8]) {
        if self.is_idle() {
            return;
        }
        let piece = offset..offset + bytes.len() as u64;
        let selected = &self.selection.entries;
        let first =
            selected.partition_point(|&entry| payload_end(self.entry(entry)) <= piece.start);
        let mut found = Found::default();
        for &position in &selected[first..] {
            let entry = self.entry(position);
            let range = self.selection.range(entry);
            if range.start >= piece.end {
                break;
            }
            if self.selection.headers_owed {
                self.look_at_header(position, &piece, bytes, &mut found);
            }
            if self.payloads {
                self.look_at_payload(position, &piece, bytes, &mut found);
            }
        }
        if !found.is_empty() {
            lock(&self.found).append(found);
        }
    }

    fn look_at_header(&self, position: usize, piece: &Range<u64>, bytes: &[u8], found: &mut Found) {
        let entry = self.entry(position);
        let header = entry.header_offset..entry.payload_offset;
        let part = intersection(&header, piece);
        let bytes = &bytes[within(&part, piece)];
        if part == header {
            found.check_header(self.index, position, bytes);
        } else if !part.is_empty() {
            found.header_parts.push(HeaderPart {
                entry: position,
                offset: part.start,
                bytes: bytes.to_vec(),
            });
        }
    }

    fn look_at_payload(
        &self,
        position: usize,
        piece: &Range<u64>,
        bytes: &[u8],
        found: &mut Found,
    ) {
        let entry = self.entry(position);
        let payload = entry.payload_offset..payload_end(entry);
        let part = intersection(&payload, piece);
        let Some(expected) = self
            .index
            .checksum(position)
            .filter(|_crc32| !part.is_empty())
        else {
            return;
        };
        let crc32 = crc32(&bytes[within(&part, piece)]);
        if part != payload {
            let nbytes = part.end - part.start;
            found.payload_parts.push(PayloadPart {
                entry: position,
                offset: part.start,
                nbytes,
                crc32,
            });
        } else if crc32 != expected {
            found.mismatches.push(Mismatch {
                entry: position,
                found: crc32,
            });
        }
    }

    /// Puts the pieces together, once all have been looked at.
    pub(crate) fn finish(self) -> Verdict {
        let mut found = mem::take(&mut *lock(&self.found));
        found.header_parts.sort_unstable();
        let header_parts = mem::take(&mut found.header_parts);
        for parts in header_parts.chunk_by(|a, b| a.entry == b.entry) {
            let header: Vec<u8> = parts.iter().flat_map(|part| &part.bytes).copied().collect();
            found.check_header(self.index, parts[0].entry, &header);
        }
        found.payload_parts.sort_unstable();
        for parts in found.payload_parts.chunk_by(|a, b| a.entry == b.entry) {
            let entry = parts[0].entry;
            let crc32 = parts
                .iter()
                .fold(0, |crc32, part| combine(crc32, part.crc32, part.nbytes));
            let nbytes: u64 = parts.iter().map(|part| part.nbytes).sum();
            debug_assert_eq!(
                nbytes,
                self.entry(entry).nbytes,
                "each byte of a record is shown once"
            );
            if self.index.checksum(entry) != Some(crc32) {
                found.mismatches.push(Mismatch {
                    entry,
                    found: crc32,
                });
            }
        }
        if self.payloads {
            found.mismatches.extend(self.wrong_empty_records());
        }
        found.mismatches.sort_unstable();
        let bad_header = found
            .bad_headers
            .into_iter()
            .min_by_key(|(entry, _)| *entry);
        let bad_header = bad_header.map(|(_, error)| error);
        Verdict {
            bad_header,
            mismatches: found.mismatches,
        }
    }

    /// Empty records have no piece to be found in, but their CRC has a value too: 0.
    fn wrong_empty_records(&self) -> impl Iterator<Item = Mismatch> {
        let empty = self
            .selection
            .entries
            .iter()
            .filter(|&&position| self.entry(position).nbytes == 0);
        empty
            .filter(|&&position| {
                self.index
                    .checksum(position)
                    .is_some_and(|expected| expected != 0)
            })
            .map(|&entry| Mismatch { entry, found: 0 })
    }

    fn entry(&self, position: usize) -> &'a Entry {
        &self.index.entries()[position]
    }
}

impl Found {
    fn is_empty(&self) -> bool {
        self.bad_headers.is_empty()
            && self.mismatches.is_empty()
            && self.payload_parts.is_empty()
            && self.header_parts.is_empty()
    }

    fn check_header(&mut self, index: &Index, entry: usize, bytes: &[u8]) {
        if let Err(error) = index.check_local_header(entry, bytes) {
            self.bad_headers.push((entry, error));
        }
    }

    fn append(&mut self, mut other: Self) {
        self.bad_headers.append(&mut other.bad_headers);
        self.mismatches.append(&mut other.mismatches);
        self.payload_parts.append(&mut other.payload_parts);
        self.header_parts.append(&mut other.header_parts);
    }
}

/// What two ranges share; empty (and in place) where they do not touch.
pub(crate) fn intersection(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    let start = a.start.clamp(b.start, b.end);
    start..a.end.clamp(start, b.end)
}

/// Where a part of `piece` lies in the piece's bytes.
pub(crate) fn within(part: &Range<u64>, piece: &Range<u64>) -> Range<usize> {
    in_memory(part.start - piece.start)..in_memory(part.end - piece.start)
}
