//! What a power cut may leave of a simulated disk; the rules stand at the top of the parent module.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use super::contents::{Contents, Stored};
use super::record::{Change, DirectoryId, Entry, Inode, Name, Node};
use super::{ROOT, Random};

/// What a disk writes whole or not at all.
const SECTOR_NBYTES: usize = 512;

/// How many of the states that a power cut may leave are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Where no more operations than these may be lost, all combinations of what becomes of them.
    pub exhaustive: usize,
    /// Else so many: none of them, all of them, and random choices.
    pub sampled: usize,
}

const NEW_FILE_MODE: u32 = 0o644;

/// Goes through a record, one entry after the other, and knows at each what is durable.
#[derive(Debug)]
pub struct Cursor<'a> {
    record: &'a [Entry],
    position: usize,
    files: Vec<FileOnDisk>,
    directories: Vec<DirectoryOnDisk>,
    /// The operations that may be lost, by their position in the record.
    open: BTreeMap<usize, Kind>,
}

#[derive(Debug, Clone, Default)]
struct FileOnDisk {
    durable: Arc<Vec<u8>>,
    pending: Vec<Pending<FileChange>>,
    nbytes: usize,
}

#[derive(Debug, Clone, Default)]
struct DirectoryOnDisk {
    durable: BTreeMap<Name, Node>,
    pending: Vec<Pending<NameChange>>,
}

/// A change that is not part of what is durable, because it, or one before it, may be lost.
#[derive(Debug, Clone)]
struct Pending<C> {
    position: usize,
    change: C,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    /// An fsync of the file has failed after it: no other one makes it durable.
    OpenForEver,
    Durable,
}

#[derive(Debug, Clone)]
enum FileChange {
    /// Bytes, and the size of the file after it.
    Write(usize, Arc<[u8]>, usize),
    Resize(usize),
}

#[derive(Debug, Clone)]
enum NameChange {
    Add(Name, Node),
    Rename(Name, Name, Node),
    Remove(Name),
}

/// What may become of an operation depends on its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Lost or kept.
    Whole,
    /// Lost, kept, or its old name stays.
    Rename,
    /// Lost, kept or torn.
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Lost,
    Kept,
    /// A rename whose old name stays; a write of which some sectors are lost, and perhaps its size.
    Partly(u64),
}

/// One thing that a power cut may leave.
#[derive(Debug)]
pub struct State<'a> {
    cursor: &'a Cursor<'a>,
    /// By position in the record.
    outcomes: Vec<Outcome>,
}

impl<'a> Cursor<'a> {
    /// Before the first entry.
    pub fn new(base: &Contents, record: &'a [Entry]) -> Self {
        let on_disk = |stored: &Stored| FileOnDisk {
            nbytes: stored.bytes.len(),
            durable: Arc::clone(&stored.bytes),
            pending: Vec::new(),
        };
        let directory = |names: &BTreeMap<Name, Node>| DirectoryOnDisk {
            durable: names.clone(),
            pending: Vec::new(),
        };
        Self {
            record,
            position: 0,
            files: base.files.iter().map(on_disk).collect(),
            directories: base.directories.iter().map(directory).collect(),
            open: BTreeMap::new(),
        }
    }

    /// How many entries lie behind.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many operations may be lost.
    pub fn open_operations(&self) -> usize {
        self.open.len()
    }

