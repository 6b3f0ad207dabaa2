//! The zip structures that are left in a damaged file, each found by its signature and read by itself.

use std::collections::HashMap;
use std::ops::Range;

use crate::canonical::END_RECORDS_NBYTES;
use crate::layout::MAX_NAME_NBYTES;
use crate::zip::{
    CENTRAL_NBYTES, CENTRAL_SIGNATURE, CentralEntry, Cursor, DESCRIPTOR_NBYTES,
    DESCRIPTOR_SIGNATURE, DESCRIPTOR64_NBYTES, END_SIGNATURE, END64_SIGNATURE, End, End64,
    FLAG_DESCRIPTOR, FLAGS_ALLOWED, LOCAL_NBYTES, LOCAL_SIGNATURE, LocalHeader, METHOD_STORED,
    widen, zip64_field,
};

/// Structures of one kind that are kept. No archive has as many records; a file made of signatures alone
/// would otherwise take several times its size in memory.
const MAX_TRACES: usize = 1 << 20;
/// Descriptors kept for one payload. A second one is a coincidence.
const MAX_DESCRIPTORS: usize = 4;

/// A local header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) header_offset: u64,
    pub(super) payload_offset: u64,
    /// With the root folder.
    pub(super) name: String,
    /// Size and CRC that the header itself states, where no descriptor is to follow.
    pub(super) stated: Option<Descriptor>,
    /// Descriptors further on that say how far behind the beginning of this payload they lie.
    pub(super) descriptors: Vec<Descriptor>,
}

/// What a data descriptor says of the payload in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) nbytes: u64,
    pub(super) crc32: u32,
}

/// An entry of the central directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Central {
    /// Where the entry itself lies, and where it ends.
    pub(super) offset: u64,
    pub(super) end: u64,
    pub(super) header_offset: u64,
    /// With the root folder.
    pub(super) name: String,
    pub(super) nbytes: u64,
    pub(super) crc32: u32,
}

/// An end of central directory record, of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DirectoryEnd {
    offset: u64,
    directory_offset: u64,
    entries: u64,
}

/// A central directory of which no entry is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    /// Its entries, in [`Traces::centrals`].
    pub(super) entries: Range<usize>,
    /// How many bytes further it lies than it says itself.
    pub(super) moved: i64,
    /// Whether it is that of the file, and not of an archive inside a tensor.
    pub(super) is_ours: bool,
}

/// All structures of a file, in file order.
#[derive(Debug, Default)]
pub(super) struct Traces {
    pub(super) locals: Vec<Local>,
    pub(super) centrals: Vec<Central>,
    ends: Vec<DirectoryEnd>,
    /// Positions in `locals` by payload offset.
    payloads: HashMap<u64, usize>,
}

impl Traces {
    /// Looks for structures that begin in the first `step` bytes of `window`, which are those of the
    /// file from `offset` on.
    pub(super) fn look(&mut self, offset: u64, window: &[u8], step: usize) {
        let mut at = 0_usize;
        while let Some(rest) = window.get(at..) {
            let Some(found) = rest.iter().position(|byte| *byte == b'P') else {
                return;
            };
            at = at.saturating_add(found);
            if at >= step {
                return;
            }
            if let Some(bytes) = window.get(at..) {
                self.take(offset.saturating_add(at as u64), bytes);
            }
            at = at.saturating_add(1);
        }
    }

    fn take(&mut self, offset: u64, bytes: &[u8]) {
        match bytes.first_chunk::<4>() {
            Some(&LOCAL_SIGNATURE) => self.take_local(offset, bytes),
            Some(&CENTRAL_SIGNATURE) if self.centrals.len() < MAX_TRACES => {
                self.centrals.extend(parse_central(offset, bytes));
            }
            Some(&DESCRIPTOR_SIGNATURE) => self.take_descriptor(offset, bytes),
            Some(&END64_SIGNATURE) => self.take_end(End64::parse(bytes).map(|end| DirectoryEnd {
                offset,
                directory_offset: end.directory_offset,
                entries: end.entries,
            })),
            Some(&END_SIGNATURE) => self.take_end(End::parse(bytes).map(|end| DirectoryEnd {
                offset,
                directory_offset: u64::from(end.directory_offset),
                entries: u64::from(end.entries),
            })),
            _ => {}
        }
    }

    fn take_end(&mut self, end: Option<DirectoryEnd>) {
        if self.ends.len() < MAX_TRACES {
            self.ends.extend(end);
        }
    }

    /// The directories that are there from their first entries to their last, in file order.
    ///
    /// An archive inside a tensor has a directory too, whose offsets are counted from elsewhere. So
    /// another place than the stated one is believed only of what ends with the file and describes its
    /// first record: then the difference is what was cut out of the file, or put into it.
    pub(super) fn directories(&self, file_nbytes: u64) -> Vec<Directory> {
        let mut run_starts: Vec<usize> = Vec::with_capacity(self.centrals.len());
        let mut before: Option<(u64, usize)> = None;
        for (position, central) in self.centrals.iter().enumerate() {
            let start = match before {
                Some((end, start)) if end == central.offset => start,
                _ => position,
            };
            run_starts.push(start);
            before = Some((central.end, start));
        }
        let directory = |end: &DirectoryEnd| {
            let behind = self
                .centrals
                .partition_point(|central| central.offset < end.offset);
            let last = behind.checked_sub(1)?;
            let first = behind.checked_sub(usize::try_from(end.entries).ok()?)?;
            let is_whole = self.centrals.get(last)?.end == end.offset
                && *run_starts.get(last)? <= first
                && first <= last;
            let entries = self.centrals.get(first..behind)?;
            let moved = i64::try_from(entries.first()?.offset)
                .ok()?
                .checked_sub_unsigned(end.directory_offset)?;
            let is_last = file_nbytes.saturating_sub(end.offset) <= END_RECORDS_NBYTES as u64;
            is_whole.then(|| Directory {
                entries: first..behind,
                moved,
                is_ours: moved == 0 || (is_last && self.has_first_of(entries)),
            })
        };
        self.ends.iter().filter_map(directory).collect()
    }

