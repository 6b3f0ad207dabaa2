//! An open file of this machine.
#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::SystemTime;

use super::calls::{check, flock, metadata_of};
use crate::files::{File, Metadata};
#[cfg(target_os = "linux")]
use crate::files::{access_list, allocation};
use crate::mapping::Mapping;

/// The user id that means "leave it as it is" to `chown`.
const UNCHANGED: libc::uid_t = libc::uid_t::MAX;

#[derive(Debug)]
pub(super) struct RealFile(pub(super) fs::File);

impl File for RealFile {
    fn metadata(&self) -> io::Result<Metadata> {
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: `stat` is valid for writes; fstat fills all of it when it succeeds.
        let stat = unsafe {
            check(libc::fstat(self.0.as_raw_fd(), stat.as_mut_ptr()))?;
            stat.assume_init()
        };
        Ok(metadata_of(&stat))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    #[cfg(target_os = "linux")]
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: `part` describes `buffer`, which is valid for writes of its length throughout.
        let n = unsafe {
            libc::preadv2(
                self.0.as_raw_fd(),
                &raw const part,
                1,
                offset,
                libc::RWF_NOWAIT,
            )
        };
        usize::try_from(n).map_err(|_negative| {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
                    io::ErrorKind::Unsupported.into()
                }
                _ => error,
            }
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn read_cached_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, nbytes: u64) -> io::Result<()> {
        allocation::reserve_all(nbytes, |offset, nbytes| {
            let offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
            let nbytes = libc::off64_t::try_from(nbytes).map_err(io::Error::other)?;
            // SAFETY: a plain call on an open descriptor.
            match check(unsafe { libc::fallocate64(self.0.as_raw_fd(), 0, offset, nbytes) }) {
                Ok(_) => Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP | libc::ENOSYS) => Err(io::ErrorKind::Unsupported.into()),
                    _ => Err(error),
                },
            }
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn allocate(&self, _nbytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn truncate(&self, nbytes: u64) -> io::Result<()> {
        self.0.set_len(nbytes)
    }

    fn sync(&self) -> io::Result<()> {
        // On macOS std uses F_FULLFSYNC, which is what makes it durable there.
        self.0.sync_all()
    }

    #[cfg_attr(
        not(target_os = "linux"),
        allow(unused_variables, reason = "there are none")
    )]
    fn set_rights(&self, like: &Metadata, access_list: Option<&[u8]>) -> io::Result<()> {
        let now = self.metadata()?;
        if (now.uid, now.gid) != (like.uid, like.gid) {
            // Only root may give files away; for everybody else a file that they replace becomes
            // theirs, as with any tool that renames into place. Its group they may keep if it is
            // one of theirs.
            // SAFETY: plain calls on an open descriptor.
            let _refused = unsafe {
                let fd = self.0.as_raw_fd();
                libc::fchown(fd, like.uid, like.gid) == 0
                    || libc::fchown(fd, UNCHANGED, like.gid) == 0
            };
        }
        // The new file may have got a list of its own, from its directory. A list changes the mode.
        #[cfg(target_os = "linux")]
        if access_list::of_file(&self.0)?.as_deref() != access_list {
            access_list::set(&self.0, access_list)?;
        }
        // SAFETY: a plain call on an open descriptor.
        check(unsafe { libc::fchmod(self.0.as_raw_fd(), like.mode as libc::mode_t) })?;
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn access_list(&self) -> io::Result<Option<Vec<u8>>> {
        access_list::of_file(&self.0)
    }

    fn modified(&self) -> io::Result<Option<SystemTime>> {
        self.0.metadata()?.modified().map(Some)
    }

    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.0.set_modified(time)
    }

    fn lock(&self) -> io::Result<()> {
        flock(&self.0, libc::LOCK_EX | libc::LOCK_NB)
    }

    #[cfg(target_os = "linux")]
    fn set_direct(&self, direct: bool) -> io::Result<()> {
        // SAFETY: plain calls on an open descriptor.
        unsafe {
            let flags = check(libc::fcntl(self.0.as_raw_fd(), libc::F_GETFL))?;
            let flags = if direct {
                flags | libc::O_DIRECT
            } else {
                flags & !libc::O_DIRECT
            };
            check(libc::fcntl(self.0.as_raw_fd(), libc::F_SETFL, flags))?;
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn set_direct(&self, direct: bool) -> io::Result<()> {
        if direct {
            Err(io::ErrorKind::Unsupported.into())
        } else {
            Ok(())
        }
    }

    #[cfg(target_os = "linux")]
    fn open_direct(&self) -> io::Result<Arc<dyn File>> {
        // Through /proc, so that it is this file even if its name now belongs to another one.
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        Ok(Arc::new(Self(file)))
    }

    #[cfg(not(target_os = "linux"))]
    fn open_direct(&self) -> io::Result<Arc<dyn File>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn map(&self, offset: u64, nbytes: usize) -> io::Result<Mapping> {
        Mapping::private_file(&self.0, offset, nbytes)
    }
}
