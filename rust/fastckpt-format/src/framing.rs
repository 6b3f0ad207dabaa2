//! What every byte outside the payloads has to be, for a file that torch (or fastckpt) wrote.
//!
//! Zip checksums cover payloads only. torch's framing is a function of the records' order, names,
//! sizes and CRCs, so it can be made again and compared: that finds any flipped bit in headers,
//! padding, descriptors and directory.
//!
//! The bytes outside the payloads fall into gaps. Gap `i` lies between the payload of entry
//! `i - 1` and that of entry `i`: a data descriptor and a local header. The last one holds the last
//! descriptor, the directory and the end records. What a gap must contain follows from the two
//! entries beside it alone, so that one damaged size, name or offset spoils few gaps.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use crate::canonical::{END_RECORDS_NBYTES, Placed, put_end_records};
use crate::index::{Entry, Index};
use crate::layout::Alignment;
use crate::zip::{END64_NBYTES, LOCATOR_NBYTES};

/// What every byte outside the payloads has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framing {
    root: String,
    entries: Vec<Entry>,
    alignment: Alignment,
    directory_offset: u64,
    file_nbytes: u64,
}

/// The structure that a byte outside the payloads belongs to. The numbers are positions in
/// [`Index::entries`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Region {
    /// Local header of an entry: fixed part, name and extra fields, without the padding's bytes.
    LocalHeader(usize),
    /// The padding in front of an entry's payload.
    Padding(usize),
    /// The data descriptor behind an entry's payload.
    Descriptor(usize),
    /// An entry's place in the central directory.
    DirectoryEntry(usize),
    /// The zip64 end of central directory record.
    Zip64End,
    /// The zip64 end of central directory locator.
    Zip64Locator,
    /// The end of central directory record.
    EndRecord,
    /// Behind the end of what torch writes.
    Trailing,
}

impl Region {
    /// The position of the entry that the structure belongs to.
    #[must_use]
    pub fn entry(self) -> Option<usize> {
        match self {
            Self::LocalHeader(entry)
            | Self::Padding(entry)
            | Self::Descriptor(entry)
            | Self::DirectoryEntry(entry) => Some(entry),
            Self::Zip64End | Self::Zip64Locator | Self::EndRecord | Self::Trailing => None,
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LocalHeader(_) => "local header",
            Self::Padding(_) => "padding before the payload",
            Self::Descriptor(_) => "data descriptor",
            Self::DirectoryEntry(_) => "directory entry",
            Self::Zip64End => "zip64 end of central directory",
            Self::Zip64Locator => "zip64 end of central directory locator",
            Self::EndRecord => "end of central directory",
            Self::Trailing => "bytes after the end of central directory",
        })
    }
}

/// The first difference between a gap and what torch writes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Offset in the file.
    pub offset: u64,
    /// The structure it is in.
    pub region: Region,
    /// The byte torch writes; `None` behind the end of what it writes.
    pub expected: Option<u8>,
    /// The byte found; `None` where the gap is too short to have it.
    pub found: Option<u8>,
}

impl Framing {
    /// The framing of a file with these records.
    #[must_use]
    pub fn new(index: &Index) -> Self {
        Self {
            root: index.root().to_owned(),
            entries: index.entries().to_vec(),
            alignment: likeliest_alignment(index),
            directory_offset: index.directory().start,
            file_nbytes: index.file_nbytes(),
        }
    }

    /// How many gaps there are: one before each payload and one behind the last.
    #[must_use]
    pub fn gaps(&self) -> usize {
        self.entries.len().saturating_add(1)
    }

    /// Where the gap lies in the file. Empty, at the end of the file, if there is no such gap.
    ///
    /// It can be as large as the file where another tool left a hole. Compare lengths with
    /// [`Framing::expected`] before reading it.
    #[must_use]
    pub fn range(&self, gap: usize) -> Range<u64> {
        if gap >= self.gaps() {
            return self.file_nbytes..self.file_nbytes;
        }
        let start = self.before(gap).map_or(0, payload_end);
        let end = self
            .entries
            .get(gap)
            .map_or(self.file_nbytes, |entry| entry.payload_offset);
        start..end
    }

