//! The elements of one tensor of a file, read piece by piece in their order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fastckpt_format::index::Entry;
use fastckpt_format::pickle::Dtype;

use crate::error::{ChecksumMismatch, Error, Result};
use crate::files::BLOCK_NBYTES;
use crate::job::{Unobserved, lock};
use crate::mapping::Mapping;
use crate::read::{Archive, Inspection, PlainFile, ReadOptions, Span};
use crate::source::{Source, allocate, block_start};
use crate::views::View;

/// What a header and the padding behind it may have: two fields of 16 bits and 30 bytes (zip APPNOTE
/// 4.3.7), and the blocks that a read begins and ends with.
const ROOM_NBYTES: u64 = 2 * (64 << 10) + 3 * BLOCK_NBYTES;

/// A buffer that takes any piece of `nbytes` bytes.
pub(crate) fn buffer_for(nbytes: usize) -> Result<Mapping> {
    allocate((nbytes as u64 + ROOM_NBYTES).next_multiple_of(BLOCK_NBYTES))
}

/// Where the elements of one tensor are.
pub(crate) struct Elements<'a> {
    /// Bytes of all elements.
    pub(crate) nbytes: u64,
    /// The record in the archive's index; `None` in a plain file.
    pub(crate) record: Option<usize>,
    /// Whether they are all the bytes of the record, one after the other.
    pub(crate) is_whole: bool,
    /// Set by who has the record inspected: see [`Elements::load`].
    pub(crate) is_inspected: bool,
    source: &'a Source,
    entry: Option<&'a Entry>,
    /// Where they begin in the file, if they are neighbours.
    start: u64,
    strided: Option<Strided<'a>>,
}

/// A tensor whose elements are no neighbours: its whole record is held while it is read.
struct Strided<'a> {
    record: Arc<HeldRecord<'a>>,
    view: View,
    itemsize: u64,
}

/// A record that strided tensors are read from: once, however many they are.
struct HeldRecord<'a> {
    archive: &'a Archive,
    key: String,
    /// Bytes of the elements of all of them that nobody has asked for yet.
    unread_nbytes: AtomicU64,
    held: Mutex<Held>,
}

/// What is known of the record of a strided tensor.
enum Held {
    Nothing,
    Record(Span),
    /// It is not what was written: whoever asks next is told so, and does not read it again.
    Damaged(Box<ChecksumMismatch>),
}

/// The tensors of one archive that are to be read.
pub(crate) struct Tensors<'a> {
    archive: &'a Archive,
    /// Those of strided tensors, by their position in the index.
    records: HashMap<usize, Arc<HeldRecord<'a>>>,
}

impl<'a> Tensors<'a> {
    pub(crate) fn new(archive: &'a Archive) -> Self {
        let records = HashMap::new();
        Self { archive, records }
    }

    /// One of them.
    ///
    /// # Errors
    /// Where there is no such record, or it is too short.
    pub(crate) fn elements(
        &mut self,
        key: &str,
        view: &View,
        dtype: Dtype,
    ) -> Result<Elements<'a>> {
        let archive = self.archive;
        let name = format!("data/{key}");
        let (position, entry) = archive.find(&name)?;
        let extent = view
            .within(dtype, entry.nbytes)
            .map_err(|problem| archive.bad_record(&name, problem))?;
        let strided = (!extent.is_contiguous).then(|| Strided {
            record: self.held(position, key, extent.nbytes),
            view: view.clone(),
            itemsize: dtype.itemsize(),
        });
        Ok(Elements {
            nbytes: extent.nbytes,
            record: Some(position),
            is_whole: extent.is_contiguous && extent.start == 0 && extent.nbytes == entry.nbytes,
            is_inspected: false,
            source: archive.source(),
            entry: Some(entry),
            // The index has proven that the record lies within the file.
            start: entry.payload_offset + extent.start,
            strided,
        })
    }

    /// The record of a strided tensor, from which so many bytes are going to be read.
    fn held(&mut self, position: usize, key: &str, nbytes: u64) -> Arc<HeldRecord<'a>> {
        let archive = self.archive;
        let record = self.records.entry(position).or_insert_with(|| {
            Arc::new(HeldRecord {
                archive,
                key: key.to_owned(),
                unread_nbytes: AtomicU64::new(0),
                held: Mutex::new(Held::Nothing),
            })
        });
        record.unread_nbytes.fetch_add(nbytes, Ordering::AcqRel);
        Arc::clone(record)
    }
}

