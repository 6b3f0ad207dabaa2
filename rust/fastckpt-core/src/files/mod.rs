//! The file operations the core uses, as traits: the real ones, and any that a test puts in their
//! place to count them, make them fail or forget what was not synced.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::mapping::Mapping;

#[cfg(target_os = "linux")]
mod access_list;
#[cfg(target_os = "linux")]
mod allocation;
mod real;

pub use real::RealFiles;

/// Direct I/O moves whole blocks of this size between the disk and memory that is aligned to it:
/// the page size, and at least the sector size of every disk in use.
pub const BLOCK_NBYTES: u64 = 4096;

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A FIFO, socket or device.
    Special,
}

/// What `stat` says of a file, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub nbytes: u64,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that the file has; 0 once it has been unlinked.
    pub links: u64,
    /// The file system that it is on.
    pub device: u64,
    /// Its number there: two names with one number on one device are one file.
    pub inode: u64,
    /// When its contents last changed, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl Metadata {
    /// Whether both are of one file.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// The way in: paths.
pub trait Files: Send + Sync + fmt::Debug {
    /// Opens a directory, to work in it whatever becomes of its path.
    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn Directory>>;
    /// Creates a directory, whose parent must exist; one that is there is an error.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Opens a regular file for reading; anything else is refused without blocking on it.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// What stands at the path itself, symbolic links not followed; `None` where nothing does.
    fn inspect(&self, path: &Path) -> io::Result<Option<Metadata>>;
    /// The POSIX access control list of the file at the path itself, in the system's encoding;
    /// `None` where it has none. Where there are no such lists, this need not be implemented.
    fn access_list(&self, _path: &Path) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// The names in a directory, in no order.
    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>>;
    /// A random number, which no other process has drawn, on this machine or on another.
    fn random_number(&self) -> io::Result<u64>;
}

/// An open directory.
pub trait Directory: Send + Sync + fmt::Debug {
    /// Creates a file that must not exist yet, for writing. The mode is `mode` less the umask.
    fn create(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>>;
    /// Opens a regular file for reading, symbolic links not followed.
    fn open(&self, name: &OsStr) -> io::Result<Arc<dyn File>>;
    /// What stands at this name, symbolic links not followed; `None` where nothing does.
    fn inspect(&self, name: &OsStr) -> io::Result<Option<Metadata>>;
    /// Renames within the directory, replacing what is there, atomically.
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Renames to a name that must not exist yet, in one step; `Unsupported` where the system has no
    /// such thing.
    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Gives a file a second name, which must not exist yet; symbolic links are not followed.
    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Makes a symbolic link, whose name must not exist yet.
    fn symlink(&self, target: &Path, name: &OsStr) -> io::Result<()>;
    /// Where a symbolic link points.
    fn read_link(&self, name: &OsStr) -> io::Result<PathBuf>;
    /// Removes a name.
    fn unlink(&self, name: &OsStr) -> io::Result<()>;
    /// Bytes that this process may still write to the file system; `None` where it has no such
    /// number, as some network file systems.
    fn free_nbytes(&self) -> io::Result<Option<u64>>;
    /// Whether only this machine reaches the file system, so that a lock tells about every process.
    fn is_local(&self) -> io::Result<bool>;
    /// Takes a lock on the directory that any number of processes can hold, without waiting:
    /// `WouldBlock` where somebody holds it alone, `Unsupported` where directories have no locks.
    fn lock_shared(&self) -> io::Result<()>;
    /// Gives it up. Closing would not do: a process forked meanwhile has the directory open too.
    fn unlock(&self) -> io::Result<()>;
    /// Whether the directory lets only others rename or remove this file, which is in it: it has the
    /// sticky bit, and neither it nor the file is ours. Where that is not known, trying will show.
    fn protects(&self, _file: &Metadata) -> io::Result<bool> {
        Ok(false)
    }
    /// Makes creations, renames and removals durable.
    fn sync(&self) -> io::Result<()>;
}

/// An open file. Positions are always given: no call depends on another.
pub trait File: Send + Sync + fmt::Debug {
    /// What `fstat` says.
    fn metadata(&self) -> io::Result<Metadata>;
    /// Reads up to `buffer.len()` bytes; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The same, but only what the page cache holds: `WouldBlock` where that is nothing,
    /// `Unsupported` where the system cannot tell.
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes up to `bytes.len()` bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Reserves space for `nbytes` bytes from the beginning; `Unsupported` where the file system
    /// cannot.
    fn allocate(&self, nbytes: u64) -> io::Result<()>;
    /// Sets the size.
    fn truncate(&self, nbytes: u64) -> io::Result<()>;
    /// Makes contents and size durable.
    fn sync(&self) -> io::Result<()>;
    /// Sets permission bits and the access control list, and owner and group as far as that is
    /// allowed.
    fn set_rights(&self, like: &Metadata, access_list: Option<&[u8]>) -> io::Result<()>;
    /// Its POSIX access control list, as [`Files::access_list`].
    fn access_list(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// When its contents last changed; `None` where files have no such time.
    fn modified(&self) -> io::Result<Option<SystemTime>> {
        Ok(None)
    }
    /// Sets that time.
    fn set_modified(&self, _time: SystemTime) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Takes an exclusive lock that lasts until the file is closed, without waiting.
    fn lock(&self) -> io::Result<()>;
    /// Switches direct I/O on or off.
    fn set_direct(&self, direct: bool) -> io::Result<()>;
    /// The same file, opened again for direct reads.
    fn open_direct(&self) -> io::Result<Arc<dyn File>>;
    /// Maps `nbytes` bytes from `offset` (a multiple of the page size) on, privately.
    fn map(&self, offset: u64, nbytes: usize) -> io::Result<Mapping>;
}

/// The parent of a bare file name is the empty path, and means the current directory.
#[must_use]
pub fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

/// Reads until `buffer` is full or the file ends; returns how much was read.
pub fn read_full_at(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of `bytes`.
pub fn write_all_at(file: &dyn File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(&bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the error says that direct I/O is not to be had here, rather than that it failed.
#[must_use]
pub fn refuses_direct(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOTTY)
    ) || error.kind() == io::ErrorKind::Unsupported
}
