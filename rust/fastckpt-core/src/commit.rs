//! Files that become visible whole or not at all.
//!
//! A file is written under a temporary name in the directory it goes to, made durable there, and
//! renamed: until the rename a reader finds what was there before, from then on the new file.
//! Fsync of the file comes before the rename, so that a power cut cannot leave the name with half
//! of the bytes; fsync of the directory comes after it, so that the rename itself survives one.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Phase, Result};
use crate::files::{self, Directory, File, FileKind, Files, Metadata, or_here};
use crate::job::{self, Observer};
use crate::stale;
use crate::write::{self, ArchivePlan, SaveStager, WriteOptions};

/// Symbolic links followed to a destination before it is taken for a loop (Linux's own limit).
const MAX_SYMLINKS: usize = 40;
/// Names tried before giving up: each one tried belongs to a file that a dead process of our
/// number left behind.
const MAX_TEMP_NAMES: usize = 10_000;
/// What `open` gives to a new file before the umask is taken off.
const NEW_FILE_MODE: u32 = 0o666;
/// While a file that is replaced lends its mode, nobody else looks into the new one.
const PRIVATE_MODE: u32 = 0o600;

/// Files that are written one after the other and published in an order of the caller's choice.
///
/// What was not published when it is dropped is removed.
#[derive(Debug)]
pub struct Commit {
    files: Arc<dyn Files>,
    sync: bool,
    directories: Vec<(PathBuf, Arc<dyn Directory>)>,
    /// Directories from which the files of dead processes have been removed.
    swept: Vec<PathBuf>,
    pending: Vec<Pending>,
}

/// A file that is complete under its temporary name.
#[derive(Debug)]
struct Pending {
    path: PathBuf,
    destination: Destination,
    temp: TempFile,
}

