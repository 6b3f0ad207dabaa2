//! The lock that savers share while they give files their names.
//!
//! What deletes checkpoints takes it alone, compares what it has judged with what is there, and removes it:
//! so nothing that a saver publishes comes between the two. Savers never wait for each other, and for
//! somebody who deletes only a moment. Where the lock cannot be had, a save goes on without.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Commit;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::job::Observer;

/// How long a saver waits. Who deletes holds the lock for some calls that take microseconds; only one that
/// was stopped in the middle holds it longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it tries.
const INTERVAL: Duration = Duration::from_millis(2);

/// The lock on one directory, given up when dropped.
#[derive(Debug)]
pub(super) struct SharedLock(Arc<dyn Directory>);

impl Drop for SharedLock {
    fn drop(&mut self) {
        // Closing the directory gives it up too, unless a process was forked meanwhile.
        let _closed_soon = self.0.unlock();
    }
}

impl Commit {
    /// Takes the lock on each of these directories, as far as it can be had.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where the observer wants no more waiting.
    pub(super) fn lock_shared(
        &mut self,
        directories: &[PathBuf],
        observer: &mut dyn Observer,
    ) -> Result<Vec<SharedLock>> {
        let mut locks = Vec::new();
        for path in directories {
            // A directory that a link is in may be one that we cannot read, and so not lock.
            let Ok(directory) = self.open_directory(path) else {
                continue;
            };
            let is_known = self.unlocked.contains(path);
            let patience = if is_known { Duration::ZERO } else { PATIENCE };
            match wait_for_lock(&*directory, patience, observer)? {
                Ok(()) => locks.push(SharedLock(directory)),
                // There are none here: whoever deletes does without too.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(_held) if is_known => {}
                Err(_held) => self.unlocked.push(path.clone()),
            }
        }
        Ok(locks)
    }

    /// Directories in which files were published without the lock, since somebody who deletes there held it
    /// all the time: what was published may have been removed again.
    #[must_use]
    pub fn unlocked(&self) -> &[PathBuf] {
        &self.unlocked
    }
}

fn wait_for_lock(
    directory: &dyn Directory,
    patience: Duration,
    observer: &mut dyn Observer,
) -> Result<io::Result<()>> {
    let begun = Instant::now();
    loop {
        match directory.lock_shared() {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < patience => {}
            other => return Ok(other),
        }
        observer.poll(0, 0).map_err(|_stop| Error::Interrupted)?;
        thread::sleep(INTERVAL);
    }
}

/// The directory in which a path is a name.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}
