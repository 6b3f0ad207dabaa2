//! The system calls that files and directories share.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use crate::files::{FileKind, Metadata};

/// Locks what belongs to an open descriptor. `Unsupported` where the file system has no locks, or none
/// for directories: network file systems answer in these ways.
pub(super) fn flock(file: &fs::File, operation: libc::c_int) -> io::Result<()> {
    // SAFETY: a plain call on an open descriptor.
    match uninterrupted(|| unsafe { libc::flock(file.as_raw_fd(), operation) }) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOLCK | libc::ENOSYS | libc::ENOTSUP | libc::EINVAL | libc::EBADF)
            ) =>
        {
            Err(io::ErrorKind::Unsupported.into())
        }
        other => other.map(drop),
    }
}

pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Makes a call again that a signal has interrupted: opening waits on network file systems.
pub(super) fn uninterrupted(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

pub(in crate::files) fn c_string(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

pub(super) fn stat_at(directory: RawFd, name: &OsStr) -> io::Result<Option<Metadata>> {
    let name = c_string(name)?;
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `name` is a NUL-terminated string that outlives the call, `stat` is valid for writes
    // and filled when the call succeeds.
    let result = unsafe {
        check(libc::fstatat(
            directory,
            name.as_ptr(),
            stat.as_mut_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
        ))
        .map(|_| stat.assume_init())
    };
    match result {
        Ok(stat) => Ok(Some(metadata_of(&stat))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_lossless,
    clippy::cast_sign_loss,
    reason = "the fields' types differ from system to system"
)]
pub(super) fn metadata_of(stat: &libc::stat) -> Metadata {
    let kind = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::Regular,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFDIR => FileKind::Directory,
        _ => FileKind::Special,
    };
    Metadata {
        kind,
        nbytes: stat.st_size as u64,
        mode: stat.st_mode as u32 & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: stat.st_nlink as u64,
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        modified_ns: (stat.st_mtime as i64)
            .saturating_mul(1_000_000_000)
            .saturating_add(stat.st_mtime_nsec as i64),
    }
}
