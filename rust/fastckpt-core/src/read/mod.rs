//! One .pt file that is open for reading.
//!
//! The directory is checked when the file is opened, a record's bytes when they are read. The
//! archive is untrusted: memory is asked for by sizes that the file really has, and no offset is
//! used that has not been compared with it.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastckpt_format::index::{Entry, Index};

use crate::error::{ChecksumMismatch, Error, Phase, Result};
use crate::files::{File, Files};
use crate::job::{Observer, default_threads};
use crate::mapping::Mapping;
use crate::source::{Source, in_memory};

mod align;
mod bytes;
mod decode;
mod directory;
mod extents;
mod inspect;
mod legacy;
mod load;
mod plain;
mod staged;

pub(crate) use extents::{Selection, merge_near};
pub(crate) use inspect::{Inspection, Mismatch, intersection, within};
pub use legacy::LegacyFile;
pub use plain::PlainFile;
pub use staged::LoadStager;

use bytes::MemoryFile;
use directory::parse;
use inspect::Verdict;
use load::Loaded;
use staged::{Destination, StagedRead};

/// How records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Whether payloads are compared with their CRCs. Headers are checked in any case.
    pub verify: bool,
    /// Number of workers; `None` takes [`default_threads`].
    pub threads: Option<NonZeroUsize>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            verify: true,
            threads: None,
        }
    }
}

impl ReadOptions {
    fn threads(&self) -> usize {
        self.threads.map_or_else(default_threads, NonZeroUsize::get)
    }
}

/// The bytes of one record: `nbytes` bytes of `memory` from `offset` on.
#[derive(Debug, Clone)]
pub struct Span {
    /// Private memory, of which other spans may have other parts.
    pub memory: Arc<Mapping>,
    /// Where the record begins in it.
    pub offset: usize,
    /// Size of the record.
    pub nbytes: usize,
}

impl Span {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.memory.as_slice()[self.offset..self.offset + self.nbytes]
    }
}

/// An open archive, its directory checked.
#[derive(Debug)]
pub struct Archive {
    source: Source,
    index: Index,
}

