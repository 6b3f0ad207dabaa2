//! Names that are renamed or removed only while they lead to one's own file.
//!
//! A name says nothing about whose file it is: somebody may have removed the file and put another one
//! there. So each name is compared with the open file before anything is done to it. Between that look
//! and the call a moment remains in which the name could change hands; since the names are random, nobody
//! who plays by these rules takes one that was in use.

use std::ffi::{OsStr, OsString};
use std::io;
use std::process;

use crate::files::{Directory, Files, Metadata};
use crate::stale;

/// Names drawn before giving up. Two processes draw the same one of 2^64 only where something is wrong
/// with the random numbers.
const MAX_NAMES: usize = 100;

/// Draws temporary names until `make` succeeds with one that nobody has, and returns what it made.
pub(super) fn with_new_name<T>(
    files: &dyn Files,
    mut make: impl FnMut(&OsStr) -> io::Result<T>,
) -> io::Result<(OsString, T)> {
    for _ in 0..MAX_NAMES {
        let name = stale::temp_name(process::id(), files.random_number()?);
        match make(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return Ok((name, result?)),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EEXIST))
}

/// Whether a name leads to this file, and not to another one or nowhere.
pub(super) fn leads_to(
    directory: &dyn Directory,
    name: &OsStr,
    file: &Metadata,
) -> io::Result<bool> {
    let found = directory.inspect(name)?;
    Ok(found.is_some_and(|found| found.is_same_file(file)))
}

/// Removes a name if it leads to this file; tells whether it did.
pub(super) fn unlink_own(
    directory: &dyn Directory,
    name: &OsStr,
    file: &Metadata,
) -> io::Result<bool> {
    if !leads_to(directory, name, file)? {
        return Ok(false);
    }
    match directory.unlink(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}

/// Gives the file at `from` the name `to` too, in the place of whatever has it, in one step: at no moment
/// is `to` nothing. `file` is what is at `from`. False where the file system has no second names.
pub(super) fn replace_by_link(
    files: &dyn Files,
    directory: &dyn Directory,
    from: &OsStr,
    to: &OsStr,
    file: &Metadata,
) -> io::Result<bool> {
    match directory.link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if refuses_links(&error) => return Ok(false),
        other => return other.map(|()| true),
    }
    // Somebody who collects the files of dead processes may take the temporary name for one of them.
    for _ in 0..MAX_NAMES {
        if leads_to(directory, to, file)? {
            return Ok(true);
        }
        let (temporary, ()) = match with_new_name(files, |name| directory.link(from, name)) {
            Err(error) if refuses_links(&error) => return Ok(false),
            other => other?,
        };
        let renamed = directory.rename(&temporary, to);
        if !matches!(&renamed, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            // Still there where both were names of one file already, and where renaming failed.
            unlink_own(directory, &temporary, file)?;
            return renamed.map(|()| true);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Whether the error says that the file gets no second name here, rather than that it failed:
/// `EPERM` on file systems without hard links and for files of other users (`protected_hardlinks`),
/// `EMLINK` where a file has as many names as it can have, the others on network and FUSE file systems.
pub(super) fn refuses_links(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPERM | libc::EMLINK | libc::ENOTSUP | libc::ENOSYS | libc::EXDEV | libc::EINVAL
        )
    ) || error.kind() == io::ErrorKind::Unsupported
}
