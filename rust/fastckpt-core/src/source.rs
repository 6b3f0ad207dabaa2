//! The bytes of one file, each chunk read in the fastest way that the system offers.
//!
//! What the page cache holds is copied from there. The rest is read directly, past the cache: the
//! disk writes to the memory where the bytes belong, and what others have cached stays cached.
//! Where a file system has no direct I/O, or cannot say what is cached, plain reads do it all.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use fastckpt_format::FormatError;

use crate::error::{Error, Phase, Result};
use crate::files::{BLOCK_NBYTES, File, read_full_at, refuses_direct};
use crate::job::{Job, Observer};
use crate::mapping::Mapping;

/// Read by one worker at a time, on the disk in one request: large enough for it to be busy with
/// few of them, and a huge page, so that no two workers ask the kernel for the same one.
pub(crate) const CHUNK_NBYTES: usize = 2 << 20;

/// Copied from the page cache at a time, and looked at before the next: half of a second-level
/// cache (1 MiB and more on the processors in use), so that the CRC does not go to memory again.
const PIECE_NBYTES: usize = 512 << 10;

/// After a chunk that is not in the page cache, so many more are read without asking for them
/// there; the number doubles with each miss. Asking is not free: the kernel starts to read ahead.
const MAX_UNASKED: u32 = 64;

/// Takes a chunk of a file, in any order and from several threads. The buffer begins with the block
/// that has the chunk's first byte, and has whole blocks, of which the rest may be overwritten.
pub(crate) type HandOn<'a> = &'a (dyn Fn(&mut [u8], &Range<u64>) -> Result<()> + Sync);

/// One open file, of which the size was taken when it was opened.
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<dyn File>,
    path: PathBuf,
    nbytes: u64,
    /// The same file, opened for direct reads when the first chunk is read; `None` where there is
    /// no such thing.
    direct: OnceLock<Option<Arc<dyn File>>>,
    /// Some file systems open a file for direct reads and then refuse them.
    direct_is_refused: AtomicBool,
    cache_is_unknown: AtomicBool,
    /// Chunks that will be read without asking the page cache for them.
    unasked: AtomicU32,
    /// What `unasked` was set to last.
    last_unasked: AtomicU32,
}

impl Source {
    /// Takes the file's size.
    pub(crate) fn new(file: Arc<dyn File>, path: PathBuf) -> Result<Self> {
        let nbytes = file
            .metadata()
            .map_err(Error::io(Phase::Open, &path))?
            .nbytes;
        if usize::try_from(nbytes).is_err() {
            return Err(Error::OutOfMemory { nbytes });
        }
        Ok(Self {
            file,
            path,
            nbytes,
            direct: OnceLock::new(),
            direct_is_refused: AtomicBool::new(false),
            cache_is_unknown: AtomicBool::new(false),
            unasked: AtomicU32::new(0),
            last_unasked: AtomicU32::new(0),
        })
    }

    /// The name of the file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file when it was opened.
    pub(crate) fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// Describes a failure of the system.
    pub(crate) fn failed(&self, phase: Phase) -> impl FnOnce(io::Error) -> Error {
        Error::io(phase, &self.path)
    }

    /// Describes what is wrong with the bytes.
    pub(crate) fn malformed(&self, source: FormatError) -> Error {
        Error::Format {
            path: self.path.clone(),
            source,
        }
    }

    /// Exactly `nbytes` bytes from `offset` on, by plain reads: for what is small.
    pub(crate) fn read_exact(&self, offset: u64, nbytes: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // The size comes from the file, where a hole costs nothing: it may be more than there is.
        bytes
            .try_reserve_exact(nbytes)
            .map_err(|_refused| Error::OutOfMemory {
                nbytes: nbytes as u64,
            })?;
        bytes.resize(nbytes, 0);
        let found =
            read_full_at(&*self.file, &mut bytes, offset).map_err(self.failed(Phase::Read))?;
        if found < nbytes {
            Err(self.truncated(offset, nbytes, found))
        } else {
            Ok(bytes)
        }
    }