    /// What torch writes into the gap, given the offsets, names, sizes and CRCs of the entries
    /// beside it. If its length is not that of [`Framing::range`], the gap is damaged.
    #[must_use]
    pub fn expected(&self, gap: usize) -> Cow<'_, [u8]> {
        let mut out = Vec::new();
        if let Some(entry) = self.before(gap) {
            self.placed(entry).put_descriptor(entry.crc32, &mut out);
        }
        if let Some(entry) = self.entries.get(gap) {
            self.placed(entry)
                .put_local_header(self.alignment, &mut out);
        } else if gap == self.entries.len() {
            self.put_directory(&mut out);
        }
        Cow::Owned(out)
    }

    /// The structure that the byte at `offset_in_gap` of [`Framing::expected`] belongs to.
    #[must_use]
    pub fn region(&self, gap: usize, offset_in_gap: u64) -> Region {
        let mut offset = offset_in_gap;
        if let (Some(entry), Some(position)) = (self.before(gap), gap.checked_sub(1)) {
            match offset.checked_sub(self.placed(entry).descriptor_nbytes()) {
                None => return Region::Descriptor(position),
                Some(behind) => offset = behind,
            }
        }
        match self.entries.get(gap) {
            Some(entry) if offset < self.placed(entry).unpadded_header_nbytes() as u64 => {
                Region::LocalHeader(gap)
            }
            Some(_) => Region::Padding(gap),
            None => self.directory_region(offset),
        }
    }

    /// Compares the bytes of a gap with what torch writes there. `found` may be cut off after as
    /// many bytes as are expected; then a range that is longer is still reported.
    #[must_use]
    pub fn compare(&self, gap: usize, found: &[u8]) -> Option<Mismatch> {
        let expected = self.expected(gap);
        let range = self.range(gap);
        let common = expected
            .iter()
            .zip(found)
            .take_while(|(a, b)| a == b)
            .count();
        let same_length = range.end.checked_sub(range.start) == Some(expected.len() as u64);
        if common == expected.len() && common == found.len() && same_length {
            return None;
        }
        Some(Mismatch {
            offset: range.start.saturating_add(common as u64),
            region: self.region(gap, common as u64),
            expected: expected.get(common).copied(),
            found: found.get(common).copied(),
        })
    }

    /// Whether this framing is torch's at all, after `mismatched_gaps` of [`Framing::gaps`] were
    /// not as expected: at least half of them were. Otherwise another tool wrote the file, and
    /// nothing can be said about its framing.
    #[must_use]
    pub fn is_torch(&self, mismatched_gaps: usize) -> bool {
        mismatched_gaps.saturating_mul(2) <= self.gaps()
    }

    fn before(&self, gap: usize) -> Option<&Entry> {
        self.entries.get(gap.checked_sub(1)?)
    }

    fn placed<'a>(&'a self, entry: &'a Entry) -> Placed<'a> {
        Placed {
            root: &self.root,
            name: &entry.name,
            nbytes: entry.nbytes,
            header_offset: entry.header_offset,
        }
    }

    fn put_directory(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for entry in &self.entries {
            // An empty record has no descriptor to compare with, but only one CRC is possible.
            let crc32 = if entry.nbytes == 0 { 0 } else { entry.crc32 };
            self.placed(entry).put_central(crc32, out);
        }
        let nbytes = out.len().saturating_sub(start) as u64;
        put_end_records(
            self.entries.len() as u64,
            self.directory_offset,
            nbytes,
            out,
        );
    }

    fn directory_region(&self, offset: u64) -> Region {
        let mut end = 0_u64;
        for (position, entry) in self.entries.iter().enumerate() {
            end = end.saturating_add(self.placed(entry).central_nbytes() as u64);
            if offset < end {
                return Region::DirectoryEntry(position);
            }
        }
        match offset.saturating_sub(end) {
            0..LOCATOR_START => Region::Zip64End,
            LOCATOR_START..END_START => Region::Zip64Locator,
            END_START..FILE_END => Region::EndRecord,
            FILE_END.. => Region::Trailing,
        }
    }
}

/// Offsets behind the last directory entry.
const LOCATOR_START: u64 = END64_NBYTES as u64;
const END_START: u64 = LOCATOR_START.saturating_add(LOCATOR_NBYTES as u64);
const FILE_END: u64 = END_RECORDS_NBYTES as u64;

fn payload_end(entry: &Entry) -> u64 {
    entry.payload_offset.saturating_add(entry.nbytes)
}

