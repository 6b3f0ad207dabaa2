//! The structures of a zip file, field by field: parsed and encoded, not judged.
//!
//! Section numbers are those of PKWARE's APPNOTE 6.3.10. All numbers are little-endian.

/// Local file header, 4.3.7.
pub(crate) const LOCAL_SIGNATURE: [u8; 4] = *b"PK\x03\x04";
/// Data descriptor, 4.3.9.3: the signature is optional there, torch always writes it.
pub(crate) const DESCRIPTOR_SIGNATURE: [u8; 4] = *b"PK\x07\x08";
/// Central directory header, 4.3.12.
pub(crate) const CENTRAL_SIGNATURE: [u8; 4] = *b"PK\x01\x02";
/// Zip64 end of central directory record, 4.3.14.
pub(crate) const END64_SIGNATURE: [u8; 4] = *b"PK\x06\x06";
/// Zip64 end of central directory locator, 4.3.15.
pub(crate) const LOCATOR_SIGNATURE: [u8; 4] = *b"PK\x06\x07";
/// End of central directory record, 4.3.16.
pub(crate) const END_SIGNATURE: [u8; 4] = *b"PK\x05\x06";

/// Fixed part of a local header, 4.3.7.
pub(crate) const LOCAL_NBYTES: usize = 30;
/// Fixed part of a directory entry, 4.3.12.
pub(crate) const CENTRAL_NBYTES: usize = 46;
/// Zip64 end record without its extensible data, 4.3.14.
pub(crate) const END64_NBYTES: usize = 56;
/// What the size field of the zip64 end record does not count: signature and itself, 4.3.14.1.
pub(crate) const END64_UNCOUNTED_NBYTES: u64 = 12;
/// Zip64 locator, 4.3.15.
pub(crate) const LOCATOR_NBYTES: usize = 20;
/// End record without its comment, 4.3.16.
pub(crate) const END_NBYTES: usize = 22;
/// Data descriptor with signature and 32-bit sizes, 4.3.9.
pub(crate) const DESCRIPTOR_NBYTES: u64 = 16;
/// Data descriptor with signature and 64-bit sizes, 4.3.9.2.
pub(crate) const DESCRIPTOR64_NBYTES: u64 = 24;

/// Flag bit 3, 4.4.4: CRC and sizes follow the payload in a data descriptor.
pub(crate) const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// Flag bit 11, 4.4.4: the name is UTF-8.
pub(crate) const FLAG_UTF8: u16 = 1 << 11;
/// Flag bits 1 and 2, 4.4.4: compression options, without meaning for a stored record.
const FLAG_COMPRESSION_OPTIONS: u16 = 0b110;
/// The flags a reader may meet; all others mean encryption, patches or things not yet invented.
pub(crate) const FLAGS_ALLOWED: u16 = FLAG_DESCRIPTOR | FLAG_UTF8 | FLAG_COMPRESSION_OPTIONS;
/// Compression method 0, 4.4.5: stored.
pub(crate) const METHOD_STORED: u16 = 0;

/// Extra field id of the zip64 sizes and offset, 4.5.3.
pub(crate) const ZIP64_ID: u16 = 1;
/// Extra field id of the Info-ZIP Unicode path, 4.6.9: a name that some readers (Python's zipfile since
/// 3.13) take in place of the header's, and others (torch) do not.
const UNICODE_PATH_ID: u16 = 0x7075;
/// Id and length in front of every extra field, 4.5.1.
pub(crate) const EXTRA_HEADER_NBYTES: usize = 4;
/// A 16-bit field with this value is to be found in the zip64 record, 4.4.1.4.
pub(crate) const SENTINEL16: u16 = u16::MAX;
/// A 32-bit field with this value is to be found in the zip64 field or record, 4.4.1.4.
pub(crate) const SENTINEL32: u32 = u32::MAX;

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

/// What is wrong with extra fields, in words.
pub(crate) const EXTRA_MALFORMED: &str = "malformed extra fields";
/// What is wrong with extra fields, in words.
pub(crate) const ZIP64_TWICE: &str = "two zip64 fields";
/// What is wrong with extra fields, in words.
pub(crate) const ZIP64_SHORT: &str = "zip64 field absent or too short";

/// Problem of an extra field with another name than the header's.
pub(crate) const SECOND_NAME: &str = "a second name (Info-ZIP Unicode path)";

/// The contents of the zip64 field among `extra`, 4.5.3; empty if there is none.
pub(crate) fn zip64_field(extra: &[u8]) -> Result<Cursor<'_>, &'static str> {
    let mut at = Cursor(extra);
    let mut found = None;
    while !at.0.is_empty() {
        let field = at
            .u16()
            .zip(at.u16())
            .and_then(|(id, nbytes)| Some((id, at.bytes(usize::from(nbytes))?)));
        match field {
            None => return Err(EXTRA_MALFORMED),
            Some((ZIP64_ID, _)) if found.is_some() => return Err(ZIP64_TWICE),
            Some((ZIP64_ID, contents)) => found = Some(contents),
            Some((UNICODE_PATH_ID, _)) => return Err(SECOND_NAME),
            Some(_) => {}
        }
    }
    Ok(Cursor(found.unwrap_or_default()))
}

/// The 64-bit value of a 32-bit field: its own, or the next one of the zip64 field.
pub(crate) fn widen(value: u32, zip64: &mut Cursor<'_>) -> Result<u64, &'static str> {
    if value == SENTINEL32 {
        zip64.u64().ok_or(ZIP64_SHORT)
    } else {
        Ok(u64::from(value))
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

    #[test]
    fn zip64_field_is_found_among_others() {
        let found = zip64_field(b"FB\x02\0ZZ\x01\0\x08\0\x05\0\0\0\0\0\0\0").unwrap();
        assert_eq!(found.clone().u64(), Some(5));
        assert_eq!(widen(7, &mut found.clone()), Ok(7));
        assert_eq!(widen(SENTINEL32, &mut found.clone()), Ok(5));
        assert_eq!(widen(SENTINEL32, &mut Cursor(b"1234567")), Err(ZIP64_SHORT));
        for (extra, problem) in [
            (&b"FB\x03\0ZZ"[..], EXTRA_MALFORMED),
            (b"FB\0", EXTRA_MALFORMED),
            (b"\x01\0\0\0\x01\0\0\0", ZIP64_TWICE),
            (b"up\x06\0\x01\0\0\0\0x", SECOND_NAME),
        ] {
            assert_eq!(zip64_field(extra).err(), Some(problem));
        }
    }
}
