//! Temporary files that dead processes left behind.
//!
//! A temporary file is locked as long as its owner has it open, and the system lets go of the lock when the
//! owner dies, however it dies. So one that can be locked belongs to nobody. Age says nothing: a save may
//! be stopped for an hour and go on.
//!
//! That holds where locks are seen by everybody who uses the file system, so on the file systems of one
//! machine; see [`Directory::is_local`]. A child that was forked during a save and runs on holds the lock
//! too: then the file is collected once the child has ended.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Phase, Result};
use crate::files::{Directory, Files, or_here};

/// What every name begins with that is no checkpoint of its own.
pub(crate) const PREFIX: &str = ".fastckpt-";
const SUFFIX: &str = ".tmp";

const KEPT_SUFFIX: &str = ".kept";
/// Digits of a save id in a name.
const SAVE_ID_DIGITS: usize = 14;

/// The temporary name with the random number `number` of process `pid`; processes in containers that share
/// a directory often have the same pid. No pattern by which checkpoints are found matches it: it does
/// not end in `.pt`.
pub(crate) fn temp_name(pid: u32, number: u64) -> OsString {
    format!("{PREFIX}{pid}-{number}{SUFFIX}").into()
}

/// The second name of the file `name`, which was saved by the save `save_id`, while it is replaced.
pub(crate) fn kept_name(save_id: u64, name: &OsStr) -> OsString {
    let mut kept = OsString::from(format!("{PREFIX}{save_id:0SAVE_ID_DIGITS$}-"));
    kept.push(name);
    kept.push(KEPT_SUFFIX);
    kept
}

/// Whether a name has the form of [`kept_name`].
pub(crate) fn is_kept_name(name: &OsStr) -> bool {
    let Some(rest) = name.as_bytes().strip_prefix(PREFIX.as_bytes()) else {
        return false;
    };
    let Some((id, rest)) = rest.split_at_checked(SAVE_ID_DIGITS) else {
        return false;
    };
    let own_name = rest
        .strip_prefix(b"-")
        .and_then(|rest| rest.strip_suffix(KEPT_SUFFIX.as_bytes()));
    id.iter().all(u8::is_ascii_digit)
        && own_name.is_some_and(|own_name| !own_name.is_empty() && !own_name.contains(&b'/'))
}

/// Whether a name is one of those that fastckpt hides things under, in one directory.
pub(crate) fn is_hidden_name(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PREFIX.as_bytes()) && !name.as_bytes().contains(&b'/')
}

/// Whether a name has the form of [`temp_name`].
pub(crate) fn is_temp_name(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| {
        name.strip_prefix(PREFIX)?
            .strip_suffix(SUFFIX)?
            .split_once('-')
    });
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    parts.is_some_and(|(pid, number)| is_number(pid) && is_number(number))
}

/// Names the temporary files in a directory whose owners are dead; removes nothing.
///
/// # Errors
/// Where the directory cannot be listed. Files that cannot be opened are passed over.
pub fn list_stale(
    files: &dyn Files,
    path: &Path,
    directory: &dyn Directory,
) -> Result<Vec<OsString>> {
    each_stale(files, path, directory, |_name| Ok(true))
}

/// Removes the temporary files in a directory whose owners are dead; returns their names.
///
/// # Errors
/// Where the directory cannot be listed or a file in it not removed. Files that somebody else removes
/// first, or that cannot be opened, are passed over.
pub fn remove_stale(
    files: &dyn Files,
    path: &Path,
    directory: &dyn Directory,
) -> Result<Vec<OsString>> {
    each_stale(files, path, directory, |name| {
        match directory.unlink(name) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(Phase::Remove, path.join(name))(error)),
        }
    })
}

/// Locks each temporary file that nobody else holds and hands its name to `take`; returns the names
/// that it took, sorted.
fn each_stale(
    files: &dyn Files,
    path: &Path,
    directory: &dyn Directory,
    take: impl Fn(&OsStr) -> Result<bool>,
) -> Result<Vec<OsString>> {
    let mut taken = Vec::new();
    let names = files
        .names(path)
        .map_err(Error::io(Phase::List, or_here(path)))?;
    for name in names.into_iter().filter(|name| is_temp_name(name)) {
        // Held until the name is gone: a creator that comes between sees the lock, or no name.
        let Ok(file) = directory.open(&name) else {
            continue;
        };
        if file.lock().is_err() {
            continue;
        }
        // Before it was locked, somebody may have removed the file, and somebody else have taken its name.
        let is_still_there = file.metadata().and_then(|own| {
            Ok(directory
                .inspect(&name)?
                .is_some_and(|found| found.is_same_file(&own)))
        });
        if is_still_there.unwrap_or(false) && take(&name)? {
            taken.push(name);
        }
    }
    taken.sort();
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        assert!(is_temp_name(&temp_name(1, 0)));
        assert!(is_temp_name(OsStr::new(".fastckpt-4194304-17.tmp")));
        assert!(is_temp_name(&temp_name(u32::MAX, u64::MAX)));
        for other in [
            ".fastckpt-1-0.tmp.pt",
            ".fastckpt-1-0",
            ".fastckpt-1.tmp",
            ".fastckpt--0.tmp",
            ".fastckpt-1-x.tmp",
            "fastckpt-1-0.tmp",
            "model_000001.pt",
        ] {
            assert!(!is_temp_name(OsStr::new(other)), "{other}");
        }
    }

    #[test]
    fn second_names_are_told_from_others() {
        let kept = kept_name(17, OsStr::new("model_000100.pt"));
        assert_eq!(kept, ".fastckpt-00000000000017-model_000100.pt.kept");
        assert!(is_kept_name(&kept) && is_hidden_name(&kept) && !is_temp_name(&kept));
        for other in [
            ".fastckpt-00000000000017-.kept",
            ".fastckpt-0000000000017-model_000100.pt.kept",
            ".fastckpt-0000000000001x-model_000100.pt.kept",
            ".fastckpt-00000000000017-model_000100.pt",
            ".fastckpt-1.kept",
            "model_000100.pt",
        ] {
            assert!(!is_kept_name(OsStr::new(other)), "{other}");
        }
    }
}
