//! An archive that lies in memory, as a file.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::files::{File, FileKind, Metadata};
use crate::mapping::Mapping;
use crate::source::in_memory;

/// A file whose bytes are in memory already.
pub(super) struct MemoryFile(pub(super) Arc<dyn AsRef<[u8]> + Send + Sync>);

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryFile({} bytes)", (*self.0).as_ref().len())
    }
}

impl File for MemoryFile {
    fn metadata(&self) -> io::Result<Metadata> {
        let nbytes = (*self.0).as_ref().len() as u64;
        Ok(Metadata {
            kind: FileKind::Regular,
            nbytes,
            mode: 0o400,
            uid: 0,
            gid: 0,
            links: 0,
            device: 0,
            inode: 0,
            modified_ns: 0,
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = (*self.0).as_ref();
        let rest = &bytes[in_memory(offset).min(bytes.len())..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buffer, offset)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocate(&self, _nbytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn truncate(&self, _nbytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_rights(&self, _like: &Metadata, _access_list: Option<&[u8]>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn lock(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_direct(&self, _direct: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open_direct(&self) -> io::Result<Arc<dyn File>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn map(&self, _offset: u64, _nbytes: usize) -> io::Result<Mapping> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
