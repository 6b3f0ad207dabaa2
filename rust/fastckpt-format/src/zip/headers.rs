//! What stands before a payload, and what the directory says of it.

use super::{Cursor, LOCAL_NBYTES, PutLe};

/// The fixed part of a local header, 4.3.7. Times are zero in torch's files and never looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalHeader {
    pub(crate) signature: [u8; 4],
    pub(crate) flags: u16,
    pub(crate) method: u16,
    pub(crate) crc32: u32,
    pub(crate) compressed_nbytes: u32,
    pub(crate) nbytes: u32,
    pub(crate) name_nbytes: u16,
    pub(crate) extra_nbytes: u16,
}

impl LocalHeader {
    /// Reads the first 30 bytes; `None` if there are fewer.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes);
        let signature = at.array()?;
        let _version_needed = at.u16()?;
        let (flags, method) = (at.u16()?, at.u16()?);
        let _time_and_date = at.u32()?;
        Some(Self {
            signature,
            flags,
            method,
            crc32: at.u32()?,
            compressed_nbytes: at.u32()?,
            nbytes: at.u32()?,
            name_nbytes: at.u16()?,
            extra_nbytes: at.u16()?,
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.signature);
        out.put16(0); // version needed
        out.put16(self.flags);
        out.put16(self.method);
        out.put32(0); // time and date
        out.put32(self.crc32);
        out.put32(self.compressed_nbytes);
        out.put32(self.nbytes);
        out.put16(self.name_nbytes);
        out.put16(self.extra_nbytes);
    }

    /// Fixed part, name and extra fields: from the header's offset to the payload.
    pub(crate) fn total_nbytes(&self) -> u64 {
        (LOCAL_NBYTES as u64)
            .saturating_add(u64::from(self.name_nbytes))
            .saturating_add(u64::from(self.extra_nbytes))
    }
}

/// The fixed part of a directory entry, 4.3.12. Versions, times and attributes are zero in
/// torch's files and never looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CentralEntry {
    pub(crate) signature: [u8; 4],
    pub(crate) version_needed: u16,
    pub(crate) flags: u16,
    pub(crate) method: u16,
    pub(crate) crc32: u32,
    pub(crate) compressed_nbytes: u32,
    pub(crate) nbytes: u32,
    pub(crate) name_nbytes: u16,
    pub(crate) extra_nbytes: u16,
    pub(crate) comment_nbytes: u16,
    pub(crate) disk: u16,
    pub(crate) external_attributes: u32,
    pub(crate) header_offset: u32,
}

impl CentralEntry {
    /// Reads the first 46 bytes; `None` if there are fewer.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes);
        let signature = at.array()?;
        let _version_made_by = at.u16()?;
        let version_needed = at.u16()?;
        let (flags, method) = (at.u16()?, at.u16()?);
        let _time_and_date = at.u32()?;
        let (crc32, compressed_nbytes, nbytes) = (at.u32()?, at.u32()?, at.u32()?);
        let (name_nbytes, extra_nbytes, comment_nbytes) = (at.u16()?, at.u16()?, at.u16()?);
        let disk = at.u16()?;
        let _internal_attributes = at.u16()?;
        let external_attributes = at.u32()?;
        Some(Self {
            signature,
            version_needed,
            flags,
            method,
            crc32,
            compressed_nbytes,
            nbytes,
            name_nbytes,
            extra_nbytes,
            comment_nbytes,
            disk,
            external_attributes,
            header_offset: at.u32()?,
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.signature);
        out.put16(0); // version made by
        out.put16(self.version_needed);
        out.put16(self.flags);
        out.put16(self.method);
        out.put32(0); // time and date
        out.put32(self.crc32);
        out.put32(self.compressed_nbytes);
        out.put32(self.nbytes);
        out.put16(self.name_nbytes);
        out.put16(self.extra_nbytes);
        out.put16(self.comment_nbytes);
        out.put16(self.disk);
        out.put16(0); // internal attributes
        out.put32(self.external_attributes);
        out.put32(self.header_offset);
    }

    /// Name, extra fields and comment: what follows the fixed part.
    pub(crate) fn tail_nbytes(&self) -> usize {
        usize::from(self.name_nbytes)
            .saturating_add(usize::from(self.extra_nbytes))
            .saturating_add(usize::from(self.comment_nbytes))
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
    use super::super::{CENTRAL_NBYTES, CENTRAL_SIGNATURE, LOCAL_SIGNATURE};
    use super::*;

    #[test]
    fn structures_survive_encoding() {
        let local = LocalHeader {
            signature: LOCAL_SIGNATURE,
            flags: 1,
            method: 2,
            crc32: 3,
            compressed_nbytes: 4,
            nbytes: 5,
            name_nbytes: 6,
            extra_nbytes: 7,
        };
        let central = CentralEntry {
            signature: CENTRAL_SIGNATURE,
            version_needed: 11,
            flags: 1,
            method: 2,
            crc32: 3,
            compressed_nbytes: 4,
            nbytes: 5,
            name_nbytes: 6,
            extra_nbytes: 7,
            comment_nbytes: 8,
            disk: 9,
            external_attributes: 12,
            header_offset: 10,
        };
        let (mut a, mut b) = (Vec::new(), Vec::new());
        local.encode(&mut a);
        central.encode(&mut b);
        assert_eq!((a.len(), b.len()), (LOCAL_NBYTES, CENTRAL_NBYTES));
        assert_eq!(
            (LocalHeader::parse(&a), CentralEntry::parse(&b)),
            (Some(local), Some(central))
        );
        assert_eq!(
            (LocalHeader::parse(&a[1..]), CentralEntry::parse(&b[1..])),
            (None, None)
        );
        assert_eq!((local.total_nbytes(), central.tail_nbytes()), (43, 21));
    }
}
