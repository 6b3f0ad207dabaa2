//! Where a path leads, and the directories that were opened on the way.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Commit;
use crate::error::{Error, Phase, Result};
use crate::files::{Directory, FileKind, Metadata, or_here};

/// Symbolic links followed to a destination before it is taken for a loop (Linux's own limit).
const MAX_SYMLINKS: usize = 40;

/// Where a path leads, symbolic links followed.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    pub(super) directory: Arc<dyn Directory>,
    pub(super) directory_path: PathBuf,
    pub(super) name: OsString,
    pub(super) replaced: Option<Metadata>,
}

impl Commit {
    /// Follows `path` to the file that a save replaces or creates.
    pub(super) fn resolve(&mut self, path: &Path) -> Result<Destination> {
        let mut resolved = path.to_owned();
        // One look more than there are links: the last one leads to the file.
        for _ in 0..=MAX_SYMLINKS {
            let refuse =
                |errno| Error::io(Phase::Inspect, path)(io::Error::from_raw_os_error(errno));
            let Some(name) = resolved.file_name().map(OsString::from) else {
                return Err(refuse(libc::EISDIR));
            };
            // `Path` passes over both; to the system they mean that a directory is asked for.
            let bytes = resolved.as_os_str().as_bytes();
            if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
                return Err(refuse(libc::EISDIR));
            }
            let directory_path = resolved.parent().unwrap_or(Path::new("")).to_owned();
            let directory = self.directory(&directory_path)?;
            let replaced = directory
                .inspect(&name)
                .map_err(Error::io(Phase::Inspect, path))?;
            match replaced.map(|metadata| metadata.kind) {
                None | Some(FileKind::Regular) => {
                    return Ok(Destination {
                        directory,
                        directory_path,
                        name,
                        replaced,
                    });
                }
                Some(FileKind::Symlink) => {
                    let target = directory
                        .read_link(&name)
                        .map_err(Error::io(Phase::Inspect, path))?;
                    resolved = directory_path.join(target);
                }
                Some(FileKind::Directory) => return Err(refuse(libc::EISDIR)),
                // Replacing a device or a FIFO by a file is never what was meant.
                Some(FileKind::Special) => return Err(refuse(libc::EINVAL)),
            }
        }
        Err(Error::io(Phase::Inspect, path)(
            io::Error::from_raw_os_error(libc::ELOOP),
        ))
    }

    /// Opens a directory, once.
    pub(super) fn directory(&mut self, path: &Path) -> Result<Arc<dyn Directory>> {
        self.open_directory(path)
            .map_err(Error::io(Phase::OpenDirectory, or_here(path)))
    }

    pub(super) fn open_directory(&mut self, path: &Path) -> io::Result<Arc<dyn Directory>> {
        if let Some((_, directory)) = self.directories.iter().find(|(known, _)| known == path) {
            return Ok(Arc::clone(directory));
        }
        let directory = self.files.open_directory(path)?;
        self.directories
            .push((path.to_owned(), Arc::clone(&directory)));
        Ok(directory)
    }
}