/// The alignment that explains most payload offsets: the one the file states, else torch's
/// default, else a power of two. The record that states it may itself be what is damaged.
fn likeliest_alignment(index: &Index) -> Alignment {
    if let Some(layout) = index.layout() {
        return layout.alignment();
    }
    let explained = |alignment: Alignment| {
        let fits = |entry: &&Entry| {
            let placed = Placed {
                root: index.root(),
                name: &entry.name,
                nbytes: entry.nbytes,
                header_offset: entry.header_offset,
            };
            placed.payload_offset(alignment) == Some(entry.payload_offset)
        };
        index.entries().iter().filter(fits).count()
    };
    let powers_of_two = (0..=15).filter_map(|bit| Alignment::new(1 << bit).ok());
    let candidates = index
        .alignment()
        .into_iter()
        .chain([Alignment::TORCH_DEFAULT]);
    // max_by_key takes the last of equals; the stated one is to win.
    candidates
        .chain(powers_of_two)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .max_by_key(|&alignment| explained(alignment))
        .unwrap_or(Alignment::TORCH_DEFAULT)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )]
    use super::*;
    use crate::FormatError;
    use crate::checksum::crc32;
    use crate::layout::{Layout, RecordSpec};

    /// `data.pkl` and an empty record, at offsets that are easy to count.
    fn file() -> Vec<u8> {
        let spec = |name: &str, nbytes| RecordSpec {
            name: name.to_owned(),
            nbytes,
        };
        let specs = vec![spec("data.pkl", 3), spec("data/0", 0)];
        let layout = Layout::plan("m", specs, Alignment::TORCH_DEFAULT).unwrap();
        let crc32s = [crc32(b"abc"), 0];
        let mut file = layout.local_header(0);
        file.extend(b"abc");
        file.extend(layout.descriptor(0, crc32s[0]));
        file.extend(layout.local_header(1));
        file.extend(layout.directory(&crc32s));
        file
    }

    fn framing(file: &[u8]) -> Framing {
        let read = |offset: u64, nbytes: usize| {
            let start = usize::try_from(offset).unwrap();
            Ok::<_, FormatError>(file[start..start + nbytes].to_vec())
        };
        Framing::new(&Index::parse(file.len() as u64, read).unwrap())
    }

    #[test]
    fn gaps_cover_all_but_the_payloads() {
        let file = file();
        let framing = framing(&file);
        assert_eq!(framing.gaps(), 3);
        assert_eq!(framing.range(0), 0..64);
        assert_eq!(framing.range(1), 67..128);
        assert_eq!(framing.range(2), 128..file.len() as u64);
        assert_eq!(framing.range(3), file.len() as u64..file.len() as u64);
        for gap in 0..3 {
            let range = framing.range(gap);
            let found =
                &file[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
            assert_eq!(framing.expected(gap), found);
            assert_eq!(framing.compare(gap, found), None);
        }
        assert_eq!(framing.expected(3), b"".as_slice());
    }

    #[test]
    fn each_byte_has_its_region() {
        let framing = framing(&file());
        for (gap, offset, region) in [
            (0, 0, Region::LocalHeader(0)),
            (0, 43, Region::LocalHeader(0)),
            (0, 44, Region::Padding(0)),
            (0, 63, Region::Padding(0)),
            (1, 0, Region::Descriptor(0)),
            (1, 15, Region::Descriptor(0)),
            (1, 16, Region::LocalHeader(1)),
            (1, 60, Region::Padding(1)),
            (2, 0, Region::DirectoryEntry(0)),
            (2, 55, Region::DirectoryEntry(0)),
            (2, 56, Region::DirectoryEntry(1)),
            (2, 110, Region::Zip64End),
            (2, 166, Region::Zip64Locator),
            (2, 186, Region::EndRecord),
            (2, 207, Region::EndRecord),
            (2, 208, Region::Trailing),
        ] {
            assert_eq!(
                framing.region(gap, offset),
                region,
                "gap {gap}, offset {offset}"
            );
        }
        assert_eq!(Region::Descriptor(7).entry(), Some(7));
        assert_eq!(Region::EndRecord.entry(), None);
        assert_eq!(Region::Padding(1).to_string(), "padding before the payload");
    }

    #[test]
    fn the_first_difference_is_named() {
        let mut file = file();
        file[70] ^= 1;
        let expected = file[70] ^ 1;
        let framing = framing(&file);
        assert_eq!(
            framing.compare(1, &file[67..128]),
            Some(Mismatch {
                offset: 70,
                region: Region::Descriptor(0),
                expected: Some(expected),
                found: Some(file[70]),
            })
        );
        let short = framing.compare(0, &file[..63]).unwrap();
        assert_eq!(
            (short.offset, short.expected, short.found),
            (63, Some(b'Z'), None)
        );
    }

    #[test]
    fn bytes_behind_the_end_are_reported_without_reading_them() {
        let mut file = file();
        let end = file.len();
        file.push(b'j');
        let framing = framing(&file);
        let expected = Mismatch {
            offset: end as u64,
            region: Region::Trailing,
            expected: None,
            found: Some(b'j'),
        };
        assert_eq!(framing.compare(2, &file[128..]), Some(expected));
        let unread = Mismatch {
            found: None,
            ..expected
        };
        assert_eq!(framing.compare(2, &file[128..end]), Some(unread));
    }

    #[test]
    fn half_of_the_gaps_decide() {
        let framing = framing(&file());
        assert!(framing.is_torch(0) && framing.is_torch(1));
        assert!(!framing.is_torch(2));
    }
}
