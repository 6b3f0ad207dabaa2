//! Memory of somebody else: the storages of a state dict, and the staging buffers of a device.
//!
//! Its owner keeps it alive for the whole job, but other threads may write to it meanwhile (a
//! training loop that goes on while the GIL is released). No reference to it is ever made: bytes
//! are copied out, or in, and only the copy is looked at.
#![allow(unsafe_code)]

use std::ptr;

/// Copied and checksummed at a time: small enough that the CRC finds the copy in the first-level
/// cache (32 KiB on the processors in use).
const PIECE_NBYTES: usize = 16 << 10;

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
