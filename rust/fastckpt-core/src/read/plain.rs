//! A file of another format than ours, of which the caller knows what lies where.

use std::path::Path;

use crate::error::{Error, Phase, Result};
use crate::files::Files;
use crate::source::{Source, in_memory};

/// A file without a directory that we could check.
#[derive(Debug)]
pub struct PlainFile {
    source: Source,
}

impl PlainFile {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Self> {
        let file = files.open(path).map_err(Error::io(Phase::Open, path))?;
        let source = Source::new(file, path.to_owned())?;
        Ok(Self { source })
    }

    /// Size of the file in bytes, when it was opened.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.source.nbytes()
    }

    /// Exactly `nbytes` bytes from `offset` on.
    ///
    /// # Errors
    /// Where they are not there or cannot be read.
    pub fn read(&self, offset: u64, nbytes: u64) -> Result<Vec<u8>> {
        self.source.read_exact(offset, in_memory(nbytes))
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }
}
