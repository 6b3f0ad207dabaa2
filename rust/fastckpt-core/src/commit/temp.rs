//! A file under a temporary name.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process;
use std::sync::Arc;

use super::own::{leads_to, refuses_links, unlink_own, with_new_name};
use super::resolve::Destination;
use crate::error::{Error, Phase, Result};
use crate::files::{self, Directory, File, Files};

/// Files created before giving up: each one before was removed by somebody who collects the files of
/// dead processes and came between its creation and its lock.
const MAX_TEMP_FILES: usize = 100;
/// What `open` gives to a new file before the umask is taken off.
pub(super) const NEW_FILE_MODE: u32 = 0o666;
/// While another file lends its rights, nobody else looks into the new one.
pub(super) const PRIVATE_MODE: u32 = 0o600;

/// What may be at the place that a file is published to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// Anything: it is replaced.
    #[default]
    Any,
    /// Nothing: `AlreadyExists` where there is something.
    Free,
}

/// A file under a temporary name; removed when dropped, unless it has moved to its final one.
#[derive(Debug)]
pub(super) struct TempFile {
    directory: Arc<dyn Directory>,
    pub(super) name: OsString,
    pub(super) file: Arc<dyn File>,
    owner: u32,
    has_moved: bool,
}

impl TempFile {
    /// Creates `.fastckpt-<pid>-<random>.tmp`, locked as long as it is open: a file of this form that
    /// nobody holds locked was left by a process that died. `mode` is for one that replaces nothing.
    /// Tells whether direct I/O is on.
    pub(super) fn create(
        files: &dyn Files,
        path: &Path,
        destination: &Destination,
        mode: u32,
        direct: bool,
    ) -> Result<(Self, bool)> {
        let wrap = |source| Error::io(Phase::Create, path)(source);
        let directory = &destination.directory;
        let mode = if destination.replaced.is_some() {
            PRIVATE_MODE
        } else {
            mode
        };
        for _ in 0..MAX_TEMP_FILES {
            let (name, file) =
                with_new_name(files, |name| directory.create(name, mode)).map_err(wrap)?;
            let temp = Self {
                directory: Arc::clone(directory),
                name,
                file,
                owner: process::id(),
                has_moved: false,
            };
            if temp.lock().map_err(wrap)? {
                temp.adopt_rights(files, destination).map_err(wrap)?;
                let direct = direct && temp.switch_to_direct().map_err(wrap)?;
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
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Switches to direct I/O on the open file, so that there is never a second one to be made.
    fn switch_to_direct(&self) -> io::Result<bool> {
        match self.file.set_direct(true) {
            Ok(()) => Ok(true),
            Err(error) if files::refuses_direct(&error) => Ok(false),
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

    /// Moves the file to its final name.
    ///
    /// # Errors
    /// `NotFound` where somebody has removed the temporary name, or put another file there: what the
    /// name leads to then is nobody's to publish.
    pub(super) fn move_to(&mut self, name: &OsStr, place: Place) -> io::Result<()> {
        let own = self.file.metadata()?;
        if !leads_to(&*self.directory, &self.name, &own)? {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "another process has removed the temporary file",
            ));
        }
        match place {
            Place::Any => self.directory.rename(&self.name, name)?,
            Place::Free => self.move_to_free(name)?,
        }
        self.has_moved = true;
        Ok(())
    }

    fn move_to_free(&self, name: &OsStr) -> io::Result<()> {
        match self.directory.rename_new(&self.name, name) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => return other,
        }
        match self.directory.link(&self.name, name) {
            // The file is in place; what is left of the temporary name is collected later.
            Ok(()) => {
                let _left_behind = self.directory.unlink(&self.name);
                return Ok(());
            }
            Err(error) if !refuses_links(&error) => return Err(error),
            Err(_) => {}
        }
        // Neither call is there: what comes between these two is replaced.
        if self.directory.inspect(name)?.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        self.directory.rename(&self.name, name)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // A forked child drops its copy too: the file is its parent's.
        if self.has_moved || self.owner != process::id() {
            return;
        }
        // The error that brought us here is the one to report. A file that could not be removed
        // is no checkpoint to anybody, and is collected later.
        let _left_behind = self
            .file
            .metadata()
            .and_then(|own| unlink_own(&*self.directory, &self.name, &own));
    }
}
