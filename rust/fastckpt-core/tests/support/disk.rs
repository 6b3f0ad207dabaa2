//! A file in memory that behaves as disks and file systems do on their worse days.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test file uses a part of this"
)]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastckpt_core::files::{BLOCK_NBYTES, Directory, File, FileKind, Files, Metadata};
use fastckpt_core::mapping::Mapping;
use libc::{EINVAL, EIO};

/// How reads behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    pub cache: Cache,
    pub direct: Direct,
    /// No read gives more than this.
    pub most_per_read: usize,
    /// Every n-th read is interrupted by a signal first.
    pub interrupt_every: usize,
    /// The read of this number (from 0) fails with EIO; it counts reads of all kinds.
    pub fail_read: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// The page cache has every byte.
    Full,
    /// It has every other stretch of this many bytes.
    Striped(u64),
    Empty,
    /// The file system cannot tell.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    Works,
    RefusedAtOpen,
    RefusedAtRead,
    /// Refused from this number of direct reads on.
    RefusedAfter(usize),
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            cache: Cache::Full,
            direct: Direct::Works,
            most_per_read: usize::MAX,
            interrupt_every: usize::MAX,
            fail_read: None,
        }
    }
}

/// The bytes, how they are read, and how often.
#[derive(Debug, Clone)]
pub struct Disk {
    shared: Arc<Shared>,
    is_direct: bool,
}

#[derive(Debug)]
struct Shared {
    bytes: Vec<u8>,
    /// What fstat says; reads end with the bytes.
    nbytes: u64,
    behaviour: Behaviour,
    reads: AtomicUsize,
    direct_reads: AtomicUsize,
}

impl Disk {
    pub fn new(bytes: Vec<u8>, behaviour: Behaviour) -> Self {
        let nbytes = bytes.len() as u64;
        Self::cut(bytes, nbytes, behaviour)
    }

    /// A file that had `nbytes` bytes when it was opened and has only these by now.
    pub fn cut(bytes: Vec<u8>, nbytes: u64, behaviour: Behaviour) -> Self {
        let (reads, direct_reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Shared {
            bytes,
            nbytes,
            behaviour,
            reads,
            direct_reads,
        };
        Self {
            shared: Arc::new(shared),
            is_direct: false,
        }
    }

    pub fn file(&self) -> Arc<dyn File> {
        Arc::new(self.clone())
    }

    pub fn reads(&self) -> usize {
        self.shared.reads.load(Ordering::Relaxed)
    }

    pub fn direct_reads(&self) -> usize {
        self.shared.direct_reads.load(Ordering::Relaxed)
    }

    fn step(&self) -> io::Result<()> {
        let behaviour = &self.shared.behaviour;
        let number = self.shared.reads.fetch_add(1, Ordering::Relaxed);
        if behaviour.fail_read == Some(number) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if number % behaviour.interrupt_every == behaviour.interrupt_every - 1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }

    fn copy(&self, buffer: &mut [u8], offset: u64, most: usize) -> usize {
        let bytes = &self.shared.bytes;
        let rest = &bytes[bytes.len().min(usize::try_from(offset).unwrap())..];
        let n = rest.len().min(buffer.len()).min(most);
        buffer[..n].copy_from_slice(&rest[..n]);
        n
    }

    fn read_direct_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let number = self.shared.direct_reads.fetch_add(1, Ordering::Relaxed);
        let refused = match self.shared.behaviour.direct {
            Direct::Works | Direct::RefusedAtOpen => false,
            Direct::RefusedAtRead => true,
            Direct::RefusedAfter(reads) => number >= reads,
        };
        let block = usize::try_from(BLOCK_NBYTES).unwrap();
        let aligned = offset.is_multiple_of(BLOCK_NBYTES)
            && buffer.len().is_multiple_of(block)
            && buffer.as_ptr().addr().is_multiple_of(block);
        if refused || !aligned {
            return Err(io::Error::from_raw_os_error(EINVAL));
        }
        Ok(self.copy(buffer, offset, self.shared.behaviour.most_per_read))
    }
}

impl File for Disk {
    fn metadata(&self) -> io::Result<Metadata> {
        let nbytes = self.shared.nbytes;
        Ok(Metadata {
            kind: FileKind::Regular,
            nbytes,
            mode: 0o644,
            uid: 0,
            gid: 0,
            links: 1,
            device: 0,
            inode: 0,
            modified_ns: 0,
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.step()?;
        if self.is_direct {
            return self.read_direct_at(buffer, offset);
        }
        Ok(self.copy(buffer, offset, self.shared.behaviour.most_per_read))
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.step()?;
        let most = self.shared.behaviour.most_per_read;
        match self.shared.behaviour.cache {
            Cache::Full => Ok(self.copy(buffer, offset, most)),
            Cache::Striped(stripe) if (offset / stripe).is_multiple_of(2) => {
                let left = usize::try_from(stripe - offset % stripe).unwrap();
                Ok(self.copy(buffer, offset, most.min(left)))
            }
            Cache::Striped(_) | Cache::Empty => Err(io::ErrorKind::WouldBlock.into()),
            Cache::Unknown => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn open_direct(&self) -> io::Result<Arc<dyn File>> {
        if self.shared.behaviour.direct == Direct::RefusedAtOpen {
            return Err(io::Error::from_raw_os_error(EINVAL));
        }
        Ok(Arc::new(Self {
            shared: Arc::clone(&self.shared),
            is_direct: true,
        }))
    }

    fn map(&self, _offset: u64, _nbytes: usize) -> io::Result<Mapping> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        unimplemented!("reading only")
    }

    fn allocate(&self, _nbytes: u64) -> io::Result<()> {
        unimplemented!("reading only")
    }

    fn truncate(&self, _nbytes: u64) -> io::Result<()> {
        unimplemented!("reading only")
    }

    fn sync(&self) -> io::Result<()> {
        unimplemented!("reading only")
    }

    fn set_rights(&self, _like: &Metadata, _access_list: Option<&[u8]>) -> io::Result<()> {
        unimplemented!("reading only")
    }

    fn lock(&self) -> io::Result<()> {
        unimplemented!("reading only")
    }

    fn set_direct(&self, _direct: bool) -> io::Result<()> {
        unimplemented!("reading only")
    }
}

/// The one file of its system, whatever the path.
impl Files for Disk {
    fn open(&self, _path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.file())
    }

    fn open_directory(&self, _path: &Path) -> io::Result<Arc<dyn Directory>> {
        unimplemented!("reading only")
    }

    fn create_directory(&self, _path: &Path) -> io::Result<()> {
        unimplemented!("reading only")
    }

    fn inspect(&self, _path: &Path) -> io::Result<Option<Metadata>> {
        unimplemented!("reading only")
    }

    fn names(&self, _directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        unimplemented!("reading only")
    }

    fn random_number(&self) -> io::Result<u64> {
        unimplemented!("reading only")
    }
}
