//! The operating system's files.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
use std::ffi::CStr;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
#[cfg(target_os = "linux")]
use std::os::fd::IntoRawFd;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
#[cfg(target_os = "linux")]
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Directory, File, FileKind, Files, Metadata, or_here};
#[cfg(target_os = "linux")]
use super::{access_list, allocation};
use crate::mapping::Mapping;

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
/// The user id that means "leave it as it is" to `chown`.
const UNCHANGED: libc::uid_t = libc::uid_t::MAX;

/// The files of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFiles;

impl RealFiles {
    /// Takes over an open descriptor of a regular file, for reading.
    pub fn adopt(fd: OwnedFd) -> io::Result<Arc<dyn File>> {
        let file = RealFile(fs::File::from(fd));
        require_regular(&file.metadata()?)?;
        Ok(Arc::new(file))
    }
}

impl Files for RealFiles {
    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn Directory>> {
        Ok(Arc::new(RealDirectory(open_directory(or_here(path))?)))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        // O_NONBLOCK: opening a FIFO would wait for a writer. It means nothing for regular files.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let file = RealFile(file);
        require_regular(&file.metadata()?)?;
        Ok(Arc::new(file))
    }

    fn inspect(&self, path: &Path) -> io::Result<Option<Metadata>> {
        stat_at(libc::AT_FDCWD, path.as_os_str())
    }

    #[cfg(target_os = "linux")]
    fn access_list(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        access_list::of_path(path)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        names_in(or_here(directory))
    }

    fn random_number(&self) -> io::Result<u64> {
        getrandom::u64().map_err(io::Error::other)
    }
}

fn open_directory(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
}

#[cfg(target_os = "linux")]
fn names_in(directory: &Path) -> io::Result<Vec<OsString>> {
    Listing::new(OwnedFd::from(open_directory(directory)?))?.collect()
}

#[cfg(not(target_os = "linux"))]
fn names_in(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

/// The names in a directory. The standard library's own panics where `closedir` fails, as it may on a
/// network file system.
#[cfg(target_os = "linux")]
struct Listing(NonNull<libc::DIR>);

#[cfg(target_os = "linux")]
impl Listing {
    fn new(directory: OwnedFd) -> io::Result<Self> {
        // SAFETY: an open descriptor; where the call succeeds, what it returns owns it.
        let stream = NonNull::new(unsafe { libc::fdopendir(directory.as_raw_fd()) })
            .ok_or_else(io::Error::last_os_error)?;
        let _owned_by_the_stream = directory.into_raw_fd();
        Ok(Self(stream))
    }
}

#[cfg(target_os = "linux")]
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

#[cfg(target_os = "linux")]
impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody uses it any more. Nothing was written.
        let _nothing_is_lost = unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

fn require_regular(metadata: &Metadata) -> io::Result<()> {
    match metadata.kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        FileKind::Symlink | FileKind::Special => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

#[derive(Debug)]
struct RealDirectory(fs::File);

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

#[derive(Debug)]
struct RealFile(fs::File);

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

/// Locks what belongs to an open descriptor. `Unsupported` where the file system has no locks, or none
/// for directories: network file systems answer in these ways.
fn flock(file: &fs::File, operation: libc::c_int) -> io::Result<()> {
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

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Makes a call again that a signal has interrupted: opening waits on network file systems.
fn uninterrupted(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

pub(super) fn c_string(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

fn stat_at(directory: RawFd, name: &OsStr) -> io::Result<Option<Metadata>> {
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
fn metadata_of(stat: &libc::stat) -> Metadata {
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
