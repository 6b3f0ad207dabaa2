//! Files and names, as processes see them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use fastckpt_core::files::{FileKind, Metadata};
use libc::{EEXIST, EISDIR, ENOENT, ENOTDIR};

use super::record::{Change, DirectoryId, Inode, Name, Node};
use super::{ROOT, errno};

/// The files and names of a disk.
#[derive(Debug, Clone)]
pub struct Contents {
    pub(super) files: Vec<Stored>,
    pub(super) directories: Vec<BTreeMap<Name, Node>>,
}

#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) mode: u32,
    /// The handle that holds the lock.
    pub(super) locked_by: Option<u64>,
}

impl Contents {
    pub(super) fn empty() -> Self {
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

    pub(super) fn directory(&self, path: &Path) -> io::Result<DirectoryId> {
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

    pub(super) fn parent_and_name(&self, path: &Path) -> io::Result<(DirectoryId, Name)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok((parent, name.into()))
    }

    pub(super) fn add(
        &mut self,
        directory: DirectoryId,
        name: &OsStr,
        node: Node,
    ) -> io::Result<Change> {
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

    pub(super) fn file(&self, directory: DirectoryId, name: &OsStr) -> io::Result<Inode> {
        match self.directories[directory].get(name) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Directory(_)) => errno(EISDIR),
            None => errno(ENOENT),
        }
    }

    pub(super) fn inspect(&self, directory: DirectoryId, name: &OsStr) -> Option<Metadata> {
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
                modified_ns: 0,
            }),
        }
    }

    pub(super) fn metadata(&self, inode: Inode) -> Metadata {
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
            modified_ns: 0,
        }
    }

    pub(super) fn resize(&mut self, inode: Inode, nbytes: usize) -> Change {
        Arc::make_mut(&mut self.files[inode].bytes).resize(nbytes, 0);
        Change::Resize { inode, nbytes }
    }
}
