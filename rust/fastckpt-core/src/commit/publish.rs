//! Files that are complete get their names.

use std::io;
use std::path::{Path, PathBuf};

use super::keep::MovedAside;
use super::resolve::Destination;
use super::temp::Place;
use super::{Commit, Pending, lock, sync_directory};
use crate::error::{Error, Phase, Result};
use crate::files::Metadata;
use crate::job::Observer;

impl Commit {
    /// Gives the files written for `paths` their names, in this order, and makes that durable.
    /// The second names that [`keep`](Self::keep) gave are made durable before.
    ///
    /// # Errors
    /// As [`publish_as`](Self::publish_as).
    pub fn publish(&mut self, paths: &[&Path], observer: &mut dyn Observer) -> Result<()> {
        self.publish_as(
            &Publication {
                paths,
                ..Publication::default()
            },
            observer,
        )
    }

    /// The same, with what has to hold at the places that the files go to.
    ///
    /// # Errors
    /// Where a place or a file is not as it has to be, and nothing was published. Where the system refuses;
    /// then the files before may have got their names.
    pub fn publish_as(
        &mut self,
        publication: &Publication<'_>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.sync_kept(observer)?;
        let taken = self.take_pending(publication.paths)?;
        let mut directories: Vec<PathBuf> = Vec::new();
        for new in &taken {
            // A file that a symbolic link leads to goes with the link too, and that may lie elsewhere.
            for path in [
                &lock::directory_of(&new.path),
                &new.destination.directory_path,
            ] {
                if !directories.contains(path) {
                    directories.push(path.clone());
                }
            }
        }
        let locks = self.lock_shared(&directories, observer)?;
        self.require_unchanged(publication.unchanged)?;
        let touched = self.rename_all(taken, publication.place)?;
        drop(locks);
        if self.sync {
            for (destination, path) in touched {
                sync_directory(&destination.directory, observer)?
                    .map_err(|source| Error::CommitUnknown { path, source })?;
            }
        }
        Ok(())
    }

    fn take_pending(&mut self, paths: &[&Path]) -> Result<Vec<Pending>> {
        let mut taken = Vec::with_capacity(paths.len());
        for path in paths {
            let found = self
                .pending
                .iter()
                .position(|pending| pending.path == *path);
            let position = found.ok_or_else(|| {
                let problem = "no file was written for this path";
                Error::io(Phase::Rename, *path)(io::Error::new(io::ErrorKind::NotFound, problem))
            })?;
            taken.push(self.pending.remove(position));
        }
        Ok(taken)
    }

    /// Renames the files; returns each directory that they went to, with a file that has got its name in it.
    fn rename_all(
        &mut self,
        taken: Vec<Pending>,
        place: Place,
    ) -> Result<Vec<(Destination, PathBuf)>> {
        let mut touched: Vec<(Destination, PathBuf)> = Vec::new();
        for new in taken {
            let Pending {
                path,
                destination,
                mut temp,
            } = new;
            temp.move_to(&destination.name, place)
                .map_err(Error::io(Phase::Rename, &path))?;
            self.moved_aside.drain(..).for_each(MovedAside::settle);
            let is_known = |(known, _): &(Destination, PathBuf)| {
                known.directory_path == destination.directory_path
            };
            if !touched.iter().any(is_known) {
                touched.push((destination, path));
            }
        }
        Ok(touched)
    }

    fn require_unchanged(&mut self, judged: &[(PathBuf, FileIdentity)]) -> Result<()> {
        for (path, identity) in judged {
            let destination = self.resolve(path)?;
            let is_same = destination.replaced.is_some_and(|found| {
                let has_numbers = destination.directory.is_local().unwrap_or(true);
                FileIdentity::of(&found).is_same(identity, has_numbers)
            });
            if !is_same {
                let stale = io::Error::from_raw_os_error(libc::ESTALE);
                return Err(Error::io(Phase::Inspect, path)(stale));
            }
        }
        Ok(())
    }
}

/// Files that get their names together, and what has to hold where they go.
#[derive(Debug, Default, Clone, Copy)]
pub struct Publication<'a> {
    /// Paths that files were written for, in the order in which they get their names.
    pub paths: &'a [&'a Path],
    /// What may be at these paths.
    pub place: Place,
    /// Files that have to be there still, as they were when they were looked at: `ESTALE` where one is
    /// not. Compared while the lock is held, so that nobody who deletes comes in between.
    pub unchanged: &'a [(PathBuf, FileIdentity)],
}

/// Which file it is, and that it has not been written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    /// The file system that it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Size in bytes.
    pub nbytes: u64,
    /// When its contents last changed, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl FileIdentity {
    /// Whether both are of one file that has not been written in between. On network and FUSE file systems
    /// (without `has_numbers`) the number may have changed all the same, once the file was forgotten.
    fn is_same(&self, other: &Self, has_numbers: bool) -> bool {
        let number = |file: &Self| (file.device, file.inode);
        (self.nbytes, self.modified_ns) == (other.nbytes, other.modified_ns)
            && (!has_numbers || number(self) == number(other))
    }

    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.device,
            inode: metadata.inode,
            nbytes: metadata.nbytes,
            modified_ns: metadata.modified_ns,
        }
    }
}