impl<'a> Elements<'a> {
    /// `nbytes` bytes of a plain file, which the caller has found to be in it.
    pub(crate) fn of_plain_file(file: &'a PlainFile, start: u64, nbytes: u64) -> Self {
        Self {
            nbytes,
            record: None,
            is_whole: true,
            is_inspected: false,
            source: file.source(),
            entry: None,
            start,
            strided: None,
        }
    }

    /// Whether they come out of a record that is read, and checked, as a whole beforehand.
    pub(crate) fn is_strided(&self) -> bool {
        self.strided.is_some()
    }

    /// Brings `nbytes` bytes of the elements from `offset` on into `buffer`; returns where they begin
    /// in it. Each byte is asked for once. `inspection` is shown the bytes of an inspected record.
    pub(crate) fn load(
        &self,
        offset: u64,
        nbytes: usize,
        buffer: &mut Mapping,
        inspection: Option<&Inspection<'_>>,
    ) -> Result<usize> {
        if let Some(strided) = &self.strided {
            strided.gather(offset, &mut buffer.as_mut_slice()[..nbytes])?;
            return Ok(0);
        }
        let inspection = inspection.filter(|_| self.is_inspected);
        // The header is checked with the record: it says whose bytes these are.
        let header_nbytes = match (self.entry, inspection) {
            (Some(entry), Some(inspection)) if offset == 0 => {
                entry.payload_offset - inspection.start_of(entry)
            }
            _ => 0,
        };
        let start = self.start + offset - header_nbytes;
        let end = self.start + offset + nbytes as u64;
        self.source
            .read_chunk(&(start..end), buffer.as_mut_slice(), &mut |at, bytes| {
                if let Some(inspection) = inspection {
                    inspection.look(at, bytes);
                }
            })?;
        let before = start - block_start(start) + header_nbytes;
        Ok(usize::try_from(before).unwrap_or(usize::MAX))
    }
}

impl Strided<'_> {
    fn gather(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let record = self.record.read()?;
        let first = offset / self.itemsize;
        self.view
            .gather(self.itemsize, record.as_slice(), first, out);
        self.record.forget(out.len() as u64);
        Ok(())
    }
}

impl HeldRecord<'_> {
    /// Lets the record go once all of its bytes that are asked for have been.
    fn forget(&self, nbytes: u64) {
        if self.unread_nbytes.fetch_sub(nbytes, Ordering::AcqRel) == nbytes {
            *lock(&self.held) = Held::Nothing;
        }
    }

    /// The record, read and checked by the first who asks for it.
    fn read(&self) -> Result<Span> {
        let mut held = lock(&self.held);
        match &*held {
            Held::Record(record) => return Ok(record.clone()),
            Held::Damaged(mismatch) => return Err(Error::Checksum(mismatch.clone())),
            Held::Nothing => {}
        }
        let options = ReadOptions {
            verify: true,
            threads: std::num::NonZeroUsize::new(1),
        };
        let keys = [self.key.clone()];
        let read = self.archive.read(&keys, &options, &mut Unobserved);
        if let Err(Error::Checksum(mismatch)) = &read {
            *held = Held::Damaged(mismatch.clone());
        }
        let record = read?.swap_remove(0);
        *held = Held::Record(record.clone());
        Ok(record)
    }
}
