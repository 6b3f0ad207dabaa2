//! Copies of files, verified on the way: the bytes that are written are the very bytes whose
//! checksums were compared, read once.

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::Commit;
use super::temp::PRIVATE_MODE;
use crate::error::{Error, Phase, Result};
use crate::files::{self, File, Metadata};
use crate::job::{Observer, default_threads};
use crate::read::Archive;
use crate::source::Source;
use crate::verify::{FileReport, VerifyOptions, verify_on};
use crate::write::Output;

/// How a file is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOptions {
    /// Whether the file is an archive, to be compared with its checksums.
    pub verify: bool,
    /// Worker threads; `None` takes [`default_threads`].
    pub threads: Option<NonZeroUsize>,
    /// Direct writes where the file system has them; by default where the file is fsynced.
    pub direct: Option<bool>,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            verify: true,
            threads: None,
            direct: None,
        }
    }
}

/// What became of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// What verifying the bytes found. With any damage there is no copy.
    pub report: FileReport,
    /// Why the copy could not get the mode, the access control list or the time of the original.
    pub unkept: Option<String>,
}

impl Commit {
    /// Copies the file `source` for `path`, under a temporary name beside it, with its mode, its
    /// access control list and the time of its last change.
    ///
    /// # Errors
    /// Where one of the two cannot be read or written. What is wrong with the bytes is in the
    /// report, and then nothing is left to be published.
    pub fn copy_file(
        &mut self,
        path: &Path,
        source: &Path,
        options: &CopyOptions,
        observer: &mut dyn Observer,
    ) -> Result<Copied> {
        let file = self
            .files
            .open(source)
            .map_err(Error::io(Phase::Open, source))?;
        let attributes = Attributes::of(&*file).map_err(Error::io(Phase::Open, source))?;
        let nbytes = attributes.metadata.nbytes;
        let original = match Original::new(file, source, options) {
            Err(Error::Format { source, .. }) => {
                return Ok(Copied::unreadable(nbytes, source.to_string()));
            }
            other => other?,
        };
        let direct = options.direct.unwrap_or(self.sync);
        let (new, direct) = self.begin(path, PRIVATE_MODE, direct)?;
        let file = &*new.temp.file;
        let mut unkept = attributes.lend_rights(file).err();
        let filled = original
            .copy_to(file, path, direct, options, observer)
            .inspect(|_report| {
                unkept = unkept.take().or_else(|| attributes.lend_time(file).err());
            });
        match filled {
            // Leaving, `new` removes the temporary file.
            Err(Error::Format { source, .. }) => Ok(Copied::unreadable(nbytes, source.to_string())),
            Ok(report) if !report.damages.is_empty() => Ok(Copied {
                report,
                unkept: None,
            }),
            filled => Ok(Copied {
                report: self.finish(new, nbytes, filled, observer)?,
                unkept: unkept.map(|error| error.to_string()),
            }),
        }
    }

    /// Writes a small file for `path`, under a temporary name beside it, with mode, access control
    /// list and time of the file `original`. Returns why they could not be kept, if so.
    pub fn write_bytes_like(
        &mut self,
        path: &Path,
        bytes: &[u8],
        original: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<String>> {
        let attributes = self
            .files
            .open(original)
            .and_then(|file| Attributes::of(&*file))
            .map_err(Error::io(Phase::Open, original))?;
        let (new, _direct) = self.begin(path, PRIVATE_MODE, false)?;
        let file = &*new.temp.file;
        let mut unkept = attributes.lend_rights(file).err();
        let filled = files::write_all_at(file, bytes, 0).map_err(Error::io(Phase::Write, path));
        unkept = unkept.or_else(|| attributes.lend_time(file).err());
        self.finish(new, bytes.len() as u64, filled, observer)?;
        Ok(unkept.map(|error| error.to_string()))
    }
}

impl Copied {
    fn unreadable(nbytes: u64, detail: String) -> Self {
        Self {
            report: FileReport::unreadable(nbytes, detail),
            unkept: None,
        }
    }
}

/// The file that is copied.
enum Original {
    Archive(Box<Archive>),
    /// Whatever it is.
    Bytes(Source),
}

impl Original {
    fn new(file: Arc<dyn File>, path: &Path, options: &CopyOptions) -> Result<Self> {
        if options.verify {
            Archive::from_file(file, path.to_owned())
                .map(|archive| Self::Archive(Box::new(archive)))
        } else {
            Source::new(file, path.to_owned()).map(Self::Bytes)
        }
    }

    fn copy_to(
        &self,
        file: &dyn File,
        path: &Path,
        direct: bool,
        options: &CopyOptions,
        observer: &mut dyn Observer,
    ) -> Result<FileReport> {
        let nbytes = match self {
            Self::Archive(archive) => archive.nbytes(),
            Self::Bytes(source) => source.nbytes(),
        };
        let output = Output::begin(file, path, nbytes, direct)?;
        let hand_on = |buffer: &mut [u8], chunk: &std::ops::Range<u64>| {
            // Chunks of the whole file begin where a block does.
            let filled = usize::try_from(chunk.end - chunk.start).unwrap_or(usize::MAX);
            output.write(buffer, filled, chunk.start)
        };
        let report = match self {
            Self::Archive(archive) => {
                let options = VerifyOptions {
                    quick: false,
                    threads: options.threads,
                };
                verify_on(archive, &options, observer, &hand_on)?
            }
            Self::Bytes(source) => {
                let threads = options
                    .threads
                    .map_or_else(default_threads, NonZeroUsize::get);
                let everything = 0..nbytes;
                source.sweep_on(
                    std::slice::from_ref(&everything),
                    threads,
                    observer,
                    &|_offset, _bytes| {},
                    &hand_on,
                )?;
                FileReport::unchecked(nbytes)
            }
        };
        output.end()?;
        Ok(report)
    }
}

/// What a copy takes over from its original beside the bytes.
struct Attributes {
    metadata: Metadata,
    access_list: Option<Vec<u8>>,
    modified: Option<SystemTime>,
}

impl Attributes {
    fn of(file: &dyn File) -> io::Result<Self> {
        Ok(Self {
            metadata: file.metadata()?,
            access_list: file.access_list()?,
            modified: file.modified()?,
        })
    }

    /// The owner stays who copies, as with any copy.
    fn lend_rights(&self, to: &dyn File) -> io::Result<()> {
        let own = to.metadata()?;
        let like = Metadata {
            uid: own.uid,
            gid: own.gid,
            ..self.metadata
        };
        to.set_rights(&like, self.access_list.as_deref())
    }

    fn lend_time(&self, to: &dyn File) -> io::Result<()> {
        self.modified.map_or(Ok(()), |time| to.set_modified(time))
    }
}
