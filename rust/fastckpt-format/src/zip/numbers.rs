//! Numbers of 16, 32 and 64 bits, off the front of a slice and onto the end of a buffer.

use super::{SENTINEL16, SENTINEL32};

/// The low half of a 64-bit value, or the sentinel.
pub(crate) fn clamp32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(SENTINEL32)
}

/// A count, or the sentinel.
pub(crate) fn clamp16(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(SENTINEL16)
}

/// Reads numbers off the front of a slice.
#[derive(Clone)]
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn bytes(&mut self, nbytes: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(nbytes)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Appends numbers to a buffer.
pub(crate) trait PutLe {
    fn put16(&mut self, value: u16);
    fn put32(&mut self, value: u32);
    fn put64(&mut self, value: u64);
}

impl PutLe for Vec<u8> {
    fn put16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
}
