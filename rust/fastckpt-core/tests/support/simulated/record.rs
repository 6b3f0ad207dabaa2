//! What was done to a simulated disk, in order.

use std::ffi::OsStr;
use std::sync::Arc;

/// A file, whatever its names.
pub type Inode = usize;
/// A directory, whatever its path.
pub type DirectoryId = usize;
/// A name in a directory. Crash states are copies of directories: their names are shared.
pub type Name = Arc<OsStr>;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    File(Inode),
    Directory(DirectoryId),
}

/// What one operation changes on the disk.
#[derive(Debug, Clone)]
pub enum Change {
    /// A name that was not there: a file or directory created, or a second name of a file.
    Add {
        directory: DirectoryId,
        name: Name,
        node: Node,
    },
    Rename {
        directory: DirectoryId,
        from: Name,
        to: Name,
        node: Node,
    },
    Remove {
        directory: DirectoryId,
        name: Name,
    },
    Write {
        inode: Inode,
        offset: usize,
        bytes: Arc<[u8]>,
    },
    Resize {
        inode: Inode,
        nbytes: usize,
    },
    /// An fsync of a file.
    SyncFile {
        inode: Inode,
        succeeded: bool,
    },
    /// The same of a directory.
    SyncDirectory {
        directory: DirectoryId,
        succeeded: bool,
    },
}

/// What the record says.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An operation of an actor. What only looks changes nothing.
    Operation {
        actor: usize,
        name: &'static str,
        change: Option<Change>,
        errno: Option<i32>,
    },
    /// A save of an actor has returned without an error: from here on it is promised.
    Acknowledged { actor: usize, save_id: u64 },
}

impl Entry {
    /// Whether a power cut after it may leave, or has to leave, something else than one before it.
    pub fn matters(&self) -> bool {
        matches!(
            self,
            Self::Acknowledged { .. }
                | Self::Operation {
                    change: Some(_),
                    ..
                }
        )
    }

    /// Whether it changes what is in this file.
    pub fn writes(&self, file: Inode) -> bool {
        let Self::Operation {
            change: Some(change),
            ..
        } = self
        else {
            return false;
        };
        matches!(change, Change::Write { inode, .. } | Change::Resize { inode, .. } if *inode == file)
    }
}
