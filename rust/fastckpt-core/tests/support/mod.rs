//! Files whose operations are counted and made to fail, and a scratch directory.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test file uses a part of this"
)]

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use fastckpt_core::files::{Directory, File, Files, Metadata, RealFiles};
use fastckpt_core::mapping::Mapping;

/// A directory under the system's temporary one, removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "fastckpt-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names in the directory, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a file system says of its free space.
#[derive(Debug, Clone, Copy, Default)]
pub enum Free {
    #[default]
    Real,
    Unknown,
    Nbytes(u64),
}

/// Is told the name of the operation and that of the file.
pub type Meanwhile = Box<dyn Fn(&'static str, &OsStr) + Send + Sync>;

/// What happens to the operations: each is logged, and the chosen one fails.
#[derive(Default)]
pub struct Script {
    /// Number of the operation to fail (from 0), and with which errno.
    pub fail: Option<(usize, i32)>,
    /// Fail every operation of this name with this errno.
    pub fail_named: Option<(&'static str, i32)>,
    /// Writes take at most this many bytes, and every other call is interrupted first.
    pub short_writes: Option<usize>,
    /// What the directories say is free.
    pub free: Free,
    /// What this system lacks: these operations are answered by `Unsupported`.
    pub missing: &'static [&'static str],
    /// The random numbers that are drawn, in turns; real ones without any.
    pub numbers: &'static [u64],
    /// What others do right after a file was created, or opened by its name in a directory.
    pub meanwhile: Option<Meanwhile>,
    /// How long an fsync of a file takes.
    pub slow_sync: std::time::Duration,
    pub log: Mutex<Vec<&'static str>>,
    pub interrupted: AtomicUsize,
    pub drawn: AtomicUsize,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").finish_non_exhaustive()
    }
}

impl Script {
    pub fn step(&self, name: &'static str) -> io::Result<()> {
        let mut log = self.log.lock().unwrap();
        let number = log.len();
        log.push(name);
        if self.missing.contains(&name) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        match (self.fail, self.fail_named) {
            (Some((n, errno)), _) if n == number => Err(io::Error::from_raw_os_error(errno)),
            (_, Some((failing, errno))) if failing == name => {
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    fn meanwhile(&self, operation: &'static str, name: &OsStr) {
        if let Some(meanwhile) = &self.meanwhile {
            meanwhile(operation, name);
        }
    }

    pub fn count(&self, name: &str) -> usize {
        self.log
            .lock()
            .unwrap()
            .iter()
            .filter(|logged| **logged == name)
            .count()
    }
}

#[derive(Debug, Clone)]
pub struct ScriptedFiles(pub Arc<Script>);

#[derive(Debug)]
struct ScriptedDirectory(Arc<dyn Directory>, Arc<Script>);

#[derive(Debug)]
struct ScriptedFile(Arc<dyn File>, Arc<Script>);

impl Files for ScriptedFiles {
    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn Directory>> {
        self.0.step("open_directory")?;
        Ok(Arc::new(ScriptedDirectory(
            RealFiles.open_directory(path)?,
            Arc::clone(&self.0),
        )))
    }
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.0.step("create_directory")?;
        RealFiles.create_directory(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.0.step("open")?;
        Ok(Arc::new(ScriptedFile(
            RealFiles.open(path)?,
            Arc::clone(&self.0),
        )))
    }
    fn inspect(&self, path: &Path) -> io::Result<Option<Metadata>> {
        self.0.step("inspect")?;
        RealFiles.inspect(path)
    }
    fn access_list(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.0.step("access_list")?;
        RealFiles.access_list(path)
    }
    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.0.step("names")?;
        RealFiles.names(directory)
    }
    fn random_number(&self) -> io::Result<u64> {
        self.0.step("random_number")?;
        let numbers = self.0.numbers;
        if numbers.is_empty() {
            return RealFiles.random_number();
        }
        Ok(numbers[self.0.drawn.fetch_add(1, Ordering::Relaxed) % numbers.len()])
    }
}

impl Directory for ScriptedDirectory {
    fn create(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>> {
        self.1.step("create")?;
        let file = self.0.create(name, mode)?;
        self.1.meanwhile("create", name);
        Ok(Arc::new(ScriptedFile(file, Arc::clone(&self.1))))
    }
    fn open(&self, name: &OsStr) -> io::Result<Arc<dyn File>> {
        self.1.step("open_at")?;
        let file = self.0.open(name)?;
        self.1.meanwhile("open_at", name);
        Ok(Arc::new(ScriptedFile(file, Arc::clone(&self.1))))
    }
    fn inspect(&self, name: &OsStr) -> io::Result<Option<Metadata>> {
        self.1.step("inspect")?;
        self.0.inspect(name)
    }
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.1.step("rename")?;
        self.0.rename(from, to)
    }
    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.1.step("rename_new")?;
        self.0.rename_new(from, to)
    }
    fn symlink(&self, target: &Path, name: &OsStr) -> io::Result<()> {
        self.1.step("symlink")?;
        self.0.symlink(target, name)
    }
    fn read_link(&self, name: &OsStr) -> io::Result<PathBuf> {
        self.1.step("read_link")?;
        self.0.read_link(name)
    }
    fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.1.step("link")?;
        self.0.link(from, to)
    }
    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        self.1.step("unlink")?;
        self.0.unlink(name)
    }
    fn free_nbytes(&self) -> io::Result<Option<u64>> {
        self.1.step("free_nbytes")?;
        match self.1.free {
            Free::Real => self.0.free_nbytes(),
            Free::Unknown => Ok(None),
            Free::Nbytes(nbytes) => Ok(Some(nbytes)),
        }
    }
    fn is_local(&self) -> io::Result<bool> {
        self.1.step("is_local")?;
        self.0.is_local()
    }
    fn protects(&self, file: &Metadata) -> io::Result<bool> {
        self.1.step("protects")?;
        self.0.protects(file)
    }
    fn lock_shared(&self) -> io::Result<()> {
        self.1.step("lock_shared")?;
        self.0.lock_shared()
    }
    fn unlock(&self) -> io::Result<()> {
        self.1.step("unlock")?;
        self.0.unlock()
    }
    fn sync(&self) -> io::Result<()> {
        self.1.step("sync_directory")?;
        self.0.sync()
    }
}

