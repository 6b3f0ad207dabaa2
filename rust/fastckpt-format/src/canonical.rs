//! The bytes torch's zip writer puts around one record, and behind the last one.
//!
//! All of it follows from the record's name, size, CRC and header offset and the file's alignment;
//! nothing depends on the other records. So a damaged entry spoils what is expected around it only.

use crate::layout::Alignment;
use crate::zip::{
    CENTRAL_NBYTES, CENTRAL_SIGNATURE, CentralEntry, DESCRIPTOR_NBYTES, DESCRIPTOR_SIGNATURE,
    DESCRIPTOR64_NBYTES, END_NBYTES, END64_NBYTES, END64_UNCOUNTED_NBYTES, EXTRA_HEADER_NBYTES,
    End, End64, FLAG_DESCRIPTOR, FLAG_UTF8, LOCAL_NBYTES, LOCAL_SIGNATURE, LOCATOR_NBYTES,
    LocalHeader, Locator, METHOD_STORED, PutLe, SENTINEL32, ZIP64_ID, clamp16, clamp32,
};

/// Id of the extra field that holds the padding: the letters `FB`, as torch's writer has it.
const PADDING_ID: [u8; 2] = *b"FB";
/// What the padding is filled with, as torch's writer has it.
const PADDING_BYTE: u8 = b'Z';
/// "Version made by" of the zip64 end record: 3 (Unix) and 30, as miniz has it.
const END64_MADE_BY: u16 = 0x031E;
/// "Version needed" of the zip64 end record, APPNOTE 4.4.3.2: 4.5 is the first with zip64.
const END64_VERSION_NEEDED: u16 = 45;
/// Zip64 end record, locator and end record; torch writes all three for every file.
pub(crate) const END_RECORDS_NBYTES: usize = END64_NBYTES + LOCATOR_NBYTES + END_NBYTES;

/// One record at its place in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed<'a> {
    pub(crate) root: &'a str,
    pub(crate) name: &'a str,
    pub(crate) nbytes: u64,
    pub(crate) header_offset: u64,
}

