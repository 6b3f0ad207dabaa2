//! An open directory of this machine.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::calls::{c_string, check, flock, stat_at, uninterrupted};
use super::file::RealFile;
use super::require_regular;
use crate::files::{Directory, File, Metadata};

/// What `statfs` says of the file systems that live on disks or in memory of this machine
/// (`linux/magic.h`, `man 2 statfs`): ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS, tmpfs, ramfs
/// and overlayfs. Network and FUSE file systems are not among them.
#[cfg(target_os = "linux")]
const LOCAL_FILE_SYSTEMS: [u32; 9] = [
    0x0000_EF53,
    0x5846_5342,
    0x9123_683E,
    0xF2F5_2010,
    0xCA45_1A4E,
    0x2FC1_2FC1,
    0x0102_1994,
    0x8584_58F6,
    0x794C_7630,
];

/// The bit of a directory's mode that lets only owners remove and rename what is in it (`S_ISVTX`).
const STICKY: u32 = 0o1000;
#[derive(Debug)]
pub(super) struct RealDirectory(pub(super) fs::File);

impl RealDirectory {
    fn open_at(&self, name: &OsStr, flags: libc::c_int, mode: u32) -> io::Result<fs::File> {
        let name = c_string(name)?;
        // SAFETY: `name` is a NUL-terminated string that outlives the call; the descriptor that
        // comes back is new and owned by nobody else.
        let fd = unsafe {
            let open = || libc::openat(self.0.as_raw_fd(), name.as_ptr(), flags, mode);
            OwnedFd::from_raw_fd(uninterrupted(open)?)
        };
        Ok(fs::File::from(fd))
    }
}

impl Directory for RealDirectory {
    fn create(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        Ok(Arc::new(RealFile(self.open_at(name, flags, mode)?)))
    }

    fn open(&self, name: &OsStr) -> io::Result<Arc<dyn File>> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = RealFile(self.open_at(name, flags, 0)?);
        require_regular(&file.metadata()?)?;
        Ok(Arc::new(file))
    }

    fn inspect(&self, name: &OsStr) -> io::Result<Option<Metadata>> {
        stat_at(self.0.as_raw_fd(), name)
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let (from, to) = (c_string(from)?, c_string(to)?);
        let fd = self.0.as_raw_fd();
        // SAFETY: both names are NUL-terminated strings that outlive the call.
        check(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) })?;
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let (from, to) = (c_string(from)?, c_string(to)?);
        let fd = self.0.as_raw_fd();
        // SAFETY: both names are NUL-terminated strings that outlive the call.
        let renamed = check(unsafe {
            libc::renameat2(fd, from.as_ptr(), fd, to.as_ptr(), libc::RENAME_NOREPLACE)
        });
        match renamed {
            // The kernel, or the file system, does not know the flag.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            other => other.map(drop),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn rename_new(&self, _from: &OsStr, _to: &OsStr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let (from, to) = (c_string(from)?, c_string(to)?);
        let fd = self.0.as_raw_fd();
        // SAFETY: both names are NUL-terminated strings that outlive the call.
        check(unsafe { libc::linkat(fd, from.as_ptr(), fd, to.as_ptr(), 0) })?;
        Ok(())
    }

    fn symlink(&self, target: &Path, name: &OsStr) -> io::Result<()> {
        let (target, name) = (c_string(target.as_os_str())?, c_string(name)?);
        // SAFETY: both are NUL-terminated strings that outlive the call.
        check(unsafe { libc::symlinkat(target.as_ptr(), self.0.as_raw_fd(), name.as_ptr()) })?;
        Ok(())
    }

    fn read_link(&self, name: &OsStr) -> io::Result<PathBuf> {
        let name = c_string(name)?;
        // No path that the system takes is longer.
        let mut target = vec![0_u8; libc::PATH_MAX as usize];
        // SAFETY: `name` is a NUL-terminated string that outlives the call; `target` is valid for
        // writes of its length.
        let written = unsafe {
            let (buffer, nbytes) = (target.as_mut_ptr().cast(), target.len());
            libc::readlinkat(self.0.as_raw_fd(), name.as_ptr(), buffer, nbytes)
        };
        let nbytes = usize::try_from(written).map_err(|_negative| io::Error::last_os_error())?;
        target.truncate(nbytes);
        Ok(PathBuf::from(OsString::from_vec(target)))
    }

    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        let name = c_string(name)?;
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        check(unsafe { libc::unlinkat(self.0.as_raw_fd(), name.as_ptr(), 0) })?;
        Ok(())
    }

    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_lossless,
        reason = "the fields' types differ from system to system"
    )]
    fn free_nbytes(&self) -> io::Result<Option<u64>> {
        let mut stat = MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: `stat` is valid for writes; fstatvfs fills all of it when it succeeds.
        let stat = unsafe {
            uninterrupted(|| libc::fstatvfs(self.0.as_raw_fd(), stat.as_mut_ptr()))?;
            stat.assume_init()
        };
        if stat.f_blocks == 0 {
            return Ok(None);
        }
        // SAFETY: a plain call that cannot fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        // The blocks that a file system holds back are held back for root.
        let blocks = if is_root { stat.f_bfree } else { stat.f_bavail };
        Ok(Some((blocks as u64).saturating_mul(stat.f_frsize as u64)))
    }

    #[cfg(target_os = "linux")]
    fn is_local(&self) -> io::Result<bool> {
        let mut stat = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: `stat` is valid for writes; fstatfs fills all of it when it succeeds.
        let stat = unsafe {
            uninterrupted(|| libc::fstatfs(self.0.as_raw_fd(), stat.as_mut_ptr()))?;
            stat.assume_init()
        };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::unnecessary_cast,
            reason = "the numbers have 32 bits, whatever the type of the field"
        )]
        Ok(LOCAL_FILE_SYSTEMS.contains(&(stat.f_type as u32)))
    }

    #[cfg(not(target_os = "linux"))]
    fn is_local(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn protects(&self, file: &Metadata) -> io::Result<bool> {
        let directory = self.0.metadata()?;
        // SAFETY: a plain call that cannot fail.
        let own = unsafe { libc::geteuid() };
        let is_sticky = directory.mode() & STICKY != 0;
        let is_foreign = own != 0 && own != directory.uid() && own != file.uid;
        Ok(is_sticky && is_foreign && !overrules_owners()?)
    }

    fn lock_shared(&self) -> io::Result<()> {
        flock(&self.0, libc::LOCK_SH | libc::LOCK_NB)
    }

    fn unlock(&self) -> io::Result<()> {
        flock(&self.0, libc::LOCK_UN)
    }

    fn sync(&self) -> io::Result<()> {
        match self.0.sync_all() {
            // Network and FUSE file systems that have no such thing say so in these ways.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::ENOTSUP | libc::ENOSYS)
                ) =>
            {
                Ok(())
            }
            // XFS reports success for a directory also when it has shut down and lost what happened
            // there (seen on Linux 6.18); fstat it then refuses.
            other => other.and_then(|()| self.0.metadata().map(drop)),
        }
    }
}

/// Whether this process may do to the files of others what only their owners may (`CAP_FOWNER`).
fn overrules_owners() -> io::Result<bool> {
    const CAP_FOWNER: u64 = 1 << 3;
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    Ok(effective.is_some_and(|effective| effective & CAP_FOWNER != 0))
}
