//! Files that are about to be replaced, kept under a second, hidden name until they are not needed.
//!
//! Where several files belong together, a crash between two renames leaves some of them new and some
//! old. As long as the old ones have a second name each, all of them can be found again.
//!
//! The second name is in the directory of the path. Where a symbolic link there leads to a file in another
//! directory, the file gets its second name beside it, and the name in the directory of the path is a
//! symbolic link to that.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process;
use std::sync::Arc;

use super::lock::directory_of;
use super::own::{leads_to, replace_by_link};
use super::resolve::Destination;
use super::{Commit, sync_directory};
use crate::error::{Error, Phase, Result};
use crate::files::{Directory, FileKind, Metadata, or_here};
use crate::job::Observer;
use crate::stale;

/// A hidden name, and which file it stood for when that was found useless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The name.
    pub name: OsString,
    /// The file system of what stood there, symbolic links not followed.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl Commit {
    /// Gives the file that is at `path` now its second name of the save `save_id`, in the place of
    /// whatever has that name. False where there is no file.
    ///
    /// Where the file system has no second names, the file is renamed instead, and renamed back if this
    /// commit ends before it publishes anything.
    ///
    /// # Errors
    /// Where the directory refuses.
    pub fn keep(&mut self, path: &Path, save_id: u64) -> Result<bool> {
        let destination = self.resolve(path)?;
        let (Some(replaced), Some(own_name)) = (destination.replaced, path.file_name()) else {
            return Ok(false);
        };
        let own_directory = directory_of(path);
        let is_linked = or_here(&destination.directory_path) != or_here(&own_directory);
        let name = if is_linked {
            &destination.name
        } else {
            own_name
        };
        let kept = stale::kept_name(save_id, name);
        self.give_second_name(path, &destination, &kept, &replaced)?;
        self.note_kept_in(&destination.directory_path);
        if is_linked {
            let target = destination.directory_path.join(&kept);
            // From where the link lies; a path that an absolute link has led to stays as it is.
            let target = target.strip_prefix(&own_directory).unwrap_or(&target);
            let name = stale::kept_name(save_id, own_name);
            point(&*self.directory(&own_directory)?, &name, target)
                .map_err(Error::io(Phase::Keep, path))?;
            self.note_kept_in(&own_directory);
        }
        Ok(true)
    }

    /// Gives the file at `path` the name `name` too, in its directory, in the place of whatever has it, and
    /// makes that durable. False where the file system has no second names.
    ///
    /// # Errors
    /// Where there is no file at `path`, or the directory refuses.
    pub fn link(&mut self, path: &Path, name: &OsStr, observer: &mut dyn Observer) -> Result<bool> {
        let wrap = |source| Error::io(Phase::Link, path)(source);
        let directory_path = directory_of(path);
        let directory = self.directory(&directory_path)?;
        let own_name = path
            .file_name()
            .ok_or_else(|| wrap(io::ErrorKind::InvalidInput.into()))?;
        let file = directory
            .inspect(own_name)
            .map_err(wrap)?
            .ok_or_else(|| wrap(io::Error::from_raw_os_error(libc::ENOENT)))?;
        let is_linked =
            replace_by_link(&*self.files, &*directory, own_name, name, &file).map_err(wrap)?;
        if is_linked {
            self.sync_directory(&directory_path, observer)?;
        }
        Ok(is_linked)
    }

    fn give_second_name(
        &mut self,
        path: &Path,
        destination: &Destination,
        kept: &OsStr,
        replaced: &Metadata,
    ) -> Result<()> {
        let directory = &destination.directory;
        let has_links = replace_by_link(
            &*self.files,
            &**directory,
            &destination.name,
            kept,
            replaced,
        )
        .map_err(Error::io(Phase::Keep, path))?;
        if has_links {
            return Ok(());
        }
        if self.sync && self.moved_aside.is_empty() {
            // Hidden names that were discarded must not come back now that a file is about to
            // have nothing else: with two whole saves under hidden names, none is the newer one.
            directory
                .sync()
                .map_err(Error::io(Phase::SyncDirectory, path))?;
        }
        directory
            .rename(&destination.name, kept)
            .map_err(Error::io(Phase::Keep, path))?;
        self.moved_aside
            .push(MovedAside::new(destination, kept.to_owned(), *replaced));
        Ok(())
    }

    fn note_kept_in(&mut self, directory: &Path) {
        if !self.kept_in.iter().any(|known| known == directory) {
            self.kept_in.push(directory.to_owned());
        }
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

    /// Removes hidden names from a directory, with the files beside the targets of symbolic links that
    /// [`keep`](Self::keep) gave second names to. Names that are gone already, or stand for another file
    /// than the one that was found useless, are passed over.
    ///
    /// With `after_sync`, once all that has happened in it is durable: also what other processes have
    /// published there. Without, for names whose files have their own names still.
    ///
    /// # Errors
    /// Where the directory refuses; where a name is none of ours, before anything is removed.
    pub fn discard(
        &mut self,
        directory: &Path,
        judged: &[Judged],
        after_sync: bool,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let is_foreign = |one: &&Judged| !stale::is_hidden_name(&one.name);
        if let Some(foreign) = judged.iter().find(is_foreign) {
            return Err(refuse_name(Phase::Discard, &directory.join(&foreign.name)));
        }
        if judged.is_empty() {
            return Ok(());
        }
        if after_sync {
            self.sync_directory(directory, observer)?;
        }
        for one in judged {
            self.discard_one(directory, one)
                .map_err(Error::io(Phase::Discard, directory.join(&one.name)))?;
        }
        Ok(())
    }

    fn discard_one(&mut self, directory_path: &Path, judged: &Judged) -> io::Result<()> {
        let directory = self.open_directory(directory_path)?;
        let Some(found) = directory.inspect(&judged.name)? else {
            return Ok(());
        };
        if (found.device, found.inode) != (judged.device, judged.inode) {
            return Ok(());
        }
        if found.kind == FileKind::Symlink {
            // First the file: without the link nobody would find it again.
            let target = directory_path.join(directory.read_link(&judged.name)?);
            self.discard_target(&target)?;
        }
        remove(&*directory, &judged.name)
    }

    /// Removes the file beside a target, if it has the name that [`keep`](Self::keep) gives there.
    fn discard_target(&mut self, target: &Path) -> io::Result<()> {
        let Some(name) = target.file_name().filter(|name| stale::is_kept_name(name)) else {
            return Ok(());
        };
        let directory = match self.open_directory(&directory_of(target)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let found = directory.inspect(name)?;
        match found.map(|metadata| metadata.kind) {
            Some(FileKind::Regular) => remove(&*directory, name),
            _ => Ok(()),
        }
    }
}

fn refuse_name(phase: Phase, path: &Path) -> Error {
    let problem = format!("hidden names begin with {}", stale::PREFIX);
    Error::io(phase, path)(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

/// Makes a symbolic link, in the place of what another save of the same id has left there.
fn point(directory: &dyn Directory, name: &OsStr, target: &Path) -> io::Result<()> {
    match directory.symlink(target, name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    if directory
        .read_link(name)
        .is_ok_and(|points_to| points_to == target)
    {
        return Ok(());
    }
    remove(directory, name)?;
    directory.symlink(target, name)
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
    file: Metadata,
    owner: u32,
    is_settled: bool,
}

impl MovedAside {
    fn new(destination: &Destination, kept: OsString, file: Metadata) -> Self {
        Self {
            directory: Arc::clone(&destination.directory),
            name: destination.name.clone(),
            kept,
            file,
            owner: process::id(),
            is_settled: false,
        }
    }

    /// From here on a reader needs the file under its hidden name.
    pub(super) fn settle(mut self) {
        self.is_settled = true;
    }

    /// Gives the file its own name again, unless somebody has saved another one there meanwhile.
    fn move_back(&self) -> io::Result<()> {
        if !leads_to(&*self.directory, &self.kept, &self.file)? {
            return Ok(());
        }
        match self.directory.rename_new(&self.kept, &self.name) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => return other,
        }
        if self.directory.inspect(&self.name)?.is_none() {
            self.directory.rename(&self.kept, &self.name)?;
        }
        Ok(())
    }
}

impl Drop for MovedAside {
    fn drop(&mut self) {
        // A forked child drops its copy too: the file is its parent's.
        if self.is_settled || self.owner != process::id() {
            return;
        }
        // The error that brought us here is the one to report; the hidden name is still there.
        let _still_hidden = self.move_back();
    }
}