impl File for ScriptedFile {
    fn metadata(&self) -> io::Result<Metadata> {
        self.1.step("metadata")?;
        self.0.metadata()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.step("read_at")?;
        self.0.read_at(buffer, offset)
    }
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.step("read_cached_at")?;
        self.0.read_cached_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.1.step("write_at")?;
        let Some(most) = self.1.short_writes else {
            return self.0.write_at(bytes, offset);
        };
        if self
            .1
            .interrupted
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(2)
        {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.0.write_at(&bytes[..bytes.len().min(most)], offset)
    }
    fn allocate(&self, nbytes: u64) -> io::Result<()> {
        self.1.step("allocate")?;
        self.0.allocate(nbytes)
    }
    fn truncate(&self, nbytes: u64) -> io::Result<()> {
        self.1.step("truncate")?;
        self.0.truncate(nbytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.step("sync")?;
        std::thread::sleep(self.1.slow_sync);
        self.0.sync()
    }
    fn set_rights(&self, like: &Metadata, access_list: Option<&[u8]>) -> io::Result<()> {
        self.1.step("set_rights")?;
        self.0.set_rights(like, access_list)
    }
    fn access_list(&self) -> io::Result<Option<Vec<u8>>> {
        self.1.step("file_access_list")?;
        self.0.access_list()
    }
    fn modified(&self) -> io::Result<Option<SystemTime>> {
        self.1.step("modified")?;
        self.0.modified()
    }
    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.1.step("set_modified")?;
        self.0.set_modified(time)
    }
    fn lock(&self) -> io::Result<()> {
        self.1.step("lock")?;
        self.0.lock()
    }
    fn set_direct(&self, direct: bool) -> io::Result<()> {
        self.1.step("set_direct")?;
        self.0.set_direct(direct)
    }
    fn open_direct(&self) -> io::Result<Arc<dyn File>> {
        self.1.step("open_direct")?;
        Ok(Arc::new(Self(self.0.open_direct()?, Arc::clone(&self.1))))
    }
    fn map(&self, offset: u64, nbytes: usize) -> io::Result<Mapping> {
        self.1.step("map")?;
        self.0.map(offset, nbytes)
    }
}