impl Placed<'_> {
    /// Length of `root/name`.
    pub(crate) fn name_nbytes(&self) -> usize {
        self.root
            .len()
            .saturating_add(1)
            .saturating_add(self.name.len())
    }

    fn put_name(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.root.as_bytes());
        out.push(b'/');
        out.extend_from_slice(self.name.as_bytes());
    }

    /// torch's rule is `>=`: 4 GiB - 1 does not fit, since that is the sentinel.
    fn has_big_size(&self) -> bool {
        self.nbytes >= u64::from(SENTINEL32)
    }

    fn has_big_offset(&self) -> bool {
        self.header_offset >= u64::from(SENTINEL32)
    }

    /// Length of the zip64 field with its header, the same in local header and directory entry.
    fn zip64_nbytes(&self) -> usize {
        match (self.has_big_size(), self.has_big_offset()) {
            (false, false) => 0,
            (false, true) => EXTRA_HEADER_NBYTES.saturating_add(8),
            (true, false) => EXTRA_HEADER_NBYTES.saturating_add(16),
            (true, true) => EXTRA_HEADER_NBYTES.saturating_add(24),
        }
    }

    /// The zip64 field. The local header's compressed size is always 0 there: miniz writes the
    /// header before it knows it.
    fn put_zip64(&self, compressed_nbytes: u64, out: &mut Vec<u8>) {
        let Some(contents) = self.zip64_nbytes().checked_sub(EXTRA_HEADER_NBYTES) else {
            return;
        };
        out.put16(ZIP64_ID);
        out.put16(clamp16(contents as u64));
        if self.has_big_size() {
            out.put64(self.nbytes);
            out.put64(compressed_nbytes);
        }
        if self.has_big_offset() {
            out.put64(self.header_offset);
        }
    }

    fn flags(&self) -> u16 {
        if self.nbytes > 0 {
            FLAG_UTF8 | FLAG_DESCRIPTOR
        } else {
            FLAG_UTF8
        }
    }

    /// Length of the local header up to the padding's bytes.
    pub(crate) fn unpadded_header_nbytes(&self) -> usize {
        LOCAL_NBYTES
            .saturating_add(self.name_nbytes())
            .saturating_add(self.zip64_nbytes())
            .saturating_add(EXTRA_HEADER_NBYTES)
    }

    /// The fewest bytes that bring the payload to a multiple of the alignment; `None` past 2^64.
    fn padding_nbytes(&self, alignment: Alignment) -> Option<u16> {
        let unpadded = self
            .header_offset
            .checked_add(self.unpadded_header_nbytes() as u64)?;
        let padded = unpadded.checked_next_multiple_of(alignment.nbytes())?;
        u16::try_from(padded.checked_sub(unpadded)?).ok()
    }

    /// Where the payload begins; `None` past 2^64.
    pub(crate) fn payload_offset(&self, alignment: Alignment) -> Option<u64> {
        self.header_offset
            .checked_add(self.unpadded_header_nbytes() as u64)?
            .checked_add(u64::from(self.padding_nbytes(alignment)?))
    }

    /// Appends the local header with its padding. Only for records whose payload offset exists.
    pub(crate) fn put_local_header(&self, alignment: Alignment, out: &mut Vec<u8>) {
        let padding = self.padding_nbytes(alignment).unwrap_or(0);
        let extra = self
            .zip64_nbytes()
            .saturating_add(EXTRA_HEADER_NBYTES)
            .saturating_add(usize::from(padding));
        let header = LocalHeader {
            signature: LOCAL_SIGNATURE,
            flags: self.flags(),
            method: METHOD_STORED,
            crc32: 0,
            compressed_nbytes: 0,
            nbytes: 0,
            name_nbytes: clamp16(self.name_nbytes() as u64),
            extra_nbytes: clamp16(extra as u64),
        };
        header.encode(out);
        self.put_name(out);
        self.put_zip64(0, out);
        out.extend_from_slice(&PADDING_ID);
        out.put16(padding);
        out.resize(out.len().saturating_add(usize::from(padding)), PADDING_BYTE);
    }

    /// Size of the data descriptor: an empty record has none, a zip64 one has 64-bit sizes.
    pub(crate) fn descriptor_nbytes(&self) -> u64 {
        match (self.nbytes, self.zip64_nbytes()) {
            (0, _) => 0,
            (_, 0) => DESCRIPTOR_NBYTES,
            _ => DESCRIPTOR64_NBYTES,
        }
    }

    /// Appends the data descriptor.
    pub(crate) fn put_descriptor(&self, crc32: u32, out: &mut Vec<u8>) {
        let nbytes = self.descriptor_nbytes();
        if nbytes == 0 {
            return;
        }
        out.extend_from_slice(&DESCRIPTOR_SIGNATURE);
        out.put32(crc32);
        for _compressed_then_not in 0..2 {
            if nbytes == DESCRIPTOR64_NBYTES {
                out.put64(self.nbytes);
            } else {
                out.put32(clamp32(self.nbytes));
            }
        }
    }

    /// Size of the directory entry.
    pub(crate) fn central_nbytes(&self) -> usize {
        CENTRAL_NBYTES
            .saturating_add(self.name_nbytes())
            .saturating_add(self.zip64_nbytes())
    }

    /// Appends the directory entry.
    pub(crate) fn put_central(&self, crc32: u32, out: &mut Vec<u8>) {
        let entry = CentralEntry {
            signature: CENTRAL_SIGNATURE,
            version_needed: 0,
            flags: self.flags(),
            method: METHOD_STORED,
            crc32,
            compressed_nbytes: clamp32(self.nbytes),
            nbytes: clamp32(self.nbytes),
            name_nbytes: clamp16(self.name_nbytes() as u64),
            extra_nbytes: clamp16(self.zip64_nbytes() as u64),
            comment_nbytes: 0,
            disk: 0,
            external_attributes: 0,
            header_offset: clamp32(self.header_offset),
        };
        entry.encode(out);
        self.put_name(out);
        self.put_zip64(self.nbytes, out);
    }
}

/// Appends the three end records.
pub(crate) fn put_end_records(
    entries: u64,
    directory_offset: u64,
    directory_nbytes: u64,
    out: &mut Vec<u8>,
) {
    let end64 = End64 {
        record_nbytes: (END64_NBYTES as u64).saturating_sub(END64_UNCOUNTED_NBYTES),
        made_by: END64_MADE_BY,
        version_needed: END64_VERSION_NEEDED,
        disk: 0,
        directory_disk: 0,
        disk_entries: entries,
        entries,
        directory_nbytes,
        directory_offset,
    };
    let locator = Locator {
        disk: 0,
        end64_offset: directory_offset.saturating_add(directory_nbytes),
        disks: 1,
    };
    let end = End {
        disk: 0,
        directory_disk: 0,
        disk_entries: clamp16(entries),
        entries: clamp16(entries),
        directory_nbytes: clamp32(directory_nbytes),
        directory_offset: clamp32(directory_offset),
        comment_nbytes: 0,
    };
    end64.encode(out);
    locator.encode(out);
    end.encode(out);
}