    /// Reads the bytes `wanted` into `buffer`, which begins with the block that has the first of
    /// them, and shows them to `arrived` with their offset, in pieces and in order, while the
    /// processor has them at hand.
    ///
    /// For direct reads the buffer's address and length are multiples of [`BLOCK_NBYTES`]; what
    /// its first and last block have beside the wanted bytes is undefined.
    pub(crate) fn read_chunk(
        &self,
        wanted: &Range<u64>,
        buffer: &mut [u8],
        arrived: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<()> {
        let offset = block_start(wanted.start);
        let nbytes = in_memory(wanted.end - offset);
        let arrived = &mut |piece_offset: u64, piece: &[u8]| {
            let before = in_memory(wanted.start.saturating_sub(piece_offset)).min(piece.len());
            arrived(piece_offset + before as u64, &piece[before..]);
        };
        let mut done = 0;
        if let Some(direct) = self.direct() {
            if self.asks_cache() {
                done = self.read_cached(offset, &mut buffer[..nbytes], arrived)?;
            }
            if done < nbytes && !self.cache_is_unknown.load(Ordering::Relaxed) {
                let blocks = nbytes
                    .next_multiple_of(in_memory(BLOCK_NBYTES))
                    .min(buffer.len());
                done =
                    self.read_direct(direct, offset, &mut buffer[..blocks], done..nbytes, arrived)?;
            }
        }
        self.read_buffered(offset, &mut buffer[..nbytes], done, arrived)
    }

    /// Returns up to where whole pieces were in the page cache.
    fn read_cached(
        &self,
        offset: u64,
        buffer: &mut [u8],
        arrived: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<usize> {
        let mut done = 0;
        for piece in buffer.chunks_mut(PIECE_NBYTES) {
            let piece_offset = offset + done as u64;
            match read_cached_full_at(&*self.file, piece, piece_offset) {
                Ok(()) => arrived(piece_offset, piece),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.was_uncached();
                        return Ok(done);
                    }
                    io::ErrorKind::Unsupported => {
                        self.cache_is_unknown.store(true, Ordering::Relaxed);
                        return Ok(done);
                    }
                    // The plain read that follows says how the file ends.
                    io::ErrorKind::UnexpectedEof => return Ok(done),
                    _ => return Err(self.failed(Phase::Read)(error)),
                },
            }
            done += piece.len();
        }
        self.last_unasked.store(0, Ordering::Relaxed);
        Ok(done)
    }

