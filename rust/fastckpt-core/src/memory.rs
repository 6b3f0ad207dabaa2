//! Memory of somebody else: the storages of a state dict, and the staging buffers of a device.
//!
//! Its owner keeps it alive for the whole job, but other threads may write to it meanwhile (a
//! training loop that goes on while the GIL is released). No reference to it is ever made: bytes
//! are copied out, or in, and only the copy is looked at.
//!
//! Whether an owner keeps that promise cannot be seen from here. [`Memory::is_mapped`] may see that it has
//! been broken, before a copy: it makes the window in which the copy ends the process shorter, not shut.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
use std::io;
use std::ptr;

/// Copied and checksummed at a time: small enough that the CRC finds the copy in the first-level
/// cache (32 KiB on the processors in use).
const PIECE_NBYTES: usize = 16 << 10;

/// What glibc's malloc asks the system for, and gives back, as a mapping of its own (`M_MMAP_THRESHOLD`).
const SMALLEST_MAPPED_NBYTES: usize = 128 << 10;

/// A piece of memory that belongs to somebody else.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    address: *mut u8,
    nbytes: usize,
}

// SAFETY: the constructor's contract keeps the memory valid for the job; accesses are plain copies.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Describes `nbytes` bytes at `address`.
    ///
    /// # Safety
    /// The memory must stay allocated until the last copy of this value is gone, readable, and
    /// writable too if [`Memory::part`] is used. (It may change meanwhile.)
    #[must_use]
    pub unsafe fn new(address: *mut u8, nbytes: usize) -> Self {
        Self { address, nbytes }
    }

    /// Describes bytes of this process that outlive the job.
    #[must_use]
    pub fn of_static(bytes: &'static [u8]) -> Self {
        Self {
            address: bytes.as_ptr().cast_mut(),
            nbytes: bytes.len(),
        }
    }

    /// Size in bytes.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.nbytes
    }

    /// Copies `into.len()` bytes from `offset` on, and returns the CRC-32 of the copy. One pass:
    /// the CRC is of the bytes that are in `into`, whatever becomes of the source.
    ///
    /// # Panics
    /// Where the range is not inside the memory.
    #[must_use]
    pub fn copy_checksummed(&self, offset: usize, into: &mut [u8]) -> u32 {
        let end = offset.checked_add(into.len());
        assert!(
            end.is_some_and(|end| end <= self.nbytes),
            "copy of {} bytes at {offset} of {}",
            into.len(),
            self.nbytes
        );
        let mut hasher = crc32fast::Hasher::new();
        for (piece_index, piece) in into.chunks_mut(PIECE_NBYTES).enumerate() {
            // SAFETY: the range is inside the memory (asserted above), which the constructor's
            // contract keeps valid; `piece` is ours, so the two do not overlap.
            unsafe {
                let source = self.address.add(offset + piece_index * PIECE_NBYTES);
                ptr::copy_nonoverlapping(source, piece.as_mut_ptr(), piece.len());
            }
            hasher.update(piece);
        }
        hasher.finalize()
    }

    /// Whether the range can be read. `false` says that its owner has freed it; `true` says nothing, since
    /// freed memory may belong to somebody else by now, or have been kept back.
    ///
    /// Always `true` for memory of less than 128 KiB, which C libraries do not give back to the system one by
    /// one: that spares most of the many small tensors of a model a system call each.
    ///
    /// # Panics
    /// Where the range is not inside the memory.
    #[must_use]
    pub fn is_mapped(&self, offset: usize, nbytes: usize) -> bool {
        let end = offset.checked_add(nbytes);
        assert!(
            end.is_some_and(|end| end <= self.nbytes),
            "look at {nbytes} bytes at {offset} of {}",
            self.nbytes
        );
        self.nbytes < SMALLEST_MAPPED_NBYTES || mapped(self.address.addr() + offset, nbytes)
    }

    /// A part of it for writing: a device's staging buffer while no copy out of it is under way.
    ///
    /// # Safety
    /// While the slice lives, nobody else may read or write these bytes.
    ///
    /// # Panics
    /// Where the range is not inside the memory.
    #[must_use]
    #[allow(
        clippy::mut_from_ref,
        reason = "parts are disjoint: that is the caller's promise"
    )]
    pub unsafe fn part(&self, offset: usize, nbytes: usize) -> &mut [u8] {
        let end = offset.checked_add(nbytes);
        assert!(
            end.is_some_and(|end| end <= self.nbytes),
            "part of {nbytes} bytes at {offset} of {}",
            self.nbytes
        );
        // SAFETY: inside the memory (asserted), valid by the constructor's contract, exclusive by
        // the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.address.add(offset), nbytes) }
    }
}

/// Whether there is memory at `nbytes` addresses from `address` on.
#[cfg(target_os = "linux")]
fn mapped(address: usize, nbytes: usize) -> bool {
    /// The smallest page of any system in use: with larger ones fewer bytes of the answer are used.
    const PAGE_NBYTES: usize = 4096;
    const PAGES: usize = 1024;
    // SAFETY: a plain call.
    let page_nbytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page_nbytes = usize::try_from(page_nbytes).unwrap_or(PAGE_NBYTES);
    let mut residency = [0_u8; PAGES];
    let mut at = address - address % page_nbytes;
    while at < address + nbytes {
        let part_nbytes = (address + nbytes - at).min(PAGES * PAGE_NBYTES);
        // SAFETY: the kernel reads no memory at these addresses; it writes a byte for each page, at most
        // `PAGES` of them.
        let answer = unsafe {
            libc::mincore(
                ptr::without_provenance_mut(at),
                part_nbytes,
                residency.as_mut_ptr(),
            )
        };
        // ENOMEM says that a page is not mapped. Any other error is a system that does not answer.
        if answer == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM) {
            return false;
        }
        at += part_nbytes;
    }
    true
}

#[cfg(not(target_os = "linux"))]
fn mapped(_address: usize, _nbytes: usize) -> bool {
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::mapping::Mapping;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_that_is_there_is_mapped() {
        let mapping = Mapping::anonymous(20 * MIB).unwrap();
        // SAFETY: the mapping lives longer.
        let memory = unsafe { Memory::new(mapping.address(), 20 * MIB) };
        for (offset, nbytes) in [(0, 20 * MIB), (1, 1), (5000, 9 * MIB), (20 * MIB - 1, 1)] {
            assert!(memory.is_mapped(offset, nbytes));
        }
        assert!(memory.is_mapped(20 * MIB, 0));
        let bytes: &'static [u8] = vec![1; 3 * MIB].leak();
        assert!(Memory::of_static(bytes).is_mapped(7, 3 * MIB - 7));
    }

    /// Addresses that nobody has memory at: what a test frees may be another thread's at once.
    #[test]
    #[cfg(target_os = "linux")]
    fn addresses_without_memory_are_not() {
        const LOWEST: usize = 4096;
        assert!(!mapped(LOWEST, 1));
        assert!(!mapped(LOWEST + 17, 20 * MIB));
        assert!(!mapped(usize::MAX / 2, 1));
        // From memory of ours to far behind all there is.
        let mapping = Mapping::anonymous(20 * MIB).unwrap();
        assert!(!mapped(mapping.address().addr(), 1 << 46));
        // SAFETY: only the addresses are used.
        let freed = unsafe { Memory::new(ptr::without_provenance_mut(LOWEST), 20 * MIB) };
        assert!(!freed.is_mapped(0, 1));
        assert!(!freed.is_mapped(5 * MIB, MIB));
    }
}
