//! Reads the directory of an archive through the parser of the format.

use fastckpt_format::FormatError;
use fastckpt_format::index::Index;

use crate::error::{Error, Result};
use crate::source::Source;

/// Reads and checks the directory; local headers are left to whoever reads the records, where the
/// directory is exactly what torch's layout gives.
pub(super) fn parse(source: &Source) -> Result<Index> {
    let read = |offset, nbytes| source.read_exact(offset, nbytes).map_err(Failure::Read);
    Index::parse(source.nbytes(), read).map_err(|failure| match failure {
        Failure::Read(error) => error,
        Failure::Format(error) => source.malformed(error),
    })
}

/// Why a directory was not parsed.
enum Failure {
    Read(Error),
    Format(FormatError),
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}
