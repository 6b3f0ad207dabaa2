//! A disk in memory that remembers every operation, and tells what a power cut could make of it.
//!
//! What survives is less than any file system in use leaves:
//!
//! - What was written to a file since its last fsync is lost, kept, or torn: each sector of 512 bytes
//!   of each write by itself. The size is that after any one of the operations since. What lies
//!   within the size and was lost reads as before, or, where nothing was, as zeros or as what
//!   somebody else had left on the disk.
//! - What was done to the names of a directory since its last fsync is lost or kept, each operation by
//!   itself, whatever came before or after it. What is kept is done in order, and sets names to
//!   files or to nothing, whether or not the operation that it built upon was kept: a file that was
//!   renamed has its new name even if its creation was lost. One rename is atomic: its new name
//!   stands for what it stood for before or for the renamed file. Its old name may stay behind.
//! - A directory is created in its parent: what is in it is lost with it.
//! - An fsync of a file makes its bytes and its size durable, and no name. An fsync of a directory
//!   makes names durable, and no bytes.
//! - An fsync that failed makes nothing durable, and what came before it can never be made durable
//!   by another one (the kernel has dropped it): it is kept or lost for ever. Everybody who had the
//!   directory open is told once, at their next fsync of it.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::missing_panics_doc,
    reason = "each test file uses a part of this"
)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use fastckpt_core::files::{BLOCK_NBYTES, Directory, File, FileKind, Files, Metadata};
use fastckpt_core::mapping::Mapping;

mod crash;
mod random;
mod record;
mod turns;

pub use crash::{Cursor, SECTOR_NBYTES, State};
pub use random::Random;
pub use record::{Change, DirectoryId, Entry, Inode, Name, Node};
pub use turns::Turns;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;

const ROOT: DirectoryId = 0;

/// What the file system says is free: more than any test writes.
const FREE_NBYTES: u64 = 1 << 40;

/// One disk; clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    turn_passed: Condvar,
    next_handle: AtomicU64,
}

#[derive(Debug)]
struct World {
    /// What was on the disk, durably, when the record began.
    base: Contents,
    /// What every process sees.
    live: Contents,
    record: Vec<Entry>,
    turns: Turns,
    fault: Option<Fault>,
    /// Operations of each actor so far.
    counts: BTreeMap<usize, usize>,
    /// Syncs of this kind do nothing, as though the writer had left them out.
    omitted: Option<Omitted>,
    has_links: bool,
    /// The failed fsyncs of each directory: everybody who has it open is told of each once.
    failed_syncs: BTreeMap<DirectoryId, Vec<i32>>,
}

/// The files and names of a disk.
#[derive(Debug, Clone)]
pub struct Contents {
    files: Vec<Stored>,
    directories: Vec<BTreeMap<Name, Node>>,
}

#[derive(Debug, Clone)]
struct Stored {
    bytes: Arc<Vec<u8>>,
    mode: u32,
    /// The handle that holds the lock.
    locked_by: Option<u64>,
}

/// An operation that fails.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub actor: usize,
    /// Which one of the actor's operations, from 0.
    pub operation: usize,
    pub errno: i32,
    pub reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// This one, without effect.
    Once,
    /// This one and all that follow: the disk is gone, or the process is.
    Onwards,
    /// This one, but it is carried out all the same.
    AfterTheFact,
}

/// What a careless writer leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Omitted {
    FileSyncs,
    DirectorySyncs,
}

