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
//! - An fsync that failed makes nothing durable. What was written to the file before can never be made
//!   durable by another one (the kernel has dropped it): it is kept or lost for ever. Names can, since
//!   they go through a journal: a file system that cannot write that takes no more changes at all.
//!   Everybody who had the directory open is told once, at their next fsync of it.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::missing_panics_doc,
    reason = "each test file uses a part of this"
)]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};

use fastckpt_core::files::Files;

mod contents;
mod crash;
mod handles;
mod random;
mod record;
mod turns;

pub use contents::Contents;
pub use crash::{Cursor, Effort, State};
pub use random::Random;
pub use record::{Change, DirectoryId, Entry, Inode, Name, Node};
pub use turns::{Stretch, Turns};

use handles::Process;

const ROOT: DirectoryId = 0;

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

    /// From here on several actors run as one: each operation is that of the actor whose turn it is.
    /// Each of them has to [`leave`](Self::leave).
    pub fn take_turns(&self, turns: Turns) {
        self.world().turns = turns;
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

    /// From here on nothing fails any more.
    pub fn heal(&self) {
        self.world().fault = None;
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

    /// When a file was written last, as a position in the record: `stat` gives it as `mtime`.
    pub fn write_time(&self, actor: usize, path: &Path) -> io::Result<usize> {
        self.operate_in(actor, "stat", None, |world| {
            let (parent, name) = world.live.parent_and_name(path)?;
            let inode = world.live.file(parent, &name)?;
            let last = world.record.iter().rposition(|entry| entry.writes(inode));
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