    /// Goes past the next entry and returns it.
    pub fn advance(&mut self) -> Option<&'a Entry> {
        let entry = self.record.get(self.position)?;
        if let Entry::Operation {
            change: Some(change),
            ..
        } = entry
        {
            self.apply(change);
        }
        self.position += 1;
        Some(entry)
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Add {
                directory,
                name,
                node,
            } => {
                match *node {
                    Node::File(inode) if inode == self.files.len() => {
                        self.files.push(FileOnDisk::default());
                    }
                    Node::Directory(_) => self.directories.push(DirectoryOnDisk::default()),
                    Node::File(_) => {}
                }
                self.open_name(*directory, NameChange::Add(Arc::clone(name), *node));
            }
            Change::Rename {
                directory,
                from,
                to,
                node,
            } => {
                let change = NameChange::Rename(Arc::clone(from), Arc::clone(to), *node);
                self.open_name(*directory, change);
            }
            Change::Remove { directory, name } => {
                self.open_name(*directory, NameChange::Remove(Arc::clone(name)));
            }
            Change::Write {
                inode,
                offset,
                bytes,
            } => {
                let nbytes = self.files[*inode].nbytes.max(offset + bytes.len());
                let change = FileChange::Write(*offset, Arc::clone(bytes), nbytes);
                self.open_write(*inode, change, nbytes);
            }
            Change::Resize { inode, nbytes } => {
                self.open_write(*inode, FileChange::Resize(*nbytes), *nbytes);
            }
            Change::SyncFile { inode, succeeded } => {
                let file = &mut self.files[*inode];
                let fate = if *succeeded {
                    Fate::Durable
                } else {
                    Fate::OpenForEver
                };
                settle(&mut file.pending, fate, &mut self.open);
                if file.pending.iter().all(is_durable) {
                    file.durable = file.bytes(|_durable| Outcome::Kept);
                    file.pending.clear();
                }
            }
            Change::SyncDirectory {
                directory,
                succeeded,
            } => {
                let directory = &mut self.directories[*directory];
                let fate = if *succeeded {
                    Fate::Durable
                } else {
                    Fate::Open
                };
                settle(&mut directory.pending, fate, &mut self.open);
                if directory.pending.iter().all(is_durable) {
                    directory.durable = directory.names(|_durable| Outcome::Kept);
                    directory.pending.clear();
                }
            }
        }
    }

    fn open_name(&mut self, directory: DirectoryId, change: NameChange) {
        let kind = match change {
            NameChange::Rename(..) => Kind::Rename,
            _ => Kind::Whole,
        };
        self.open.insert(self.position, kind);
        self.directories[directory]
            .pending
            .push(Pending::new(self.position, change));
    }

    fn open_write(&mut self, inode: Inode, change: FileChange, nbytes: usize) {
        let kind = match change {
            FileChange::Write(..) => Kind::Write,
            FileChange::Resize(_) => Kind::Whole,
        };
        self.open.insert(self.position, kind);
        let file = &mut self.files[inode];
        file.nbytes = nbytes;
        file.pending.push(Pending::new(self.position, change));
    }

    /// What a power cut may leave here.
    pub fn states(&'a self, effort: Effort, random: &mut Random) -> Vec<State<'a>> {
        let choices = if self.open.len() <= effort.exhaustive {
            self.every_choice(random)
        } else {
            let count = self.open.len();
            let mut choices = vec![vec![Outcome::Lost; count], vec![Outcome::Kept; count]];
            choices.extend((2..effort.sampled).map(|_| self.random_choice(random)));
            choices
        };
        choices
            .into_iter()
            .map(|choice| self.state(&choice))
            .collect()
    }

    fn every_choice(&self, random: &mut Random) -> Vec<Vec<Outcome>> {
        let mut choices = vec![Vec::new()];
        for kind in self.open.values() {
            let mut outcomes = vec![Outcome::Lost, Outcome::Kept];
            let partly = match kind {
                Kind::Whole => 0,
                Kind::Rename => 1,
                // Two of the 2^sectors ways to tear a write.
                Kind::Write => 2,
            };
            outcomes.extend((0..partly).map(|_| Outcome::Partly(random.draw())));
            let with = |choice: &Vec<Outcome>| {
                let choice = choice.clone();
                outcomes
                    .clone()
                    .into_iter()
                    .map(move |outcome| [&choice[..], &[outcome]].concat())
            };
            choices = choices.iter().flat_map(with).collect();
        }
        choices
    }

    fn random_choice(&self, random: &mut Random) -> Vec<Outcome> {
        let eighths_kept = *random.pick(&[1, 4, 7]);
        let mut outcome = |kind: &Kind| {
            if *kind != Kind::Whole && random.in_eighths(2) {
                Outcome::Partly(random.draw())
            } else if random.in_eighths(eighths_kept) {
                Outcome::Kept
            } else {
                Outcome::Lost
            }
        };
        self.open.values().map(&mut outcome).collect()
    }

    fn state(&'a self, choice: &[Outcome]) -> State<'a> {
        let mut outcomes = vec![Outcome::Kept; self.position];
        for (position, outcome) in self.open.keys().zip(choice) {
            outcomes[*position] = *outcome;
        }
        State {
            cursor: self,
            outcomes,
        }
    }
}

impl<C> Pending<C> {
    fn new(position: usize, change: C) -> Self {
        Self {
            position,
            change,
            fate: Fate::Open,
        }
    }
}

fn is_durable<C>(pending: &Pending<C>) -> bool {
    pending.fate == Fate::Durable
}

/// What an fsync does for the changes before it.
fn settle<C>(pending: &mut [Pending<C>], fate: Fate, open: &mut BTreeMap<usize, Kind>) {
    let open_ones = pending.iter_mut().filter(|one| one.fate == Fate::Open);
    for pending in open_ones {
        pending.fate = fate;
        if fate == Fate::Durable {
            open.remove(&pending.position);
        }
    }
}

impl FileOnDisk {
    fn bytes(&self, outcome_of: impl Fn(usize) -> Outcome) -> Arc<Vec<u8>> {
        if self.pending.is_empty() {
            return Arc::clone(&self.durable);
        }
        let mut bytes = self.durable.to_vec();
        let mut nbytes = bytes.len();
        for pending in &self.pending {
            let outcome = outcome_of(pending.position);
            match &pending.change {
                FileChange::Write(offset, written, nbytes_after) => {
                    if write(&mut bytes, self.durable.len(), *offset, written, outcome) {
                        nbytes = *nbytes_after;
                    }
                }
                FileChange::Resize(nbytes_after) if outcome == Outcome::Kept => {
                    nbytes = *nbytes_after;
                    let cut = bytes.len().min(nbytes);
                    bytes[cut..].fill(0);
                }
                FileChange::Resize(_) => {}
            }
        }
        bytes.resize(nbytes, 0);
        Arc::new(bytes)
    }
}

/// Writes what is kept of a write; tells whether the size that the file then had is kept too.
fn write(
    bytes: &mut Vec<u8>,
    durable_nbytes: usize,
    offset: usize,
    written: &[u8],
    outcome: Outcome,
) -> bool {
    let end = offset + written.len();
    bytes.resize(bytes.len().max(end), 0);
    match outcome {
        Outcome::Lost => false,
        Outcome::Kept => {
            bytes[offset..end].copy_from_slice(written);
            true
        }
        Outcome::Partly(seed) => {
            let mut random = Random::new(seed);
            let mut start = offset;
            while start < end {
                let sector_end = end.min((start / SECTOR_NBYTES + 1) * SECTOR_NBYTES);
                if random.in_eighths(4) {
                    bytes[start..sector_end]
                        .copy_from_slice(&written[start - offset..sector_end - offset]);
                } else if start >= durable_nbytes && random.in_eighths(4) {
                    // Nothing of this file was here before: what is, is somebody else's.
                    bytes[start..sector_end].fill_with(|| random.draw().to_le_bytes()[0]);
                }
                start = sector_end;
            }
            random.in_eighths(4)
        }
    }
}

impl DirectoryOnDisk {
    fn names(&self, outcome_of: impl Fn(usize) -> Outcome) -> BTreeMap<Name, Node> {
        let mut names = self.durable.clone();
        for pending in &self.pending {
            let outcome = outcome_of(pending.position);
            if outcome == Outcome::Lost {
                continue;
            }
            match &pending.change {
                NameChange::Add(name, node) => {
                    names.insert(Arc::clone(name), *node);
                }
                NameChange::Rename(from, to, node) => {
                    if outcome == Outcome::Kept {
                        names.remove(from);
                    }
                    names.insert(Arc::clone(to), *node);
                }
                NameChange::Remove(name) => {
                    names.remove(name);
                }
            }
        }
        names
    }
}

impl State<'_> {
    /// The names in a directory; `None` where the directory is lost.
    pub fn names(&self, path: &Path) -> Option<BTreeMap<Name, Node>> {
        let mut names = self.names_of(ROOT);
        for component in path.components() {
            if let Component::Normal(name) = component {
                let Some(Node::Directory(inner)) = names.get(name) else {
                    return None;
                };
                names = self.names_of(*inner);
            }
        }
        Some(names)
    }

    fn names_of(&self, directory: DirectoryId) -> BTreeMap<Name, Node> {
        self.cursor.directories[directory].names(|position| self.outcomes[position])
    }

    /// The bytes of a file.
    pub fn bytes(&self, inode: Inode) -> Arc<Vec<u8>> {
        self.cursor.files[inode].bytes(|position| self.outcomes[position])
    }

    /// The disk after the power is back.
    pub fn contents(&self) -> Contents {
        let stored = |inode| Stored {
            bytes: self.bytes(inode),
            mode: NEW_FILE_MODE,
            locked_by: None,
        };
        Contents {
            files: (0..self.cursor.files.len()).map(stored).collect(),
            directories: (0..self.cursor.directories.len())
                .map(|directory| self.names_of(directory))
                .collect(),
        }
    }
}
