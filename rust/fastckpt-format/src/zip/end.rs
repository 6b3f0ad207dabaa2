//! The three records at the end of a file, from which a reader starts.

use super::{Cursor, END_SIGNATURE, END64_SIGNATURE, LOCATOR_SIGNATURE, PutLe};

/// The zip64 end of central directory record, 4.3.14, without its extensible data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End64 {
    pub(crate) record_nbytes: u64,
    pub(crate) made_by: u16,
    pub(crate) version_needed: u16,
    pub(crate) disk: u32,
    pub(crate) directory_disk: u32,
    pub(crate) disk_entries: u64,
    pub(crate) entries: u64,
    pub(crate) directory_nbytes: u64,
    pub(crate) directory_offset: u64,
}

impl End64 {
    /// `None` without the signature or with too few bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes);
        if at.array()? != END64_SIGNATURE {
            return None;
        }
        Some(Self {
            record_nbytes: at.u64()?,
            made_by: at.u16()?,
            version_needed: at.u16()?,
            disk: at.u32()?,
            directory_disk: at.u32()?,
            disk_entries: at.u64()?,
            entries: at.u64()?,
            directory_nbytes: at.u64()?,
            directory_offset: at.u64()?,
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&END64_SIGNATURE);
        out.put64(self.record_nbytes);
        out.put16(self.made_by);
        out.put16(self.version_needed);
        out.put32(self.disk);
        out.put32(self.directory_disk);
        out.put64(self.disk_entries);
        out.put64(self.entries);
        out.put64(self.directory_nbytes);
        out.put64(self.directory_offset);
    }
}

/// The zip64 end of central directory locator, 4.3.15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Locator {
    pub(crate) disk: u32,
    pub(crate) end64_offset: u64,
    pub(crate) disks: u32,
}

impl Locator {
    /// `None` without the signature or with too few bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes);
        if at.array()? != LOCATOR_SIGNATURE {
            return None;
        }
        Some(Self {
            disk: at.u32()?,
            end64_offset: at.u64()?,
            disks: at.u32()?,
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&LOCATOR_SIGNATURE);
        out.put32(self.disk);
        out.put64(self.end64_offset);
        out.put32(self.disks);
    }
}

/// The end of central directory record, 4.3.16, without its comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) disk: u16,
    pub(crate) directory_disk: u16,
    pub(crate) disk_entries: u16,
    pub(crate) entries: u16,
    pub(crate) directory_nbytes: u32,
    pub(crate) directory_offset: u32,
    pub(crate) comment_nbytes: u16,
}

impl End {
    /// `None` without the signature or with too few bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes);
        if at.array()? != END_SIGNATURE {
            return None;
        }
        Some(Self {
            disk: at.u16()?,
            directory_disk: at.u16()?,
            disk_entries: at.u16()?,
            entries: at.u16()?,
            directory_nbytes: at.u32()?,
            directory_offset: at.u32()?,
            comment_nbytes: at.u16()?,
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&END_SIGNATURE);
        out.put16(self.disk);
        out.put16(self.directory_disk);
        out.put16(self.disk_entries);
        out.put16(self.entries);
        out.put32(self.directory_nbytes);
        out.put32(self.directory_offset);
        out.put16(self.comment_nbytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )]
    use super::super::{END_NBYTES, END64_NBYTES, LOCATOR_NBYTES};
    use super::*;

    #[test]
    fn end_records_survive_encoding() {
        let end64 = End64 {
            record_nbytes: 44,
            made_by: 1,
            version_needed: 2,
            disk: 3,
            directory_disk: 4,
            disk_entries: 5,
            entries: 6,
            directory_nbytes: 7,
            directory_offset: 8,
        };
        let locator = Locator {
            disk: 1,
            end64_offset: 2,
            disks: 3,
        };
        let end = End {
            disk: 1,
            directory_disk: 2,
            disk_entries: 3,
            entries: 4,
            directory_nbytes: 5,
            directory_offset: 6,
            comment_nbytes: 7,
        };
        let mut bytes = Vec::new();
        end64.encode(&mut bytes);
        locator.encode(&mut bytes);
        end.encode(&mut bytes);
        assert_eq!(bytes.len(), END64_NBYTES + LOCATOR_NBYTES + END_NBYTES);
        let (first, rest) = bytes.split_at(END64_NBYTES);
        let (second, third) = rest.split_at(LOCATOR_NBYTES);
        assert_eq!(End64::parse(first), Some(end64));
        assert_eq!(Locator::parse(second), Some(locator));
        assert_eq!(End::parse(third), Some(end));
        assert_eq!(
            (
                End64::parse(second),
                Locator::parse(third),
                End::parse(first)
            ),
            (None, None, None)
        );
    }
}
