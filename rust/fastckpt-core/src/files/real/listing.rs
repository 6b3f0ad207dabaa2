//! The names in a directory.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr::NonNull;

/// The names in a directory. The standard library's own panics where `closedir` fails, as it may on a
/// network file system.
pub(super) struct Listing(NonNull<libc::DIR>);

impl Listing {
    pub(super) fn new(directory: OwnedFd) -> io::Result<Self> {
        // SAFETY: an open descriptor; where the call succeeds, what it returns owns it.
        let stream = NonNull::new(unsafe { libc::fdopendir(directory.as_raw_fd()) })
            .ok_or_else(io::Error::last_os_error)?;
        let _owned_by_the_stream = directory.into_raw_fd();
        Ok(Self(stream))
    }
}

impl Iterator for Listing {
    type Item = io::Result<OsString>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // SAFETY: the stream is open, and only this call uses it. errno is the thread's own.
            let entry = unsafe {
                *libc::__errno_location() = 0;
                libc::readdir64(self.0.as_ptr())
            };
            if entry.is_null() {
                let error = io::Error::last_os_error();
                return (error.raw_os_error() != Some(0)).then_some(Err(error));
            }
            // SAFETY: the entry is valid until the next call, its name ends with a NUL.
            let name = unsafe { CStr::from_ptr((&raw const (*entry).d_name).cast()) };
            if !matches!(name.to_bytes(), b"." | b"..") {
                return Some(Ok(OsStr::from_bytes(name.to_bytes()).to_owned()));
            }
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody uses it any more. Nothing was written.
        let _nothing_is_lost = unsafe { libc::closedir(self.0.as_ptr()) };
    }
}
