//! A file of torch before 1.6, as an archive of its storages.

use std::path::PathBuf;
use std::sync::Arc;

use fastckpt_format::legacy::{COUNT_NBYTES, Contents, Header, LegacyError};
use fastckpt_format::pickle::Graph;

use super::Archive;
use super::bytes::MemoryFile;
use crate::error::{Error, Result};
use crate::files::File;
use crate::source::{Source, in_memory};

/// Read at first: more than the pickles of most models have.
const FIRST_NBYTES: u64 = 64 << 10;
/// Positions in a pickle are 32 bits in the decoder.
const MAX_HEADER_NBYTES: u64 = u32::MAX as u64;

/// A file of torch before 1.6 that is open for reading; all but the elements has been read and checked.
#[derive(Debug)]
pub struct LegacyFile {
    /// The storages, as an archive without checksums has them.
    pub archive: Archive,
    /// What the object's pickle describes.
    pub graph: Graph,
    /// Where the object ends in the file.
    pub end: u64,
}

impl LegacyFile {
    /// Reads a file that is open already and in which the object begins at `start`; `name` is for
    /// messages.
    ///
    /// # Errors
    /// Where it cannot be read, a pickle is refused, or sizes do not agree with the file.
    pub fn from_file(file: Arc<dyn File>, name: PathBuf, start: u64) -> Result<Self> {
        let source = Source::new(file, name)?;
        let header = read_header(&source, start)?;
        let refused = |error| refused(&source, error);
        let Contents { index, counts, end } =
            header.contents(start, source.nbytes()).map_err(refused)?;
        for count in &counts {
            let bytes = source.read_exact(count.offset, in_memory(COUNT_NBYTES))?;
            let bytes = bytes.as_slice().try_into().unwrap_or_default();
            count.check(bytes).map_err(refused)?;
        }
        Ok(Self {
            archive: Archive::of_records(source, index),
            graph: header.graph,
            end,
        })
    }

    /// The same for a file that lies in memory, which must not change meanwhile.
    ///
    /// # Errors
    /// As [`LegacyFile::from_file`].
    pub fn from_bytes(
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        name: PathBuf,
        start: u64,
    ) -> Result<Self> {
        Self::from_file(Arc::new(MemoryFile(bytes)), name, start)
    }
}

/// Reads as much as the pickles turn out to have.
fn read_header(source: &Source, start: u64) -> Result<Header> {
    let most = source.nbytes().saturating_sub(start).min(MAX_HEADER_NBYTES);
    let mut bytes = Vec::new();
    let mut wanted = FIRST_NBYTES;
    loop {
        let nbytes = wanted.min(most);
        let done = bytes.len() as u64;
        bytes.append(&mut source.read_exact(start + done, in_memory(nbytes - done))?);
        let header = Header::parse(&bytes).map_err(|error| refused(source, error))?;
        match header {
            Some(header) => return Ok(header),
            None if nbytes == most => return Err(refused(source, Header::truncated(&bytes))),
            None => wanted = nbytes.saturating_mul(2),
        }
    }
}

fn refused(source: &Source, error: LegacyError) -> Error {
    Error::Legacy {
        path: source.path().to_owned(),
        source: error,
    }
}