    /// Returns up to where direct reads got: less than was wanted where the file ends, or where
    /// they are refused.
    fn read_direct(
        &self,
        direct: &dyn File,
        offset: u64,
        buffer: &mut [u8],
        wanted: Range<usize>,
        arrived: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<usize> {
        let mut done = wanted.start;
        while done < wanted.end {
            let end = buffer.len().min(done + CHUNK_NBYTES);
            let (n, refused) = read_blocks_at(direct, &mut buffer[done..end], offset + done as u64)
                .map_err(self.failed(Phase::Read))?;
            if refused {
                self.direct_is_refused.store(true, Ordering::Relaxed);
            }
            let read_end = (done + n).min(wanted.end);
            if read_end > done {
                arrived(offset + done as u64, &buffer[done..read_end]);
            }
            done = read_end;
            if done < end.min(wanted.end) {
                break;
            }
        }
        Ok(done)
    }

    fn read_buffered(
        &self,
        offset: u64,
        buffer: &mut [u8],
        done: usize,
        arrived: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<()> {
        let mut piece_offset = offset + done as u64;
        for piece in buffer[done..].chunks_mut(PIECE_NBYTES) {
            let n =
                read_full_at(&*self.file, piece, piece_offset).map_err(self.failed(Phase::Read))?;
            if n < piece.len() {
                return Err(self.truncated(piece_offset, piece.len(), n));
            }
            arrived(piece_offset, piece);
            piece_offset += n as u64;
        }
        Ok(())
    }

    /// Reads all of `ranges` (in order, apart from each other) in parallel, for `look` alone.
    pub(crate) fn sweep(
        &self,
        ranges: &[Range<u64>],
        threads: usize,
        observer: &mut dyn Observer,
        look: &(dyn Fn(u64, &[u8]) + Sync),
    ) -> Result<()> {
        self.sweep_on(ranges, threads, observer, look, &|_buffer, _chunk| Ok(()))
    }

    /// The same, and hands each chunk on once `look` has seen all of it.
    pub(crate) fn sweep_on(
        &self,
        ranges: &[Range<u64>],
        threads: usize,
        observer: &mut dyn Observer,
        look: &(dyn Fn(u64, &[u8]) + Sync),
        hand_on: HandOn<'_>,
    ) -> Result<()> {
        let chunks = chunks_of(ranges, CHUNK_NBYTES as u64);
        // No more than is needed: a huge page for each small file costs more than reading it.
        let blocks = |chunk: &Range<u64>| chunk.end - block_start(chunk.start);
        let largest = chunks.iter().map(blocks).max().unwrap_or(0);
        let job = Job::new(total_nbytes(ranges));
        job.run(
            threads,
            chunks.len(),
            observer,
            None,
            || allocate(largest.next_multiple_of(BLOCK_NBYTES)),
            |buffer: &mut Mapping, item| {
                let chunk = &chunks[item];
                self.read_chunk(chunk, buffer.as_mut_slice(), &mut |offset, bytes| {
                    look(offset, bytes);
                })?;
                hand_on(buffer.as_mut_slice(), chunk)?;
                job.advance(chunk.end - chunk.start);
                Ok(())
            },
        )
    }

    /// A private mapping of the whole file, which is still as long as it was; `None` where it
    /// cannot be mapped.
    pub(crate) fn map(&self) -> Result<Option<Mapping>> {
        let mapping = match self.file.map(0, in_memory(self.nbytes)) {
            Ok(mapping) => mapping,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                return Err(Error::OutOfMemory {
                    nbytes: self.nbytes,
                });
            }
            Err(error) => return Err(self.failed(Phase::Map)(error)),
        };
        let now = self
            .file
            .metadata()
            .map_err(self.failed(Phase::Map))?
            .nbytes;
        if now < self.nbytes {
            return Err(self.truncated(0, in_memory(self.nbytes), in_memory(now)));
        }
        Ok(Some(mapping))
    }

    /// Brings a part of the mapped file in: a bad disk gives an error here, not a signal later.
    pub(crate) fn populate(&self, mapping: &Mapping, range: &Range<u64>) -> Result<()> {
        mapping
            .populate(in_memory(range.start)..in_memory(range.end))
            .map_err(self.failed(Phase::Read))
    }

    fn direct(&self) -> Option<&dyn File> {
        if self.direct_is_refused.load(Ordering::Relaxed)
            || self.cache_is_unknown.load(Ordering::Relaxed)
        {
            return None;
        }
        // Whatever the reason why it cannot be opened (no /proc, no more descriptors): plain reads
        // find out whether the file can be read at all.
        self.direct
            .get_or_init(|| self.file.open_direct().ok())
            .as_deref()
    }

    fn asks_cache(&self) -> bool {
        let spend = |unasked: u32| unasked.checked_sub(1);
        self.unasked
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .is_err()
    }

    fn was_uncached(&self) {
        let unasked = (self.last_unasked.load(Ordering::Relaxed) * 2).clamp(1, MAX_UNASKED);
        self.last_unasked.store(unasked, Ordering::Relaxed);
        self.unasked.store(unasked, Ordering::Relaxed);
    }

    fn truncated(&self, offset: u64, expected: usize, found: usize) -> Error {
        self.malformed(FormatError::Truncated {
            offset,
            expected: expected as u64,
            found: found as u64,
        })
    }
}

/// Fills `buffer` from the page cache; `UnexpectedEof` at the end of the file.
fn read_cached_full_at(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_cached_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads directly until `buffer` is full, the file ends or direct reads are refused, which is the
/// second result. Each read starts at a block, so what a short one left of its last is read again.
fn read_blocks_at(direct: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<(usize, bool)> {
    let block = in_memory(BLOCK_NBYTES);
    let mut done = 0;
    loop {
        let start = done - done % block;
        match direct.read_at(&mut buffer[start..], offset + start as u64) {
            Ok(n) if start + n <= done => return Ok((done, false)),
            Ok(n) => done = start + n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if refuses_direct(&error) => return Ok((done, true)),
            Err(error) => return Err(error),
        }
        if done == buffer.len() {
            return Ok((done, false));
        }
    }
}

/// Cuts ranges into chunks that touch at most `chunk_nbytes` bytes (a multiple of the block size)
/// of whole blocks, and end where a block ends or their range does.
pub(crate) fn chunks_of(ranges: &[Range<u64>], chunk_nbytes: u64) -> Vec<Range<u64>> {
    let mut chunks = Vec::new();
    for range in ranges {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(block_start(start) + chunk_nbytes);
            chunks.push(start..end);
            start = end;
        }
    }
    chunks
}

/// How many bytes ranges have together.
pub(crate) fn total_nbytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// The start of the block that has this offset.
pub(crate) fn block_start(offset: u64) -> u64 {
    offset - offset % BLOCK_NBYTES
}

/// Anonymous memory.
pub(crate) fn allocate(nbytes: u64) -> Result<Mapping> {
    let refused = Error::OutOfMemory { nbytes };
    let Ok(in_memory) = usize::try_from(nbytes) else {
        return Err(refused);
    };
    Mapping::anonymous(in_memory).map_err(|_whatever_the_reason| refused)
}

/// An offset or size within a file that is open: [`Source::new`] refuses files that are larger
/// than the address space.
pub(crate) fn in_memory(nbytes: u64) -> usize {
    usize::try_from(nbytes).unwrap_or(usize::MAX)
}
