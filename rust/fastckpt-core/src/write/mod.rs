//! Writing an archive: planned, composed chunk by chunk in any order, written in parallel.

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fastckpt_format::archive::SaveMark;

use crate::error::{Error, Phase, Result};
use crate::files::{self, BLOCK_NBYTES, File};
use crate::job::{self, Attendant, Job, Observer};
use crate::mapping::Mapping;

mod compose;
mod plan;
mod sequential;
mod staging;

pub use plan::{ArchivePlan, StorageSource, archive_nbytes};
pub use sequential::{Sink, write_to_sink};
pub use staging::SaveStager;

use compose::Image;
use staging::Staging;

/// What is composed and written at a time. Small enough that the bytes are still in the cache when
/// they are handed to the disk, big enough for a disk to reach its full speed.
const CHUNK_NBYTES: usize = 2 << 20;

/// All the workers' buffers together take no more than this, whatever the size of the archive.
const MAX_BUFFERS_NBYTES: usize = 64 << 20;

/// How to write. The bytes are the same whatever is chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// Worker threads; by default as many as [`job::default_threads`] says.
    pub threads: Option<NonZeroUsize>,
    /// Bytes to compose and write at a time, rounded up to whole blocks; 2 MiB by default.
    pub chunk_nbytes: Option<NonZeroUsize>,
    /// Direct I/O where the file system has it; by default where the file is fsynced.
    pub direct: Option<bool>,
}

impl WriteOptions {
    /// Workers, as many as asked for, but no more than may have a buffer each.
    fn threads(&self) -> usize {
        let wanted = self
            .threads
            .map_or_else(job::default_threads, NonZeroUsize::get);
        wanted.min(MAX_BUFFERS_NBYTES / self.chunk_nbytes()).max(1)
    }

    fn chunk_nbytes(&self) -> usize {
        let block = usize::try_from(BLOCK_NBYTES).unwrap_or(usize::MAX);
        self.chunk_nbytes
            .map_or(CHUNK_NBYTES, NonZeroUsize::get)
            .next_multiple_of(block)
    }
}

/// Makes the bytes of storages when they are written, in the worker that writes them.
pub trait StorageMaker: Sync {
    /// Fills `out` with the bytes of storage `storage` from `offset` on. Each byte is asked for once,
    /// by any worker and in any order; pieces begin and end at multiples of the alignment, or at the
    /// storage's end.
    fn make(&self, storage: usize, offset: u64, out: &mut [u8]) -> Result<()>;
}

/// Where the bytes of the storages that are not in host memory come from.
pub(crate) enum Supply<'a> {
    /// There is no such storage.
    Nothing,
    /// From a device.
    Staged(&'a mut dyn SaveStager),
    /// They are made when they are needed.
    Made(&'a dyn StorageMaker),
}

/// What is known of an archive once it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Size of the file.
    pub nbytes: u64,
    /// The 20 digits of torch's hash over the records' CRCs: the second half of the file's
    /// `.data/serialization_id`.
    pub content_hash: String,
}

/// Writes the archive into an empty file; `direct` says whether the file was opened for direct I/O.
pub(crate) fn write_to_file(
    file: &Arc<dyn File>,
    path: &Path,
    direct: bool,
    plan: &ArchivePlan,
    options: &WriteOptions,
    observer: &mut dyn Observer,
    supply: Supply<'_>,
) -> Result<Written> {
    let nbytes = plan.nbytes();
    let output = Output::begin(&**file, path, nbytes, direct)?;
    let job = Job::new(nbytes);
    let chunk_nbytes = options.chunk_nbytes();
    let (stager, maker) = match supply {
        Supply::Nothing => (None, None),
        Supply::Staged(stager) => (Some(stager), None),
        Supply::Made(maker) => (None, Some(maker)),
    };
    let staging = stager.as_deref().map(|stager| Staging::new(plan, stager));
    let image = Image::new(plan, chunk_nbytes, staging.as_ref(), maker);
    let mut stage = staging
        .as_ref()
        .zip(stager)
        .map(|(staging, stager)| staging.attendant(stager, &job));
    job.run(
        options.threads(),
        image.chunks(),
        observer,
        stage.as_mut().map(|stage| stage as &mut dyn Attendant),
        || buffer(chunk_nbytes),
        |buffer, chunk| {
            let range = image.range(chunk);
            let filled = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            image.compose(&job, chunk, &mut buffer.as_mut_slice()[..filled])?;
            output.write(buffer.as_mut_slice(), filled, range.start)?;
            job.advance(filled as u64);
            Ok(())
        },
    )?;
    output.end()?;
    Ok(Written {
        nbytes,
        content_hash: image.content_hash(),
    })
}

/// The file being written, and whether direct I/O is still on.
pub(crate) struct Output<'a> {
    file: &'a dyn File,
    path: &'a Path,
    nbytes: u64,
    allocated: u64,
    direct: AtomicBool,
}

impl<'a> Output<'a> {
    /// Reserves the space that `nbytes` bytes take; `direct` says whether the file was opened for
    /// direct I/O.
    pub(crate) fn begin(
        file: &'a dyn File,
        path: &'a Path,
        nbytes: u64,
        direct: bool,
    ) -> Result<Self> {
        let allocated = if direct {
            nbytes.next_multiple_of(BLOCK_NBYTES)
        } else {
            nbytes
        };
        match file.allocate(allocated) {
            // Of nothing, the system takes it for a mistake.
            Err(error) if nbytes > 0 && error.kind() != io::ErrorKind::Unsupported => {
                return Err(Error::io(Phase::Allocate, path)(error));
            }
            _ => {}
        }
        Ok(Self {
            file,
            path,
            nbytes,
            allocated,
            direct: AtomicBool::new(direct),
        })
    }

    /// Cuts off what the last block has too much.
    pub(crate) fn end(self) -> Result<()> {
        if self.allocated != self.nbytes {
            self.file
                .truncate(self.nbytes)
                .map_err(Error::io(Phase::Truncate, self.path))?;
        }
        Ok(())
    }

    /// Writes the first `filled` bytes of `buffer`; with direct I/O, whole blocks of it.
    pub(crate) fn write(&self, buffer: &mut [u8], filled: usize, offset: u64) -> Result<()> {
        if self.direct.load(Ordering::Acquire) {
            let block = usize::try_from(BLOCK_NBYTES).unwrap_or(usize::MAX);
            let whole = filled.next_multiple_of(block);
            buffer[filled..whole].fill(0);
            match files::write_all_at(self.file, &buffer[..whole], offset) {
                Ok(()) => return Ok(()),
                // Some file systems let a file be opened for direct I/O and refuse the first write.
                Err(error) if files::refuses_direct(&error) => self.leave_direct()?,
                Err(error) => return Err(self.wrap(error)),
            }
        }
        files::write_all_at(self.file, &buffer[..filled], offset).map_err(|error| self.wrap(error))
    }

    fn leave_direct(&self) -> Result<()> {
        self.file
            .set_direct(false)
            .map_err(|error| self.wrap(error))?;
        self.direct.store(false, Ordering::Release);
        Ok(())
    }

    fn wrap(&self, error: io::Error) -> Error {
        Error::io(Phase::Write, self.path)(error)
    }
}

fn buffer(nbytes: usize) -> Result<Mapping> {
    Mapping::anonymous(nbytes).map_err(|_refused| Error::OutOfMemory {
        nbytes: nbytes as u64,
    })
}

/// The mark of a file that belongs to no step.
pub const NO_STEP: SaveMark = SaveMark {
    shards: 0,
    save_id: 0,
};
