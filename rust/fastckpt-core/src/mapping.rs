//! Memory of our own: anonymous or a private view of a file, given back when it is dropped.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::slice;

/// Above this size, memory is asked for in huge pages: filling it takes a page fault per 2 MiB
/// instead of one per 4 KiB (measured: 5 instead of 3 GB/s).
const HUGE_PAGE_NBYTES: usize = 2 << 20;

/// The smallest page of any system in use; `madvise` takes addresses that are multiples of the
/// system's own, and a larger one makes it refuse (and the pages come in when they are touched).
#[cfg(target_os = "linux")]
const PAGE_NBYTES: usize = 4096;

/// A private, writable piece of memory that starts on a page boundary.
///
/// It may be written by several threads at once, each in its own part: see [`Mapping::part`].
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    nbytes: usize,
}

// SAFETY: the memory belongs to this value alone and is not bound to a thread. Shared references
// hand out reads (`as_slice`) and, through an unsafe method whose callers promise to keep apart,
// writes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `nbytes` zero bytes.
    pub fn anonymous(nbytes: usize) -> io::Result<Self> {
        let mapping = Self::map(nbytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        #[cfg(target_os = "linux")]
        if nbytes >= HUGE_PAGE_NBYTES {
            // SAFETY: the range is the mapping just made. It is advice: a refusal costs speed only.
            unsafe { libc::madvise(mapping.address.as_ptr().cast(), nbytes, libc::MADV_HUGEPAGE) };
        }
        Ok(mapping)
    }

    /// A copy-on-write view of `nbytes` bytes of `file` from `offset` (a multiple of the page
    /// size) on. Reading a page past the end of the file, should another process cut it, kills
    /// the process (SIGBUS): that is why mapping is never the default.
    pub(crate) fn private_file(file: &fs::File, offset: u64, nbytes: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // Without MAP_NORESERVE the system counts every page as one that may be written to, and
        // refuses to map a file that is larger than memory.
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        Self::map(nbytes, flags, file.as_raw_fd(), offset)
    }

    fn map(
        nbytes: usize,
        flags: libc::c_int,
        fd: libc::c_int,
        offset: libc::off_t,
    ) -> io::Result<Self> {
        if nbytes == 0 {
            return Ok(Self {
                address: NonNull::dangling(),
                nbytes,
            });
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                nbytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned NULL"))?;
        Ok(Self { address, nbytes })
    }

    /// Size in bytes.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.nbytes
    }

    /// Where it begins. Valid as long as the mapping lives.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// All of it.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is readable over its whole length while `self` lives; whoever writes
        // through `part` promises that nobody reads there meanwhile.
        unsafe { slice::from_raw_parts(self.address.as_ptr(), self.nbytes) }
    }

    /// All of it, for writing.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is writable over its whole length, and `&mut self` says that nobody
        // else has a reference to it.
        unsafe { slice::from_raw_parts_mut(self.address.as_ptr(), self.nbytes) }
    }

    /// A part of it for writing, while other threads have other parts.
    ///
    /// # Safety
    /// While the slice lives, nobody else may read or write these bytes through this mapping.
    ///
    /// # Panics
    /// Where the range is not inside the mapping.
    #[must_use]
    #[allow(
        clippy::mut_from_ref,
        reason = "parts are disjoint: that is the caller's promise"
    )]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [u8] {
        assert!(
            range.start <= range.end && range.end <= self.nbytes,
            "part {range:?} of a mapping of {}",
            self.nbytes
        );
        // SAFETY: inside the mapping (asserted); exclusive by the caller's promise.
        unsafe { slice::from_raw_parts_mut(self.address.as_ptr().add(range.start), range.len()) }
    }

    /// Brings the pages of a part in, so that touching them takes no page fault: a page that
    /// cannot be read (a bad disk, a file that has been cut) is an error here and not a signal.
    ///
    /// Where the system has no such call, the pages come in when they are touched.
    ///
    /// # Panics
    /// Where the range is not inside the mapping.
    #[cfg(target_os = "linux")]
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        assert!(
            range.start <= range.end && range.end <= self.nbytes,
            "part {range:?} of a mapping of {}",
            self.nbytes
        );
        let start = range.start - range.start % PAGE_NBYTES;
        // SAFETY: inside the mapping (asserted), rounded down to the page that it begins on. The
        // call only reads.
        let result = unsafe {
            let address = self.address.as_ptr().add(start).cast();
            libc::madvise(address, range.end - start, libc::MADV_POPULATE_READ)
        };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            // Linux before 5.14.
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            error => Err(error),
        }
    }

    /// Brings nothing in: the pages come when they are touched.
    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unnecessary_wraps, reason = "elsewhere it fails")]
    pub fn populate(&self, _range: Range<usize>) -> io::Result<()> {
        Ok(())
    }

    /// Says that it will soon be read from beginning to end.
    pub fn advise_sequential(&self) {
        if self.nbytes > 0 {
            // SAFETY: the range is this mapping. It is advice: a refusal costs speed only.
            unsafe {
                libc::madvise(
                    self.address.as_ptr().cast(),
                    self.nbytes,
                    libc::MADV_SEQUENTIAL,
                )
            };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.nbytes > 0 {
            // SAFETY: the range was mapped by `map` and is given back once, here.
            unsafe { libc::munmap(self.address.as_ptr().cast(), self.nbytes) };
        }
    }
}
