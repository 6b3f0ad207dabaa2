//! The operating system's files.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use super::access_list;
use super::{Directory, File, FileKind, Files, Metadata, or_here};

mod calls;
mod directory;
mod file;
#[cfg(target_os = "linux")]
mod listing;

pub(super) use calls::c_string;

use calls::stat_at;
use directory::RealDirectory;
use file::RealFile;
#[cfg(target_os = "linux")]
use listing::Listing;

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

fn require_regular(metadata: &Metadata) -> io::Result<()> {
    match metadata.kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        FileKind::Symlink | FileKind::Special => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}
