//! What is free, before a save begins and after it ran out.

use std::io;
use std::path::Path;

use super::Commit;
use crate::error::{Error, Phase, Result};
use crate::files::{Directory, or_here};

impl Commit {
    /// Refuses to begin what the file system of `directory` has no room for.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where fewer than `nbytes` bytes are free. Where that cannot be asked, the
    /// writing will show.
    pub fn require_space(&mut self, directory: &Path, nbytes: u64) -> Result<()> {
        match self.directory(directory)?.free_nbytes() {
            Ok(Some(free)) if free < nbytes => Err(Error::NoSpace {
                phase: Phase::CheckSpace,
                path: or_here(directory).to_owned(),
                needed: nbytes,
                free: Some(free),
                source: io::Error::from_raw_os_error(libc::ENOSPC),
            }),
            _ => Ok(()),
        }
    }
}

/// Adds to the failure of a file's writing how much it needed and how much there is: what was
/// written of it is removed by now, so this is what another attempt would find.
pub(super) fn name_shortage(error: Error, needed: u64, directory: &dyn Directory) -> Error {
    let Error::Io {
        phase,
        path,
        source,
    } = error
    else {
        return error;
    };
    let is_of_writing = matches!(
        phase,
        Phase::Allocate | Phase::Write | Phase::Truncate | Phase::Sync
    );
    let free = match source.raw_os_error() {
        Some(libc::ENOSPC) if is_of_writing => directory.free_nbytes().ok().flatten(),
        _ => None,
    };
    // A quota has no figure of what is left that could be asked for here.
    let is_quota = is_of_writing && source.raw_os_error() == Some(libc::EDQUOT);
    if free.is_none() && !is_quota {
        return Error::Io {
            phase,
            path,
            source,
        };
    }
    Error::NoSpace {
        phase,
        path,
        needed,
        free,
        source,
    }
}