impl Archive {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// Where it cannot be read, or is no archive.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Self> {
        Self::from_file(
            files.open(path).map_err(Error::io(Phase::Open, path))?,
            path.to_owned(),
        )
    }

    /// Reads a file that is open already; `name` is for messages.
    ///
    /// # Errors
    /// Where it cannot be read, or is no archive.
    pub fn from_file(file: Arc<dyn File>, name: PathBuf) -> Result<Self> {
        let source = Source::new(file, name)?;
        let index = parse(&source)?;
        Ok(Self { source, index })
    }

    /// Reads an archive that lies in memory; its records are copied out of `bytes`, which must not
    /// change meanwhile.
    ///
    /// # Errors
    /// Where it is no archive.
    pub fn from_bytes(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>, name: PathBuf) -> Result<Self> {
        Self::from_file(Arc::new(MemoryFile(bytes)), name)
    }

    /// A file of which an index has been made in another way.
    pub(crate) fn of_records(source: Source, index: Index) -> Self {
        Self { source, index }
    }

    /// The file's name, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The records.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Size of the file in bytes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.source.nbytes()
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Reads one small record.
    ///
    /// # Errors
    /// Where it is not there, cannot be read or, with `verify`, is not what was written.
    pub fn read_record(&self, name: &str, verify: bool) -> Result<Vec<u8>> {
        let (position, entry) = self.find(name)?;
        let selection = self.select(vec![position]);
        let inspection = Inspection::new(&self.index, &selection, verify);
        let range = selection.range(entry);
        let mut bytes = self
            .source
            .read_exact(range.start, in_memory(range.end - range.start))?;
        inspection.look(range.start, &bytes);
        self.conclude(inspection.finish())?;
        bytes.drain(..in_memory(entry.payload_offset - range.start));
        Ok(bytes)
    }

    /// Reads the records `data/<key>` into private memory, in parallel; the result has the order of
    /// `keys`.
    ///
    /// Each byte lies at its offset in the file modulo the block size. Large records have memory
    /// of their own, small ones share it.
    ///
    /// # Errors
    /// Where one is not there, cannot be read, is not what was written, or memory is refused.
    pub fn read(
        &self,
        keys: &[String],
        options: &ReadOptions,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Span>> {
        self.load(keys, |selection| {
            load::read(&self.source, &self.index, selection, options, observer)
        })
    }

    /// The same, but the memory is one private (copy-on-write) mapping of the whole file.
    ///
    /// Should another process cut the file, or the disk fail, to look at the memory kills this
    /// process (SIGBUS). An archive in memory is read instead.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn map(
        &self,
        keys: &[String],
        options: &ReadOptions,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Span>> {
        self.load(keys, |selection| {
            load::map(&self.source, &self.index, selection, options, observer)
        })
    }

    fn load(
        &self,
        keys: &[String],
        load: impl FnOnce(&Selection) -> Result<Loaded>,
    ) -> Result<Vec<Span>> {
        let positions = self.positions(keys)?;
        let selection = self.select(positions.clone());
        let loaded = load(&selection)?;
        self.hand_out(&positions, &selection, loaded)
    }

    /// Reads the records `data/<key>` through the buffers of `stager`; destination i is `keys[i]`.
    ///
    /// What has been placed when an error is returned is nothing that may be used. Then too, no
    /// copy out of the buffers is under way any more.
    ///
    /// # Errors
    /// As [`Archive::read`]; [`Error::Interrupted`] where the stager asked to stop.
    pub fn read_staged(
        &self,
        keys: &[String],
        options: &ReadOptions,
        observer: &mut dyn Observer,
        stager: &mut dyn LoadStager,
    ) -> Result<()> {
        let positions = self.positions(keys)?;
        let selection = self.select(positions.clone());
        let destination = |(index, entry)| Destination { entry, index };
        let mut destinations: Vec<_> = positions.into_iter().enumerate().map(destination).collect();
        destinations.sort_by_key(|to| to.entry);
        let work = StagedRead {
            source: &self.source,
            index: &self.index,
            selection: &selection,
            destinations: &destinations,
        };
        self.conclude(work.run(options, observer, stager)?)
    }

    /// Checks the CRCs of the records `data/<key>`, which nobody reads.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn check(
        &self,
        keys: &[String],
        options: &ReadOptions,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if !options.verify {
            return Ok(());
        }
        let selection = self.select(self.positions(keys)?);
        let inspection = Inspection::new(&self.index, &selection, true);
        let ranges = selection.ranges(&self.index);
        self.source
            .sweep(&ranges, options.threads(), observer, &|offset, bytes| {
                inspection.look(offset, bytes);
            })?;
        self.conclude(inspection.finish())
    }

    fn hand_out(
        &self,
        positions: &[usize],
        selection: &Selection,
        (spans, verdict): Loaded,
    ) -> Result<Vec<Span>> {
        self.conclude(verdict)?;
        let span_of = |position| {
            let found = selection
                .entries
                .binary_search(position)
                .unwrap_or_else(|never| never);
            spans[found].clone()
        };
        Ok(positions.iter().map(span_of).collect())
    }

    pub(crate) fn conclude(&self, verdict: Verdict) -> Result<()> {
        // A bad header comes first: with it, it is not certain whose bytes were looked at.
        if let Some(source) = verdict.bad_header {
            return Err(self.source.malformed(source));
        }
        match verdict.mismatches.first() {
            Some(first) => Err(Error::Checksum(Box::new(self.describe(*first)))),
            None => Ok(()),
        }
    }

    pub(crate) fn select(&self, positions: Vec<usize>) -> Selection {
        // Without torch's layout, the index has read the headers itself.
        Selection::new(positions, self.index.layout().is_some())
    }

    fn positions(&self, keys: &[String]) -> Result<Vec<usize>> {
        let position = |key| {
            self.find(&format!("data/{key}"))
                .map(|(position, _entry)| position)
        };
        keys.iter().map(position).collect()
    }

    pub(crate) fn find(&self, name: &str) -> Result<(usize, &Entry)> {
        let missing = || self.bad_record(name, "is missing from the archive".to_owned());
        self.index.find(name).ok_or_else(missing)
    }

    pub(crate) fn bad_record(&self, record: &str, problem: String) -> Error {
        Error::Record {
            path: self.path().to_owned(),
            record: record.to_owned(),
            problem,
        }
    }

    fn describe(&self, mismatch: Mismatch) -> ChecksumMismatch {
        let entry = &self.index.entries()[mismatch.entry];
        // data.pkl has the names, so of its own damage there are none.
        let tensors = match entry.name.as_str() {
            "data.pkl" => Vec::new(),
            name => self.tensors_by_record().remove(name).unwrap_or_default(),
        };
        ChecksumMismatch {
            path: self.path().to_owned(),
            record: entry.name.clone(),
            tensors,
            offset: entry.payload_offset,
            nbytes: entry.nbytes,
            expected: entry.crc32,
            found: mismatch.found,
        }
    }
}
