//! Files that are about to be replaced, kept under a second, hidden name until they are not needed.
//!
//! Where several files belong together, a crash between two renames leaves some of them new and some
//! old. As long as the old ones have a second name each, all of them can be found again.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process;
use std::sync::Arc;

use super::resolve::Destination;
use super::{Commit, sync_directory};
use crate::error::{Error, Phase, Result};
use crate::files::{Directory, Metadata, or_here};
use crate::job::Observer;
use crate::stale;

impl Commit {
    /// Gives the file that is at `path` now the second name `kept` in its directory, in the place
    /// of whatever has that name. False where there is no file, or where `path` is a symbolic link
    /// that leads to another directory.
    ///
    /// Where the file system has no second names, the file is renamed to `kept`, and back if this
    /// commit ends before it publishes anything.
    ///
    /// # Errors
    /// Where the directory refuses, or `kept` is no name that [`discard`](Self::discard) takes.
    pub fn keep(&mut self, path: &Path, kept: &OsStr) -> Result<bool> {
        if !stale::is_hidden_name(kept) || stale::is_temp_name(kept) {
            return Err(refuse_name(Phase::Keep, path));
        }
        let destination = self.resolve(path)?;
        let own_directory = path.parent().unwrap_or(Path::new(""));
        let Some(replaced) = destination
            .replaced
            .filter(|_| or_here(&destination.directory_path) == or_here(own_directory))
        else {
            return Ok(false);
        };
        let has_links = link(&destination, kept, &replaced)
            .map_err(|error| Error::io(Phase::Keep, path)(error))?;
        if !has_links {
            if self.sync && self.moved_aside.is_empty() {
                // Hidden names that were discarded must not come back now that a file is about to
                // have nothing else: with two whole saves under hidden names, none is the newer one.
                destination
                    .directory
                    .sync()
                    .map_err(Error::io(Phase::SyncDirectory, path))?;
            }
            destination
                .directory
                .rename(&destination.name, kept)
                .map_err(Error::io(Phase::Keep, path))?;
            self.moved_aside
                .push(MovedAside::new(&destination, kept.to_owned()));
        }
        if !self.kept_in.contains(&destination.directory_path) {
            self.kept_in.push(destination.directory_path);
        }
        Ok(true)
    }

    /// Makes the names that [`keep`](Self::keep) gave durable: a power cut that left a rename and
    /// lost them would lose the file that they are there for.
    pub(super) fn sync_kept(&mut self, observer: &mut dyn Observer) -> Result<()> {
        for path in std::mem::take(&mut self.kept_in) {
            if !self.sync {
                continue;
            }
            let directory = self.directory(&path)?;
            let synced = sync_directory(&directory, observer)
                .and_then(|result| result.map_err(Error::io(Phase::SyncDirectory, or_here(&path))));
            if synced.is_err() {
                // Another attempt to publish would find nothing to wait for, and rename.
                self.pending.clear();
            }
            synced?;
        }
        Ok(())
    }

    /// Makes all that has happened in a directory durable, whoever did it.
    pub fn sync_directory(&mut self, directory: &Path, observer: &mut dyn Observer) -> Result<()> {
        let opened = self.directory(directory)?;
        if self.sync {
            sync_directory(&opened, observer)?
                .map_err(Error::io(Phase::SyncDirectory, or_here(directory)))?;
        }
        Ok(())
    }

    /// Removes hidden names from a directory. Names that are gone already are passed over.
    ///
    /// With `after_sync`, once all that has happened in it is durable: also what other processes have
    /// published there. Without, for names whose files have their own names still.
    ///
    /// # Errors
    /// Where the directory refuses; where a name is none of ours, before anything is removed.
    pub fn discard(
        &mut self,
        directory: &Path,
        names: &[OsString],
        after_sync: bool,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if let Some(foreign) = names.iter().find(|name| !stale::is_hidden_name(name)) {
            return Err(refuse_name(Phase::Discard, &directory.join(foreign)));
        }
        if names.is_empty() {
            return Ok(());
        }
        if after_sync {
            self.sync_directory(directory, observer)?;
        }
        let opened = self.directory(directory)?;
        for name in names {
            remove(&*opened, name).map_err(Error::io(Phase::Discard, directory.join(name)))?;
        }
        Ok(())
    }
}

fn refuse_name(phase: Phase, path: &Path) -> Error {
    let problem = format!("hidden names begin with {}", stale::PREFIX);
    Error::io(phase, path)(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

/// Gives the file its second name; false where the file system has no such thing.
fn link(destination: &Destination, kept: &OsStr, replaced: &Metadata) -> io::Result<bool> {
    let directory = &*destination.directory;
    let mut linked = directory.link(&destination.name, kept);
    if matches!(&linked, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
        let identity = |metadata: &Metadata| (metadata.device, metadata.inode);
        if directory.inspect(kept)?.as_ref().map(identity) == Some(identity(replaced)) {
            return Ok(true);
        }
        remove(directory, kept)?;
        linked = directory.link(&destination.name, kept);
    }
    match linked {
        Err(error) if refuses_links(&error) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Whether the error says that the file gets no second name here, rather than that it failed:
/// `EPERM` on file systems without hard links and for files of other users (`protected_hardlinks`),
/// `EMLINK` where a file has as many names as it can have, the others on network file systems.
fn refuses_links(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EMLINK | libc::ENOTSUP | libc::ENOSYS)
    ) || error.kind() == io::ErrorKind::Unsupported
}

fn remove(directory: &dyn Directory, name: &OsStr) -> io::Result<()> {
    match directory.unlink(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A file that has only its hidden name; it gets its own back when dropped, unless it was settled.
#[derive(Debug)]
pub(super) struct MovedAside {
    directory: Arc<dyn Directory>,
    name: OsString,
    kept: OsString,
    owner: u32,
    is_settled: bool,
}

impl MovedAside {
    fn new(destination: &Destination, kept: OsString) -> Self {
        Self {
            directory: Arc::clone(&destination.directory),
            name: destination.name.clone(),
            kept,
            owner: process::id(),
            is_settled: false,
        }
    }

    /// From here on a reader needs the file under its hidden name.
    pub(super) fn settle(mut self) {
        self.is_settled = true;
    }
}

impl Drop for MovedAside {
    fn drop(&mut self) {
        // A forked child drops its copy too: the file is its parent's.
        let is_ours = !self.is_settled && self.owner == process::id();
        if is_ours && matches!(self.directory.inspect(&self.name), Ok(None)) {
            // The error that brought us here is the one to report; the hidden name is still there.
            let _still_hidden = self.directory.rename(&self.kept, &self.name);
        }
    }
}
