//! Which runs of the file are brought into memory, and which of them share a mapping.

use std::ops::Range;

use fastckpt_format::index::{Entry, Index};

use crate::source::block_start;

/// A record of at least this size gets a mapping of its own, which goes when its tensor goes.
pub(super) const OWN_MAPPING_NBYTES: u64 = 4 << 20;

/// Smaller records share mappings of at most this size: 70,000 tensors with a mapping each would
/// exceed the number the kernel allows (`vm.max_map_count`, 65530), but one that is kept keeps
/// its whole mapping.
pub(super) const MAX_ARENA_NBYTES: u64 = 64 << 20;

/// Records with no more than this between them are read in one go, with what lies between: the
/// headers and padding of their neighbours, at most 32 KiB each.
const MAX_GAP_NBYTES: u64 = 64 << 10;

/// The records that are wanted, each once.
#[derive(Debug)]
pub(crate) struct Selection {
    /// Positions in `Index::entries`, ascending, which is the order in the file.
    pub(crate) entries: Vec<usize>,
    /// Whether their local headers have yet to be compared with the directory.
    pub(crate) headers_owed: bool,
}

impl Selection {
    pub(crate) fn new(mut entries: Vec<usize>, headers_owed: bool) -> Self {
        entries.sort_unstable();
        entries.dedup();
        Self {
            entries,
            headers_owed,
        }
    }

    /// The bytes of a record that have to be read: its payload, and its header where that is owed.
    pub(crate) fn range(&self, entry: &Entry) -> Range<u64> {
        let start = if self.headers_owed {
            entry.header_offset
        } else {
            entry.payload_offset
        };
        start..payload_end(entry)
    }

    /// The bytes of all of them in as few ranges as are worth a read of their own.
    pub(super) fn ranges(&self, index: &Index) -> Vec<Range<u64>> {
        merge_near(
            self.entries
                .iter()
                .map(|&position| self.range(&index.entries()[position])),
        )
    }
}

/// Joins ranges (in order, apart from each other) that are near each other.
pub(crate) fn merge_near(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if are_near(last, &range) => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

/// A run of the file that is brought into one mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    /// What is read; the mapping begins with the block that has the first byte.
    pub(super) range: Range<u64>,
    /// The records in it: a range of `Selection::entries`.
    pub(super) selected: Range<usize>,
}

impl Extent {
    /// The offset in the file of the mapping's first byte.
    pub(super) fn mapping_offset(&self) -> u64 {
        block_start(self.range.start)
    }

    fn takes(&self, range: &Range<u64>) -> bool {
        are_near(&self.range, range) && range.end - self.mapping_offset() <= MAX_ARENA_NBYTES
    }
}

/// Cuts the selected records into extents, in file order.
pub(super) fn cut(index: &Index, selection: &Selection) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut last_is_arena = false;
    for (position, &entry) in selection.entries.iter().enumerate() {
        let entry = &index.entries()[entry];
        let range = selection.range(entry);
        let is_small = entry.nbytes < OWN_MAPPING_NBYTES;
        match extents.last_mut() {
            Some(last) if last_is_arena && is_small && last.takes(&range) => {
                last.range.end = range.end;
                last.selected.end = position + 1;
            }
            _ => extents.push(Extent {
                range,
                selected: position..position + 1,
            }),
        }
        last_is_arena = is_small;
    }
    extents
}

/// Where a record's payload ends.
pub(crate) fn payload_end(entry: &Entry) -> u64 {
    // The index has proven that it lies within the file.
    entry.payload_offset + entry.nbytes
}

fn are_near(earlier: &Range<u64>, later: &Range<u64>) -> bool {
    later.start <= earlier.end + MAX_GAP_NBYTES
}
