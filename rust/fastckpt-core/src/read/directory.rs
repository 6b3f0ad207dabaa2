//! Reads the directory of an archive through the parser of the format.

use fastckpt_format::FormatError;
use fastckpt_format::index::Index;

use crate::error::{Error, Result};
use crate::source::Source;

/// Parses the directory.
pub(super) fn parse(source: &Source, headers: Headers) -> Result<Index> {
    let read = |offset, nbytes| source.read_exact(offset, nbytes).map_err(Failure::Read);
    let parsed = match headers {
        Headers::WhereNeeded => Index::parse(source.nbytes(), read),
        Headers::All => Index::parse_with_headers(source.nbytes(), read),
    };
    parsed.map_err(|failure| match failure {
        Failure::Read(error) => error,
        Failure::Format(error) => source.malformed(error),
    })
}

/// Which local headers are read and checked while the directory is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Headers {
    /// Those of files whose directory is not that of torch's layout.
    WhereNeeded,
    All,
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
