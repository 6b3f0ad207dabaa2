//! What a process works with: the traits of the core, over a simulated disk.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use fastckpt_core::files::{BLOCK_NBYTES, Directory, File, Files, Metadata};
use fastckpt_core::mapping::Mapping;
use libc::{EEXIST, EINVAL, EPERM};

use super::contents::{Contents, Stored};
use super::record::{Change, DirectoryId, Inode, Node};
use super::{SimulatedDisk, errno};

/// What the file system says is free: more than any test writes.
const FREE_NBYTES: u64 = 1 << 40;

/// More than there are temporary files at a time.
const DIFFERENT_NUMBERS: u64 = 24;

/// A process's way in.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) disk: SimulatedDisk,
    pub(super) actor: usize,
}

impl Process {
    fn handle(&self, inode: Inode, is_direct: bool) -> Arc<dyn File> {
        Arc::new(OpenFile {
            disk: self.disk.clone(),
            actor: self.actor,
            inode,
            handle: self.disk.0.next_handle.fetch_add(1, Ordering::Relaxed),
            is_direct: AtomicBool::new(is_direct),
        })
    }

    fn look<T>(
        &self,
        name: &'static str,
        look: impl FnOnce(&Contents) -> io::Result<T>,
    ) -> io::Result<T> {
        self.disk.operate(self.actor, name, None, |live| {
            look(live).map(|value| (value, None))
        })
    }
}

impl Files for Process {
    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn Directory>> {
        let id = self.look("open_directory", |live| live.directory(path))?;
        let process = Self {
            disk: self.disk.clone(),
            actor: self.actor,
        };
        let failures_seen = AtomicUsize::new(self.disk.world().failed_syncs(id).len());
        Ok(Arc::new(OpenDirectory {
            process,
            id,
            failures_seen,
        }))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.disk
            .operate(self.actor, "create_directory", None, |live| {
                let (parent, name) = live.parent_and_name(path)?;
                let change = live.add(parent, &name, Node::Directory(live.directories.len()))?;
                live.directories.push(BTreeMap::new());
                Ok(((), Some(change)))
            })
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inode = self.look("open", |live| {
            let (parent, name) = live.parent_and_name(path)?;
            live.file(parent, &name)
        })?;
        Ok(self.handle(inode, false))
    }

    fn inspect(&self, path: &Path) -> io::Result<Option<Metadata>> {
        self.look("inspect", |live| {
            let (parent, name) = live.parent_and_name(path)?;
            Ok(live.inspect(parent, &name))
        })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.look("names", |live| {
            let directory = live.directory(directory)?;
            let mut names: Vec<_> = live.directories[directory].iter().collect();
            // Temporary names count on through all tests of a process: the order must not follow them.
            names.sort_by_key(|(_, node)| **node);
            Ok(names.iter().map(|(name, _)| name.to_os_string()).collect())
        })
    }

    fn random_number(&self) -> io::Result<u64> {
        // All actors have one pid, as in containers. That they draw the same few numbers is worse luck than
        // anybody has: names are used again as soon as they are free.
        let drawn = self.disk.0.next_handle.fetch_add(1, Ordering::Relaxed);
        Ok(drawn % DIFFERENT_NUMBERS)
    }
}

#[derive(Debug)]
struct OpenDirectory {
    process: Process,
    id: DirectoryId,
    /// How many failed fsyncs have been reported through this handle, or before it was opened.
    failures_seen: AtomicUsize,
}

impl OpenDirectory {
    fn change(
        &self,
        name: &'static str,
        change: impl FnOnce(&mut Contents) -> io::Result<Change>,
    ) -> io::Result<()> {
        let Process { disk, actor } = &self.process;
        disk.operate(*actor, name, None, |live| {
            change(live).map(|change| ((), Some(change)))
        })
    }
}

impl OpenDirectory {
    fn renamed(&self, live: &mut Contents, from: &OsStr, to: &OsStr) -> io::Result<Change> {
        let node = Node::File(live.file(self.id, from)?);
        let names = &mut live.directories[self.id];
        names.remove(from);
        names.insert(to.into(), node);
        Ok(Change::Rename {
            directory: self.id,
            from: from.into(),
            to: to.into(),
            node,
        })
    }
}

