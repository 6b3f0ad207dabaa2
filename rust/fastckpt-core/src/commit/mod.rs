//! Files that become visible whole or not at all.
//!
//! A file is written under a temporary name in the directory it goes to, made durable there, and
//! renamed: until the rename a reader finds what was there before, from then on the new file.
//! Fsync of the file comes before the rename, so that a power cut cannot leave the name with half
//! of the bytes; fsync of the directory comes after it, so that the rename itself survives one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Phase, Result};
use crate::files::{self, Directory, File, Files, Metadata};
use crate::job::{self, Observer};
use crate::stale;
use crate::write::{self, ArchivePlan, SaveStager, StorageMaker, Supply, WriteOptions, Written};

mod copy;
mod keep;
mod lock;
mod own;
mod publish;
mod resolve;
mod space;
mod temp;

use keep::MovedAside;
use resolve::Destination;
use temp::{NEW_FILE_MODE, TempFile};

pub use copy::{Copied, CopyOptions};
pub use keep::Judged;
pub use publish::{FileIdentity, Publication};
pub use temp::Place;

/// Files that are written one after the other and published in an order of the caller's choice.
///
/// What was not published when it is dropped is removed.
#[derive(Debug)]
pub struct Commit {
    files: Arc<dyn Files>,
    sync: bool,
    directories: Vec<(PathBuf, Arc<dyn Directory>)>,
    /// Directories whose names are known to be durable in those above them.
    durable_directories: Vec<PathBuf>,
    /// Directories from which the files of dead processes have been removed.
    swept: Vec<PathBuf>,
    pending: Vec<Pending>,
    /// Directories in which files have got second names that are not durable yet.
    kept_in: Vec<PathBuf>,
    /// Files that got another name because they could not get a second one.
    moved_aside: Vec<MovedAside>,
    /// Directories whose lock could not be had.
    unlocked: Vec<PathBuf>,
}

/// A file that is complete under its temporary name.
#[derive(Debug)]
struct Pending {
    path: PathBuf,
    destination: Destination,
    temp: TempFile,
}

impl Commit {
    /// Begins. With `sync` every file is on the disk before it is renamed, and the rename before
    /// `publish` returns; without it both survive a crash of the process, but not a power cut.
    #[must_use]
    pub fn new(files: Arc<dyn Files>, sync: bool) -> Self {
        Self {
            files,
            sync,
            directories: Vec::new(),
            durable_directories: Vec::new(),
            swept: Vec::new(),
            pending: Vec::new(),
            kept_in: Vec::new(),
            moved_aside: Vec::new(),
            unlocked: Vec::new(),
        }
    }

