//! A file under a temporary name.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::resolve::Destination;
use crate::error::{Error, Phase, Result};
use crate::files::{self, Directory, File, Files};
use crate::stale;

/// Names tried before giving up: each one tried belongs to a file that a dead process of our
/// number left behind.
const MAX_TEMP_NAMES: usize = 10_000;
/// What `open` gives to a new file before the umask is taken off.
pub(super) const NEW_FILE_MODE: u32 = 0o666;
/// While another file lends its rights, nobody else looks into the new one.
pub(super) const PRIVATE_MODE: u32 = 0o600;

/// A file under a temporary name; removed when dropped, unless it has moved to its final one.
#[derive(Debug)]
pub(super) struct TempFile {
    directory: Arc<dyn Directory>,
    pub(super) name: OsString,
    pub(super) file: Arc<dyn File>,
    owner: u32,
    pub(super) has_moved: bool,
}

impl TempFile {
    /// Creates `.fastckpt-<pid>-<n>.tmp`, locked as long as it is open: a file of this form that
    /// nobody holds locked was left by a process that died. `mode` is for one that replaces nothing.
    /// Tells whether direct I/O is on.
    pub(super) fn create(
        files: &dyn Files,
        path: &Path,
        destination: &Destination,
        mode: u32,
        direct: bool,
    ) -> Result<(Self, bool)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let pid = process::id();
        let wrap = |source| Error::io(Phase::Create, path)(source);
        let mode = if destination.replaced.is_some() {
            PRIVATE_MODE
        } else {
            mode
        };
        for _ in 0..MAX_TEMP_NAMES {
            let name = stale::temp_name(pid, NEXT.fetch_add(1, Ordering::Relaxed));
            let (file, direct) =
                match create_direct_or_not(&*destination.directory, &name, mode, direct) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    other => other.map_err(wrap)?,
                };
            let directory = Arc::clone(&destination.directory);
            let temp = Self {
                directory,
                name,
                file,
                owner: pid,
                has_moved: false,
            };
            if temp.lock().map_err(wrap)? {
                temp.adopt_rights(files, destination).map_err(wrap)?;
                return Ok((temp, direct));
            }
        }
        Err(wrap(io::Error::from_raw_os_error(libc::EEXIST)))
    }

    /// Takes the lock; false where somebody who collects the files of dead processes was faster
    /// and has removed this one, or is about to.
    fn lock(&self) -> io::Result<bool> {
        match self.file.lock() {
            Ok(()) => Ok(self.file.metadata()?.links > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            // Some network file systems have no locks: then their temporary files are not collected.
            Err(error)
                if error.kind() == io::ErrorKind::Unsupported
                    || matches!(
                        error.raw_os_error(),
                        Some(libc::ENOLCK | libc::ENOSYS | libc::EINVAL)
                    ) =>
            {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets the same people read and write it as the file that it replaces.
    fn adopt_rights(&self, files: &dyn Files, destination: &Destination) -> io::Result<()> {
        let Some(replaced) = &destination.replaced else {
            return Ok(());
        };
        let path = destination.directory_path.join(&destination.name);
        let access_list = files.access_list(&path)?;
        self.file.set_rights(replaced, access_list.as_deref())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // A forked child drops its copy too: the file is its parent's.
        if !self.has_moved && self.owner == process::id() {
            // The error that brought us here is the one to report. A file that could not be removed
            // is no checkpoint to anybody, and is collected later.
            let _left_behind = self.directory.unlink(&self.name);
        }
    }
}

fn create_direct_or_not(
    directory: &dyn Directory,
    name: &OsString,
    mode: u32,
    direct: bool,
) -> io::Result<(Arc<dyn File>, bool)> {
    if direct {
        match directory.create(name, mode, true) {
            Ok(file) => return Ok((file, true)),
            Err(error) if files::refuses_direct(&error) => {
                // Linux before 6.x creates the file and then refuses the flag.
                match directory.unlink(name) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok((directory.create(name, mode, false)?, false))
}