    /// Whether a directory lists the first record of this file.
    fn has_first_of(&self, entries: &[Central]) -> bool {
        let Some(local) = self.locals.first().filter(|local| local.header_offset == 0) else {
            return false;
        };
        entries.iter().any(|central| {
            let described = Descriptor {
                nbytes: central.nbytes,
                crc32: central.crc32,
            };
            let mut stated = local.descriptors.iter().chain(&local.stated);
            central.header_offset == 0
                && central.name == local.name
                && stated.any(|stated| *stated == described)
        })
    }

    fn take_local(&mut self, offset: u64, bytes: &[u8]) {
        if self.locals.len() >= MAX_TRACES {
            return;
        }
        if let Some(local) = parse_local(offset, bytes) {
            let position = self.locals.len();
            self.payloads
                .entry(local.payload_offset)
                .or_insert(position);
            self.locals.push(local);
        }
    }

    /// A descriptor says how long its payload is, and so where that begins: only where a header has
    /// said the same is it one.
    fn take_descriptor(&mut self, offset: u64, bytes: &[u8]) {
        for descriptor in parse_descriptors(bytes) {
            let local = offset
                .checked_sub(descriptor.nbytes)
                .and_then(|payload_offset| self.payloads.get(&payload_offset))
                .and_then(|position| self.locals.get_mut(*position));
            if let Some(local) = local.filter(|local| local.descriptors.len() < MAX_DESCRIPTORS) {
                local.descriptors.push(descriptor);
            }
        }
    }
}

fn parse_local(header_offset: u64, bytes: &[u8]) -> Option<Local> {
    let header = LocalHeader::parse(bytes)?;
    if header.flags & !FLAGS_ALLOWED != 0 || header.method != METHOD_STORED {
        return None;
    }
    let tail = bytes.get(LOCAL_NBYTES..)?;
    let (name, rest) = tail.split_at_checked(usize::from(header.name_nbytes))?;
    let name = parse_name(name)?;
    let stated = if header.flags & FLAG_DESCRIPTOR == 0 {
        let extra = rest.get(..usize::from(header.extra_nbytes))?;
        let mut zip64 = zip64_field(extra).ok()?;
        let nbytes = widen(header.nbytes, &mut zip64).ok()?;
        let crc32 = header.crc32;
        Some(Descriptor { nbytes, crc32 })
    } else {
        None
    };
    Some(Local {
        header_offset,
        payload_offset: header_offset.checked_add(header.total_nbytes())?,
        name,
        stated,
        descriptors: Vec::new(),
    })
}

fn parse_central(offset: u64, bytes: &[u8]) -> Option<Central> {
    let entry = CentralEntry::parse(bytes)?;
    if entry.flags & !FLAGS_ALLOWED != 0 || entry.method != METHOD_STORED || entry.disk != 0 {
        return None;
    }
    let tail = bytes.get(CENTRAL_NBYTES..)?;
    let (name, rest) = tail.split_at_checked(usize::from(entry.name_nbytes))?;
    let name = parse_name(name)?;
    let extra = rest.get(..usize::from(entry.extra_nbytes))?;
    let mut zip64 = zip64_field(extra).ok()?;
    let nbytes = widen(entry.nbytes, &mut zip64).ok()?;
    let compressed_nbytes = widen(entry.compressed_nbytes, &mut zip64).ok()?;
    let header_offset = widen(entry.header_offset, &mut zip64).ok()?;
    let total = CENTRAL_NBYTES.saturating_add(entry.tail_nbytes());
    (compressed_nbytes == nbytes).then_some(Central {
        offset,
        end: offset.saturating_add(total as u64),
        header_offset,
        name,
        nbytes,
        crc32: entry.crc32,
    })
}

/// Both readings of a descriptor: with 32-bit sizes and with 64-bit sizes.
fn parse_descriptors(bytes: &[u8]) -> impl Iterator<Item = Descriptor> {
    let short = || -> Option<Descriptor> {
        let mut at = Cursor(bytes.get(4..usize::try_from(DESCRIPTOR_NBYTES).ok()?)?);
        let (crc32, compressed, nbytes) = (at.u32()?, at.u32()?, at.u32()?);
        let nbytes = u64::from(nbytes);
        (u64::from(compressed) == nbytes).then_some(Descriptor { nbytes, crc32 })
    };
    let long = || -> Option<Descriptor> {
        let mut at = Cursor(bytes.get(4..usize::try_from(DESCRIPTOR64_NBYTES).ok()?)?);
        let (crc32, compressed, nbytes) = (at.u32()?, at.u64()?, at.u64()?);
        (compressed == nbytes).then_some(Descriptor { nbytes, crc32 })
    };
    [short(), long()]
        .into_iter()
        .flatten()
        .filter(|descriptor| descriptor.nbytes > 0)
}

/// A name that a record may have: in a folder, printable as text.
fn parse_name(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let is_sound = name.len() <= MAX_NAME_NBYTES && !name.contains('\0');
    let (folder, record) = name.split_once('/')?;
    (is_sound && !folder.is_empty() && !record.is_empty()).then(|| name.to_owned())
}