    /// Creates a directory and those above it, as far as they are missing, and makes that durable.
    ///
    /// One that is there already is made durable too: whoever created it, a rank of the same save or
    /// a process that was killed, may not have come to that.
    pub fn create_directory(&mut self, path: &Path, observer: &mut dyn Observer) -> Result<()> {
        let refused = Error::io(Phase::CreateDirectory, path);
        let is_new = match self.files.create_directory(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Opening says whether it is a directory, or leads to one.
                match self.directory(path) {
                    Err(Error::Io { source, .. })
                        if source.kind() == io::ErrorKind::NotADirectory =>
                    {
                        return Err(refused(error));
                    }
                    other => other.map(drop)?,
                }
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path
                    .parent()
                    .filter(|parent| !parent.as_os_str().is_empty());
                let Some(parent) = parent else {
                    return Err(refused(error));
                };
                self.create_directory(parent, observer)?;
                match self.files.create_directory(path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(refused(error));
                    }
                    _ => true,
                }
            }
            Err(error) => return Err(refused(error)),
        };
        if self.sync && !self.durable_directories.iter().any(|known| known == path) {
            match self.directory(path.parent().unwrap_or(Path::new(""))) {
                Ok(parent) => sync_directory(&parent, observer)?
                    .map_err(Error::io(Phase::SyncDirectory, path))?,
                // To save below a directory, one need not be allowed to read it.
                Err(Error::Io { source, .. })
                    if !is_new && source.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
            self.durable_directories.push(path.to_owned());
        }
        Ok(())
    }

    /// Writes an archive for `path`, under a temporary name beside it.
    pub fn write_archive(
        &mut self,
        path: &Path,
        plan: &ArchivePlan,
        options: &WriteOptions,
        observer: &mut dyn Observer,
        stager: Option<&mut dyn SaveStager>,
    ) -> Result<Written> {
        let supply = stager.map_or(Supply::Nothing, Supply::Staged);
        self.write_supplied(path, plan, options, observer, supply)
    }

    /// The same for storages that are made while they are written.
    ///
    /// # Errors
    /// As [`Commit::write_archive`], and those of the maker.
    pub fn write_made_archive(
        &mut self,
        path: &Path,
        plan: &ArchivePlan,
        options: &WriteOptions,
        observer: &mut dyn Observer,
        maker: &dyn StorageMaker,
    ) -> Result<Written> {
        self.write_supplied(path, plan, options, observer, Supply::Made(maker))
    }

    fn write_supplied(
        &mut self,
        path: &Path,
        plan: &ArchivePlan,
        options: &WriteOptions,
        observer: &mut dyn Observer,
        supply: Supply<'_>,
    ) -> Result<Written> {
        let direct = options.direct.unwrap_or(self.sync);
        self.write(
            path,
            plan.nbytes(),
            direct,
            observer,
            |file, temp_path, direct, observer| {
                write::write_to_file(file, temp_path, direct, plan, options, observer, supply)
            },
        )
    }

    /// Writes a small file for `path`, under a temporary name beside it.
    pub fn write_bytes(
        &mut self,
        path: &Path,
        bytes: &[u8],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.write(
            path,
            bytes.len() as u64,
            false,
            observer,
            |file, temp_path, _direct, _observer| {
                files::write_all_at(&**file, bytes, 0).map_err(Error::io(Phase::Write, temp_path))
            },
        )
    }

    fn write<T>(
        &mut self,
        path: &Path,
        nbytes: u64,
        direct: bool,
        observer: &mut dyn Observer,
        fill: impl FnOnce(&Arc<dyn File>, &Path, bool, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let (new, direct) = self.begin(path, NEW_FILE_MODE, direct)?;
        let filled = fill(&new.temp.file, path, direct, observer);
        self.finish(new, nbytes, filled, observer)
    }

    /// Creates the temporary file of a file to come; `mode` is for one that replaces nothing. Tells
    /// whether direct I/O is on.
    fn begin(&mut self, path: &Path, mode: u32, direct: bool) -> Result<(Pending, bool)> {
        let destination = self.resolve(path)?;
        require_replaceable(path, &destination)?;
        self.sweep(&destination);
        let (temp, direct) = TempFile::create(&*self.files, path, &destination, mode, direct)?;
        let pending = Pending {
            path: path.to_owned(),
            destination,
            temp,
        };
        Ok((pending, direct))
    }

    /// Makes a file that has been filled durable, and notes it for [`publish`](Self::publish).
    fn finish<T>(
        &mut self,
        new: Pending,
        nbytes: u64,
        filled: Result<T>,
        observer: &mut dyn Observer,
    ) -> Result<T> {
        let filled = filled.and_then(|filled| {
            if self.sync {
                sync_file(&new.temp.file, &new.path, nbytes, observer)?;
            }
            Ok(filled)
        });
        match filled {
            Ok(filled) => {
                self.pending.push(new);
                Ok(filled)
            }
            Err(error) => {
                let directory = Arc::clone(&new.destination.directory);
                drop(new);
                Err(space::name_shortage(error, nbytes, &*directory))
            }
        }
    }

    /// Where the file written for `path` lies until it is published: to be read back before anybody
    /// else sees it. `None` where no file waits for this path.
    #[must_use]
    pub fn temporary_path(&self, path: &Path) -> Option<PathBuf> {
        let pending = self.pending.iter().find(|pending| pending.path == path)?;
        Some(pending.destination.directory_path.join(&pending.temp.name))
    }

    /// Removes what dead processes left where this file goes, once for each directory.
    fn sweep(&mut self, destination: &Destination) {
        if self.swept.contains(&destination.directory_path) {
            return;
        }
        self.swept.push(destination.directory_path.clone());
        // Elsewhere a lock may say nothing about the processes of other machines, which save to
        // the same directory: their files are left alone.
        if !destination.directory.is_local().unwrap_or(false) {
            return;
        }
        // The save does not depend on what else is in the directory, so it does not fail over it.
        let _not_listed = stale::remove_stale(
            &*self.files,
            &destination.directory_path,
            &*destination.directory,
        );
    }
}

/// Refuses to write what could not be published: over a file that can neither be replaced nor get a second
/// name, since its directory lets nobody touch the files of others.
fn require_replaceable(path: &Path, destination: &Destination) -> Result<()> {
    let directory = &destination.directory;
    let is_protected = |replaced: &Metadata| directory.protects(replaced).unwrap_or(false);
    if destination.replaced.as_ref().is_some_and(is_protected) {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        return Err(Error::io(Phase::Inspect, path)(refused));
    }
    Ok(())
}

/// Makes a file durable, without holding up an interruption.
fn sync_file(
    file: &Arc<dyn File>,
    path: &Path,
    nbytes: u64,
    observer: &mut dyn Observer,
) -> Result<()> {
    let file = Arc::clone(file);
    // One attempt: after a failed fsync the kernel forgets which pages it could not write,
    // and a second one would report success over lost data.
    job::run_detached(observer, nbytes, move || file.sync())?.map_err(Error::io(Phase::Sync, path))
}

/// Makes what has changed in a directory durable, without holding up an interruption.
fn sync_directory(
    directory: &Arc<dyn Directory>,
    observer: &mut dyn Observer,
) -> Result<io::Result<()>> {
    let directory = Arc::clone(directory);
    job::run_detached(observer, 0, move || directory.sync())
}