impl Directory for OpenDirectory {
    fn create(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>> {
        let Process { disk, actor } = &self.process;
        let inode = disk.operate(*actor, "create", None, |live| {
            let inode = live.files.len();
            let change = live.add(self.id, name, Node::File(inode))?;
            live.files.push(Stored {
                bytes: Arc::default(),
                mode,
                locked_by: None,
            });
            Ok((inode, Some(change)))
        })?;
        Ok(self.process.handle(inode, false))
    }

    fn open(&self, name: &OsStr) -> io::Result<Arc<dyn File>> {
        let inode = self
            .process
            .look("open_at", |live| live.file(self.id, name))?;
        Ok(self.process.handle(inode, false))
    }

    fn inspect(&self, name: &OsStr) -> io::Result<Option<Metadata>> {
        self.process
            .look("inspect_at", |live| Ok(live.inspect(self.id, name)))
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.change("rename", |live| self.renamed(live, from, to))
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.change("rename_new", |live| {
            if live.directories[self.id].contains_key(to) {
                return errno(EEXIST);
            }
            self.renamed(live, from, to)
        })
    }

    fn symlink(&self, _target: &Path, _name: &OsStr) -> io::Result<()> {
        errno(EPERM)
    }

    fn read_link(&self, _name: &OsStr) -> io::Result<PathBuf> {
        errno(EINVAL)
    }

    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let has_links = self.process.disk.world().has_links;
        self.change("link", |live| {
            if !has_links {
                return errno(EPERM);
            }
            let node = Node::File(live.file(self.id, from)?);
            live.add(self.id, to, node)
        })
    }

    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        self.change("unlink", |live| {
            live.file(self.id, name)?;
            live.directories[self.id].remove(name);
            Ok(Change::Remove {
                directory: self.id,
                name: name.into(),
            })
        })
    }

    fn free_nbytes(&self) -> io::Result<Option<u64>> {
        self.process
            .look("free_nbytes", |_live| Ok(Some(FREE_NBYTES)))
    }

    fn is_local(&self) -> io::Result<bool> {
        self.process.look("is_local", |_live| Ok(true))
    }

    fn lock_shared(&self) -> io::Result<()> {
        self.process.look("lock_shared", |_live| Ok(()))
    }

    fn unlock(&self) -> io::Result<()> {
        self.process.look("unlock", |_live| Ok(()))
    }

    fn sync(&self) -> io::Result<()> {
        let Process { disk, actor } = &self.process;
        let sync = |succeeded| Change::SyncDirectory {
            directory: self.id,
            succeeded,
        };
        let result = disk.operate_in(*actor, "sync_directory", Some(sync(false)), |world| {
            let seen = self.failures_seen.load(Ordering::Relaxed);
            match world.failed_syncs(self.id).get(seen) {
                Some(missed) => errno(*missed),
                None => Ok(((), Some(sync(true)))),
            }
        });
        if result.is_err() {
            self.failures_seen.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

#[derive(Debug)]
struct OpenFile {
    disk: SimulatedDisk,
    actor: usize,
    inode: Inode,
    handle: u64,
    is_direct: AtomicBool,
}

impl OpenFile {
    fn change(
        &self,
        name: &'static str,
        change: impl FnOnce(&mut Contents) -> io::Result<Option<Change>>,
    ) -> io::Result<()> {
        self.disk.operate(self.actor, name, None, |live| {
            change(live).map(|change| ((), change))
        })
    }

    fn require_aligned(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let block = usize::try_from(BLOCK_NBYTES).unwrap();
        let aligned = offset.is_multiple_of(BLOCK_NBYTES)
            && bytes.len().is_multiple_of(block)
            && bytes.as_ptr().addr().is_multiple_of(block);
        if self.is_direct.load(Ordering::Relaxed) && !aligned {
            return errno(EINVAL);
        }
        Ok(())
    }
}

impl File for OpenFile {
    fn metadata(&self) -> io::Result<Metadata> {
        self.disk.operate(self.actor, "metadata", None, |live| {
            Ok((live.metadata(self.inode), None))
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.require_aligned(buffer, offset)?;
        self.disk.operate(self.actor, "read_at", None, |live| {
            let bytes = &live.files[self.inode].bytes;
            let rest = &bytes[bytes.len().min(usize::try_from(offset).unwrap())..];
            let n = rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&rest[..n]);
            Ok((n, None))
        })
    }

    fn read_cached_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.require_aligned(bytes, offset)?;
        let offset = usize::try_from(offset).unwrap();
        self.change("write_at", |live| {
            let stored = Arc::make_mut(&mut live.files[self.inode].bytes);
            let end = offset + bytes.len();
            stored.resize(stored.len().max(end), 0);
            stored[offset..end].copy_from_slice(bytes);
            Ok(Some(Change::Write {
                inode: self.inode,
                offset,
                bytes: bytes.into(),
            }))
        })?;
        Ok(bytes.len())
    }

    fn allocate(&self, nbytes: u64) -> io::Result<()> {
        let nbytes = usize::try_from(nbytes).unwrap();
        self.change("allocate", |live| {
            let has = live.files[self.inode].bytes.len();
            Ok((nbytes > has).then(|| live.resize(self.inode, nbytes)))
        })
    }

    fn truncate(&self, nbytes: u64) -> io::Result<()> {
        let nbytes = usize::try_from(nbytes).unwrap();
        self.change("truncate", |live| Ok(Some(live.resize(self.inode, nbytes))))
    }

    fn sync(&self) -> io::Result<()> {
        let sync = |succeeded| Change::SyncFile {
            inode: self.inode,
            succeeded,
        };
        self.disk
            .operate(self.actor, "sync", Some(sync(false)), |_live| {
                Ok(((), Some(sync(true))))
            })
    }

    fn set_rights(&self, like: &Metadata, _access_list: Option<&[u8]>) -> io::Result<()> {
        self.change("set_rights", |live| {
            live.files[self.inode].mode = like.mode;
            Ok(None)
        })
    }

    fn lock(&self) -> io::Result<()> {
        self.change("lock", |live| {
            let holder = &mut live.files[self.inode].locked_by;
            if holder.is_some_and(|holder| holder != self.handle) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            *holder = Some(self.handle);
            Ok(None)
        })
    }

    fn set_direct(&self, direct: bool) -> io::Result<()> {
        self.change("set_direct", |_live| Ok(None))?;
        self.is_direct.store(direct, Ordering::Relaxed);
        Ok(())
    }

    fn open_direct(&self) -> io::Result<Arc<dyn File>> {
        self.change("open_direct", |_live| Ok(None))?;
        let process = Process {
            disk: self.disk.clone(),
            actor: self.actor,
        };
        Ok(process.handle(self.inode, true))
    }

    fn map(&self, _offset: u64, _nbytes: usize) -> io::Result<Mapping> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Drop for OpenFile {
    /// Closing a file gives up its lock, also when the process dies.
    fn drop(&mut self) {
        let holder = &mut self.disk.world().live.files[self.inode].locked_by;
        if *holder == Some(self.handle) {
            *holder = None;
        }
    }
}
