//! POSIX access control lists: on Linux an extended attribute, in an encoding of the kernel's that is
//! only passed on here.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

const NAME: &CStr = c"system.posix_acl_access";
/// No attribute is longer (`XATTR_SIZE_MAX` in `linux/limits.h`).
const MAX_NBYTES: usize = 65_536;

/// The list of the file at `path`; `None` where it has none, or is not there any more.
pub(super) fn of_path(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let path = super::real::c_string(path.as_os_str())?;
    // SAFETY: both names are NUL-terminated strings that outlive the call; the buffer is valid for
    // writes of the length that is given.
    read(|buffer| unsafe {
        let (value, nbytes) = (buffer.as_mut_ptr().cast(), buffer.len());
        libc::lgetxattr(path.as_ptr(), NAME.as_ptr(), value, nbytes)
    })
}

/// The list of an open file; `None` where it has none.
pub(super) fn of_file(file: &File) -> io::Result<Option<Vec<u8>>> {
    // SAFETY: as above.
    read(|buffer| unsafe {
        let (value, nbytes) = (buffer.as_mut_ptr().cast(), buffer.len());
        libc::fgetxattr(file.as_raw_fd(), NAME.as_ptr(), value, nbytes)
    })
}

/// Gives an open file this list, or none.
pub(super) fn set(file: &File, list: Option<&[u8]>) -> io::Result<()> {
    // SAFETY: the name is a NUL-terminated string, the list valid for reads of its length.
    let result = unsafe {
        let (fd, name) = (file.as_raw_fd(), NAME.as_ptr());
        match list {
            Some(list) => libc::fsetxattr(fd, name, list.as_ptr().cast(), list.len(), 0),
            None => libc::fremovexattr(fd, name),
        }
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn read(get: impl FnOnce(&mut [u8]) -> libc::ssize_t) -> io::Result<Option<Vec<u8>>> {
    let mut list = vec![0; MAX_NBYTES];
    match usize::try_from(get(&mut list)) {
        Ok(nbytes) => {
            list.truncate(nbytes);
            Ok(Some(list))
        }
        Err(_negative) => match io::Error::last_os_error() {
            error
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENODATA | libc::ENOTSUP | libc::ENOSYS | libc::ENOENT)
                ) =>
            {
                Ok(None)
            }
            error => Err(error),
        },
    }
}