impl SimulatedDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::with(Contents::empty())
    }

    /// A disk that has this on it, durably.
    pub fn with(contents: Contents) -> Self {
        let world = World {
            base: contents.clone(),
            live: contents,
            record: Vec::new(),
            turns: Turns::default(),
            fault: None,
            counts: BTreeMap::new(),
            omitted: None,
            has_links: true,
            failed_syncs: BTreeMap::new(),
        };
        Self(Arc::new(Shared {
            world: Mutex::new(world),
            turn_passed: Condvar::new(),
            next_handle: AtomicU64::new(0),
        }))
    }

    /// The disk as one process sees it.
    pub fn files(&self, actor: usize) -> Arc<dyn Files> {
        Arc::new(Process {
            disk: self.clone(),
            actor,
        })
    }

    /// From here on these actors run as one: each operation is that of the actor whose turn it is, and
    /// `seed` says whose is next. Each of them has to [`leave`](Self::leave).
    pub fn take_turns(&self, actors: usize, seed: u64) {
        self.world().turns = Turns::new(actors, seed);
    }

    /// Ends an actor's part, when it is its turn.
    pub fn leave(&self, actor: usize) {
        let mut world = self.wait_for_turn(actor);
        world.turns.leave(actor);
        self.0.turn_passed.notify_all();
    }

    pub fn inject(&self, fault: Fault) {
        self.world().fault = Some(fault);
    }

    pub fn omit(&self, omitted: Omitted) {
        self.world().omitted = Some(omitted);
    }

    /// From here on no file gets a second name.
    pub fn refuse_links(&self) {
        self.world().has_links = false;
    }

    /// How many operations an actor has done.
    pub fn count(&self, actor: usize) -> usize {
        self.world().counts.get(&actor).copied().unwrap_or_default()
    }

    /// Records that a save has been promised.
    pub fn acknowledge(&self, actor: usize, save_id: u64) {
        let mut world = self.wait_for_turn(actor);
        world.record.push(Entry::Acknowledged { actor, save_id });
        self.pass_turn(world);
    }

    /// When a file was changed last, as a position in the record: the time that `stat` gives.
    pub fn change_time(&self, actor: usize, path: &Path) -> io::Result<usize> {
        self.operate_in(actor, "stat", None, |world| {
            let (parent, name) = world.live.parent_and_name(path)?;
            let inode = world.live.file(parent, &name)?;
            let last = world.record.iter().rposition(|entry| entry.changes(inode));
            Ok((last.unwrap_or_default(), None))
        })
    }

    /// What was there when the record began, and all that was done since.
    pub fn recording(&self) -> (Contents, Vec<Entry>) {
        let world = self.world();
        (world.base.clone(), world.record.clone())
    }

    /// What every process sees now.
    pub fn contents(&self) -> Contents {
        let mut contents = self.world().live.clone();
        for file in &mut contents.files {
            file.locked_by = None;
        }
        contents
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.world.lock().unwrap()
    }

    fn wait_for_turn(&self, actor: usize) -> std::sync::MutexGuard<'_, World> {
        let mut world = self.world();
        while !world.turns.is_turn_of(actor) {
            world = self.0.turn_passed.wait(world).unwrap();
        }
        world
    }

    fn pass_turn(&self, mut world: std::sync::MutexGuard<'_, World>) {
        let has_changed = world.record.last().is_some_and(Entry::matters);
        if world.turns.pass(has_changed) {
            self.0.turn_passed.notify_all();
        }
    }

    fn operate<T>(
        &self,
        actor: usize,
        name: &'static str,
        failure: Option<Change>,
        act: impl FnOnce(&mut Contents) -> io::Result<(T, Option<Change>)>,
    ) -> io::Result<T> {
        self.operate_in(actor, name, failure, |world| act(&mut world.live))
    }

    /// Does one operation of an actor, unless it is to fail. `failure` is what failing changes.
    fn operate_in<T>(
        &self,
        actor: usize,
        name: &'static str,
        failure: Option<Change>,
        act: impl FnOnce(&mut World) -> io::Result<(T, Option<Change>)>,
    ) -> io::Result<T> {
        let mut world = self.wait_for_turn(actor);
        let count = world.counts.entry(actor).or_default();
        let number = *count;
        *count += 1;
        let fault = world.fault.filter(|fault| fault.hits(actor, number));
        let acts = fault.is_none_or(|fault| fault.reach == Reach::AfterTheFact);
        let acted = if acts {
            act(&mut world).map(|(value, change)| (Some(value), change))
        } else {
            Ok((None, failure))
        };
        let (result, change) = match (acted, fault) {
            (Ok((_, change)), Some(fault)) => {
                let error = io::Error::from_raw_os_error(fault.errno);
                (Err(error), change)
            }
            (Ok((value, change)), None) => (Ok(value.unwrap()), change),
            (Err(error), _) => (Err(error), None),
        };
        let change = change.filter(|change| !world.omits(change));
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
        world.count_failed_sync(change.as_ref(), errno);
        world.record.push(Entry::Operation {
            actor,
            name,
            change,
            errno,
        });
        self.pass_turn(world);
        result
    }
}

impl World {
    fn failed_syncs(&self, directory: DirectoryId) -> &[i32] {
        self.failed_syncs.get(&directory).map_or(&[], Vec::as_slice)
    }

    fn count_failed_sync(&mut self, change: Option<&Change>, errno: Option<i32>) {
        if let Some(Change::SyncDirectory {
            directory,
            succeeded: false,
        }) = change
        {
            self.failed_syncs
                .entry(*directory)
                .or_default()
                .extend(errno);
        }
    }