/// Where a path leads, symbolic links followed.
#[derive(Debug, Clone)]
struct Destination {
    directory: Arc<dyn Directory>,
    directory_path: PathBuf,
    name: OsString,
    replaced: Option<Metadata>,
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
            swept: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Creates a directory and those above it, as far as they are missing, and makes that durable.
    pub fn create_directory(&mut self, path: &Path, observer: &mut dyn Observer) -> Result<()> {
        match self.files.create_directory(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Opening says whether it is a directory, or leads to one.
                return match self.directory(path) {
                    Err(Error::Io { source, .. })
                        if source.kind() == io::ErrorKind::NotADirectory =>
                    {
                        Err(Error::io(Phase::CreateDirectory, path)(error))
                    }
                    other => other.map(drop),
                };
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path
                    .parent()
                    .filter(|parent| !parent.as_os_str().is_empty());
                let parent =
                    parent.ok_or_else(|| Error::io(Phase::CreateDirectory, path)(error))?;
                self.create_directory(parent, observer)?;
                match self.files.create_directory(path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(Error::io(Phase::CreateDirectory, path)(error));
                    }
                    _ => {}
                }
            }
            Err(error) => return Err(Error::io(Phase::CreateDirectory, path)(error)),
        }
        if self.sync {
            let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
            sync_directory(&parent, observer)?.map_err(Error::io(Phase::SyncDirectory, path))?;
        }
        Ok(())
    }

    /// Writes an archive for `path`, under a temporary name beside it; returns its size.
    pub fn write_archive(
        &mut self,
        path: &Path,
        plan: &ArchivePlan,
        options: &WriteOptions,
        observer: &mut dyn Observer,
        stager: Option<&mut dyn SaveStager>,
    ) -> Result<u64> {
        let direct = options.direct.unwrap_or(self.sync);
        let nbytes = plan.nbytes();
        self.write(
            path,
            nbytes,
            direct,
            observer,
            |file, temp_path, direct, observer| {
                write::write_to_file(file, temp_path, direct, plan, options, observer, stager)
            },
        )?;
        Ok(nbytes)
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

    fn write(
        &mut self,
        path: &Path,
        nbytes: u64,
        direct: bool,
        observer: &mut dyn Observer,
        fill: impl FnOnce(&Arc<dyn File>, &Path, bool, &mut dyn Observer) -> Result<()>,
    ) -> Result<()> {
        let destination = self.resolve(path)?;
        self.sweep(&destination);
        let (temp, direct) = TempFile::create(path, &destination, direct)?;
        fill(&temp.file, path, direct, observer)?;
        if self.sync {
            let written = Arc::clone(&temp.file);
            // One attempt: after a failed fsync the kernel forgets which pages it could not write,
            // and a second one would report success over lost data.
            job::run_detached(observer, nbytes, move || written.sync())?
                .map_err(Error::io(Phase::Sync, path))?;
        }
        self.pending.push(Pending {
            path: path.to_owned(),
            destination,
            temp,
        });
        Ok(())
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

    /// Gives the files written for `paths` their names, in this order, and makes that durable.
    pub fn publish(&mut self, paths: &[&Path], observer: &mut dyn Observer) -> Result<()> {
        // Each directory, and a file that has got its name in it.
        let mut touched: Vec<(Destination, PathBuf)> = Vec::new();
        for path in paths {
            let position = self
                .pending
                .iter()
                .position(|pending| pending.path == *path)
                .ok_or_else(|| {
                    let source = io::Error::new(
                        io::ErrorKind::NotFound,
                        "no file was written for this path",
                    );
                    Error::Io {
                        phase: Phase::Rename,
                        path: path.to_path_buf(),
                        source,
                    }
                })?;
            let Pending {
                path,
                destination,
                mut temp,
            } = self.pending.remove(position);
            destination
                .directory
                .rename(&temp.name, &destination.name)
                .map_err(Error::io(Phase::Rename, &path))?;
            temp.has_moved = true;
            let is_known = |(known, _): &(Destination, PathBuf)| {
                known.directory_path == destination.directory_path
            };
            if !touched.iter().any(is_known) {
                touched.push((destination, path));
            }
        }
        if self.sync {
            for (destination, path) in touched {
                sync_directory(&destination.directory, observer)?
                    .map_err(|source| Error::CommitUnknown { path, source })?;
            }
        }
        Ok(())
    }

    /// Follows `path` to the file that a save replaces or creates.
    fn resolve(&mut self, path: &Path) -> Result<Destination> {
        let mut resolved = path.to_owned();
        for _ in 0..MAX_SYMLINKS {
            let refuse =
                |errno| Error::io(Phase::Inspect, path)(io::Error::from_raw_os_error(errno));
            let Some(name) = resolved.file_name().map(OsString::from) else {
                return Err(refuse(libc::EISDIR));
            };
            if resolved.as_os_str().as_bytes().ends_with(b"/") {
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
                    let target = self
                        .files
                        .read_link(&resolved)
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

    fn directory(&mut self, path: &Path) -> Result<Arc<dyn Directory>> {
        if let Some((_, directory)) = self.directories.iter().find(|(known, _)| known == path) {
            return Ok(Arc::clone(directory));
        }
        let directory = self
            .files
            .open_directory(path)
            .map_err(Error::io(Phase::OpenDirectory, or_here(path)))?;
        self.directories
            .push((path.to_owned(), Arc::clone(&directory)));
        Ok(directory)
    }
}

/// Makes what has changed in a directory durable, without holding up an interruption.
fn sync_directory(
    directory: &Arc<dyn Directory>,
    observer: &mut dyn Observer,
) -> Result<io::Result<()>> {
    let directory = Arc::clone(directory);
    job::run_detached(observer, 0, move || directory.sync())
}

/// A file under a temporary name; removed when dropped, unless it has moved to its final one.
#[derive(Debug)]
struct TempFile {
    directory: Arc<dyn Directory>,
    name: OsString,
    file: Arc<dyn File>,
    owner: u32,
    has_moved: bool,
}

impl TempFile {
    /// Creates `.fastckpt-<pid>-<n>.tmp`, locked as long as it is open: a file of this form that
    /// nobody holds locked was left by a process that died. Tells whether direct I/O is on.
    fn create(path: &Path, destination: &Destination, direct: bool) -> Result<(Self, bool)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let pid = process::id();
        let wrap = |source| Error::io(Phase::Create, path)(source);
        let mode = if destination.replaced.is_some() {
            PRIVATE_MODE
        } else {
            NEW_FILE_MODE
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
                temp.adopt_mode(destination.replaced.as_ref())
                    .map_err(wrap)?;
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

    fn adopt_mode(&self, replaced: Option<&Metadata>) -> io::Result<()> {
        let Some(replaced) = replaced else {
            return Ok(());
        };
        let now = self.file.metadata()?;
        if (now.mode, now.uid, now.gid) == (replaced.mode, replaced.uid, replaced.gid) {
            return Ok(());
        }
        self.file.set_mode_and_owner(replaced)
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