    fn omits(&self, change: &Change) -> bool {
        match change {
            Change::SyncFile { .. } => self.omitted == Some(Omitted::FileSyncs),
            Change::SyncDirectory { .. } => self.omitted == Some(Omitted::DirectorySyncs),
            _ => false,
        }
    }
}

impl Fault {
    fn hits(&self, actor: usize, number: usize) -> bool {
        let reached = match self.reach {
            Reach::Once | Reach::AfterTheFact => number == self.operation,
            Reach::Onwards => number >= self.operation,
        };
        actor == self.actor && reached
    }
}

fn errno<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

impl Contents {
    fn empty() -> Self {
        Self {
            files: Vec::new(),
            directories: vec![BTreeMap::new()],
        }
    }

    /// The names in a directory and the bytes of the files among them; `None` without a directory.
    pub fn files_in(&self, path: &Path) -> Option<BTreeMap<Name, Arc<Vec<u8>>>> {
        let directory = self.directory(path).ok()?;
        let bytes = |(name, node): (&Name, &Node)| match *node {
            Node::File(inode) => Some((Arc::clone(name), Arc::clone(&self.files[inode].bytes))),
            Node::Directory(_) => None,
        };
        Some(
            self.directories[directory]
                .iter()
                .filter_map(bytes)
                .collect(),
        )
    }

    fn directory(&self, path: &Path) -> io::Result<DirectoryId> {
        let mut directory = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            match self.directories[directory].get(name) {
                Some(Node::Directory(inner)) => directory = *inner,
                Some(Node::File(_)) => return errno(ENOTDIR),
                None => return errno(ENOENT),
            }
        }
        Ok(directory)
    }

    fn parent_and_name(&self, path: &Path) -> io::Result<(DirectoryId, Name)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok((parent, name.into()))
    }

    fn add(&mut self, directory: DirectoryId, name: &OsStr, node: Node) -> io::Result<Change> {
        let name: Name = name.into();
        if self.directories[directory].contains_key(&name) {
            return errno(EEXIST);
        }
        self.directories[directory].insert(Arc::clone(&name), node);
        Ok(Change::Add {
            directory,
            name,
            node,
        })
    }

    fn file(&self, directory: DirectoryId, name: &OsStr) -> io::Result<Inode> {
        match self.directories[directory].get(name) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Directory(_)) => errno(EISDIR),
            None => errno(ENOENT),
        }
    }

    fn inspect(&self, directory: DirectoryId, name: &OsStr) -> Option<Metadata> {
        match *self.directories[directory].get(name)? {
            Node::File(inode) => Some(self.metadata(inode)),
            Node::Directory(_) => Some(Metadata {
                kind: FileKind::Directory,
                nbytes: 0,
                mode: 0o755,
                uid: 0,
                gid: 0,
                links: 1,
                device: 1,
                inode: 0,
            }),
        }
    }

    fn metadata(&self, inode: Inode) -> Metadata {
        let stored = &self.files[inode];
        let names = self.directories.iter().flat_map(BTreeMap::values);
        Metadata {
            kind: FileKind::Regular,
            nbytes: stored.bytes.len() as u64,
            mode: stored.mode,
            uid: 0,
            gid: 0,
            links: names.filter(|node| **node == Node::File(inode)).count() as u64,
            device: 1,
            inode: inode as u64 + 1,
        }
    }

    fn resize(&mut self, inode: Inode, nbytes: usize) -> Change {
        Arc::make_mut(&mut self.files[inode].bytes).resize(nbytes, 0);
        Change::Resize { inode, nbytes }
    }
}

/// A process's way in.
#[derive(Debug)]
struct Process {
    disk: SimulatedDisk,
    actor: usize,
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

    fn read_link(&self, _path: &Path) -> io::Result<PathBuf> {
        errno(EINVAL)
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

impl Directory for OpenDirectory {
    fn create(&self, name: &OsStr, mode: u32, direct: bool) -> io::Result<Arc<dyn File>> {
        let Process { disk, actor } = &self.process;
        let operation = if direct { "create_direct" } else { "create" };
        let inode = disk.operate(*actor, operation, None, |live| {
            let inode = live.files.len();
            let change = live.add(self.id, name, Node::File(inode))?;
            live.files.push(Stored {
                bytes: Arc::default(),
                mode,
                locked_by: None,
            });
            Ok((inode, Some(change)))
        })?;
        Ok(self.process.handle(inode, direct))
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
        self.change("rename", |live| {
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
        })
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

    fn set_mode_and_owner(&self, like: &Metadata) -> io::Result<()> {
        self.change("set_mode_and_owner", |live| {
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
