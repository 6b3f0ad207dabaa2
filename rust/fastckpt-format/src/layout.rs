//! Where every byte of an archive lies, known from the names and sizes of its records alone.

use crate::canonical::{END_RECORDS_NBYTES, Placed, put_end_records};
use crate::error::FormatError;

/// The alignment of payloads in the file, in bytes: 1 to 32768.
///
/// The padding lives in a zip extra field whose length is a u16, so nothing above 32768 is safe
/// for every reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment(u16);

impl Alignment {
    /// What torch uses unless told otherwise (`torch.utils.serialization.config.save`).
    pub const TORCH_DEFAULT: Self = Self(64);

    /// Checks the range.
    pub fn new(nbytes: u64) -> Result<Self, FormatError> {
        match u16::try_from(nbytes) {
            Ok(small @ 1..=32768) => Ok(Self(small)),
            _ => Err(FormatError::Alignment(nbytes)),
        }
    }

    /// The alignment in bytes.
    #[must_use]
    pub fn nbytes(self) -> u64 {
        u64::from(self.0)
    }
}

/// One record to lay out: its name inside the root folder, and the size of its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSpec {
    /// Name without the root folder, e.g. `data/17`.
    pub name: String,
    /// Payload size in bytes.
    pub nbytes: u64,
}

/// Where one record lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordLayout {
    /// Name without the root folder.
    pub name: String,
    /// Payload size in bytes.
    pub nbytes: u64,
    /// Offset of the local header; the header with its padding ends at `payload_offset`.
    pub header_offset: u64,
    /// Offset of the payload, a multiple of the alignment.
    pub payload_offset: u64,
    /// Size of the data descriptor behind the payload: 0 (empty record), 16 or 24.
    pub descriptor_nbytes: u64,
}

impl RecordLayout {
    /// Where the payload ends and the data descriptor begins.
    #[must_use]
    pub fn payload_end(&self) -> u64 {
        // plan() has proven that this stays below MAX_FILE_NBYTES.
        self.payload_offset.saturating_add(self.nbytes)
    }

    fn placed<'a>(&'a self, root: &'a str) -> Placed<'a> {
        Placed {
            root,
            name: &self.name,
            nbytes: self.nbytes,
            header_offset: self.header_offset,
        }
    }
}

/// Longest `root/name`, in bytes: miniz, through which torch reads, keeps names in a buffer of 512
/// bytes with a closing NUL and cuts longer ones (`MZ_ZIP_MAX_ARCHIVE_FILENAME_SIZE`).
pub const MAX_NAME_NBYTES: usize = 511;

/// Offsets in a file are signed (`off_t`).
const MAX_FILE_NBYTES: u64 = i64::MAX as u64;

/// miniz keeps the whole directory in memory and counts its bytes in 32 bits.
const MAX_DIRECTORY_NBYTES: u64 = u32::MAX as u64;

/// Where every byte of an archive lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: String,
    alignment: Alignment,
    records: Vec<RecordLayout>,
    directory_offset: u64,
    nbytes: u64,
}

impl Layout {
    /// Lays out `records` in their order under the folder `root`, as torch.save (2.7 and later) does.
    ///
    /// Refuses names no reader could find again and sizes no file can have. That names are
    /// distinct is the caller's business.
    pub fn plan(
        root: &str,
        records: Vec<RecordSpec>,
        alignment: Alignment,
    ) -> Result<Self, FormatError> {
        let mut placed = Vec::with_capacity(records.len());
        let mut end = 0_u64;
        let mut directory_nbytes = END_RECORDS_NBYTES as u64;
        for spec in records {
            check_name(root, &spec.name)?;
            let record = place(root, spec, end, alignment)?;
            end = record
                .payload_end()
                .saturating_add(record.descriptor_nbytes);
            directory_nbytes =
                directory_nbytes.saturating_add(record.placed(root).central_nbytes() as u64);
            check_limit(
                "the central directory",
                directory_nbytes,
                MAX_DIRECTORY_NBYTES,
                &record,
            )?;
            let file_nbytes = end.saturating_add(directory_nbytes);
            check_limit("the archive", file_nbytes, MAX_FILE_NBYTES, &record)?;
            placed.push(record);
        }
        Ok(Self {
            root: root.to_owned(),
            alignment,
            records: placed,
            directory_offset: end,
            nbytes: end.saturating_add(directory_nbytes),
        })
    }

    /// The root folder, without the slash.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The alignment of the payloads.
    #[must_use]
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// The records in file order.
    #[must_use]
    pub fn records(&self) -> &[RecordLayout] {
        &self.records
    }

    /// Offset of the central directory: the end of the last record.
    #[must_use]
    pub fn directory_offset(&self) -> u64 {
        self.directory_offset
    }

    /// The exact size of the file.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// The local header of `records()[index]`, padding included: the bytes from `header_offset`
    /// up to `payload_offset`. Empty if there is no such record.
    #[must_use]
    pub fn local_header(&self, index: usize) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(record) = self.records.get(index) {
            record
                .placed(&self.root)
                .put_local_header(self.alignment, &mut out);
        }
        out
    }

    /// The data descriptor behind the payload of `records()[index]`: `descriptor_nbytes` bytes.
    #[must_use]
    pub fn descriptor(&self, index: usize, crc32: u32) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(record) = self.records.get(index) {
            record.placed(&self.root).put_descriptor(crc32, &mut out);
        }
        out
    }

    /// The central directory and the end records: the bytes from `directory_offset` to the end.
    /// `crc32s` holds the CRC of each record, in order; one that is missing counts as 0, which
    /// readers take for "not stored".
    #[must_use]
    pub fn directory(&self, crc32s: &[u32]) -> Vec<u8> {
        let nbytes = self.nbytes.saturating_sub(self.directory_offset);
        let mut out = Vec::with_capacity(usize::try_from(nbytes).unwrap_or(0));
        let crc32s = crc32s.iter().copied().chain(std::iter::repeat(0));
        for (record, crc32) in self.records.iter().zip(crc32s) {
            record.placed(&self.root).put_central(crc32, &mut out);
        }
        let entries_nbytes = out.len() as u64;
        put_end_records(
            self.records.len() as u64,
            self.directory_offset,
            entries_nbytes,
            &mut out,
        );
        out
    }
}

fn place(
    root: &str,
    spec: RecordSpec,
    header_offset: u64,
    alignment: Alignment,
) -> Result<RecordLayout, FormatError> {
    let placed = Placed {
        root,
        name: &spec.name,
        nbytes: spec.nbytes,
        header_offset,
    };
    let descriptor_nbytes = placed.descriptor_nbytes();
    match placed.payload_offset(alignment) {
        Some(payload_offset) => Ok(RecordLayout {
            name: spec.name,
            nbytes: spec.nbytes,
            header_offset,
            payload_offset,
            descriptor_nbytes,
        }),
        None => Err(FormatError::TooLarge {
            what: "the archive",
            limit: MAX_FILE_NBYTES,
            record: spec.name,
        }),
    }
}

fn check_limit(
    what: &'static str,
    nbytes: u64,
    limit: u64,
    record: &RecordLayout,
) -> Result<(), FormatError> {
    if nbytes > limit {
        return Err(FormatError::TooLarge {
            what,
            limit,
            record: record.name.clone(),
        });
    }
    Ok(())
}

fn check_name(root: &str, name: &str) -> Result<(), FormatError> {
    let problem = if root.is_empty() || name.is_empty() {
        "a name is empty"
    } else if root.contains('/') {
        "the root folder contains a slash"
    } else if root.contains('\0') || name.contains('\0') {
        "a name contains a NUL"
    } else if root.len().saturating_add(name.len()) >= MAX_NAME_NBYTES {
        "longer than the 511 bytes that torch can read"
    } else {
        return Ok(());
    };
    Err(FormatError::RecordName {
        root: root.to_owned(),
        name: name.to_owned(),
        problem,
    })
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

    const LIMIT: u64 = u32::MAX as u64;

    fn spec(name: &str, nbytes: u64) -> RecordSpec {
        RecordSpec {
            name: name.to_owned(),
            nbytes,
        }
    }

    fn plan(specs: Vec<RecordSpec>) -> Layout {
        Layout::plan("m", specs, Alignment::TORCH_DEFAULT).unwrap()
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn alignment_has_limits() {
        for nbytes in [1, 64, 32_768] {
            assert_eq!(Alignment::new(nbytes).unwrap().nbytes(), nbytes);
        }
        for nbytes in [0, 32_769, 65_536 + 64, u64::MAX] {
            assert_eq!(
                Alignment::new(nbytes).unwrap_err().to_string(),
                format!("alignment must be between 1 and 32768 bytes, got {nbytes}")
            );
        }
    }

    #[test]
    fn local_header_byte_for_byte() {
        let layout = plan(vec![spec("data.pkl", 3), spec("data/0", 0)]);
        let mut expected = b"PK\x03\x04\0\0\x08\x08".to_vec();
        expected.extend([0; 18]);
        expected.extend(b"\x0a\0\x18\0m/data.pklFB\x14\0ZZZZZZZZZZZZZZZZZZZZ");
        assert_eq!(layout.local_header(0), expected);
        assert_eq!(layout.records()[0].payload_offset, 64);
        assert_eq!(
            layout.descriptor(0, 0x0403_0201),
            b"PK\x07\x08\x01\x02\x03\x04\x03\0\0\0\x03\0\0\0"
        );
        // An empty record: no descriptor, and the flag that announces one is not set.
        assert_eq!(layout.local_header(1)[6..8], [0, 8]);
        assert_eq!(layout.descriptor(1, 0), b"");
        assert_eq!(layout.records()[1].header_offset, 64 + 3 + 16);
        assert_eq!(layout.local_header(2), b"");
        assert_eq!(layout.descriptor(2, 0), b"");
    }

    /// 4 GiB - 1 is the sentinel, so it is the first size that needs zip64.
    #[test]
    fn zip64_begins_at_the_sentinel() {
        let small = plan(vec![spec("a", LIMIT - 1)]);
        let big = plan(vec![spec("a", LIMIT)]);
        assert_eq!(small.records()[0].descriptor_nbytes, 16);
        assert_eq!(big.records()[0].descriptor_nbytes, 24);
        assert_eq!(small.directory(&[1]).len(), 46 + 3 + 98);
        let directory = big.directory(&[1]);
        assert_eq!(directory.len(), 46 + 3 + 20 + 98);
        assert_eq!(directory[20..28], [0xff; 8]);
        assert_eq!(directory[49..53], *b"\x01\0\x10\0");
        assert_eq!(
            [u64_at(&directory, 53), u64_at(&directory, 61)],
            [LIMIT, LIMIT]
        );
        // In the local header the compressed size of the field stays 0.
        let header = big.local_header(0);
        assert_eq!(header[33..37], *b"\x01\0\x10\0");
        assert_eq!([u64_at(&header, 37), u64_at(&header, 45)], [LIMIT, 0]);
        assert_eq!(header[18..26], [0; 8]);
        assert_eq!(header[53..55], *b"FB");
        let descriptor = big.descriptor(0, 1);
        assert_eq!(
            [u64_at(&descriptor, 8), u64_at(&descriptor, 16)],
            [LIMIT, LIMIT]
        );
    }

    #[test]
    fn zip64_offsets_of_small_records() {
        let layout = plan(vec![spec("a", LIMIT), spec("b", 5), spec("c", 0)]);
        let offset = layout.records()[1].header_offset;
        let header = layout.local_header(1);
        assert_eq!(header[33..37], *b"\x01\0\x08\0");
        assert_eq!(u64_at(&header, 37), offset);
        assert_eq!(layout.records()[1].descriptor_nbytes, 24);
        assert_eq!(layout.records()[2].descriptor_nbytes, 0);
        assert_eq!(
            layout.directory_offset(),
            layout.records()[2].payload_offset
        );
        let directory = layout.directory(&[0; 3]);
        let end = &directory[directory.len() - 22..];
        assert_eq!(end[16..20], [0xff; 4]);
        assert_eq!(
            layout.nbytes(),
            layout.directory_offset() + directory.len() as u64
        );
    }

    #[test]
    fn counts_beyond_16_bits() {
        let layout = plan((0..70_000).map(|i| spec(&format!("data/{i}"), 4)).collect());
        let directory = layout.directory(&[]);
        let end = &directory[directory.len() - 22..];
        assert_eq!(end[8..12], [0xff; 4]);
        let end64 = &directory[directory.len() - 98..];
        assert_eq!([u64_at(end64, 24), u64_at(end64, 32)], [70_000; 2]);
    }

    #[test]
    fn sizes_that_no_file_has() {
        let too_large = |specs| {
            Layout::plan("m", specs, Alignment::TORCH_DEFAULT)
                .unwrap_err()
                .to_string()
        };
        for nbytes in [u64::MAX, i64::MAX as u64] {
            assert_eq!(
                too_large(vec![spec("data/0", nbytes)]),
                "the archive would take more than 9223372036854775807 bytes (at record \"data/0\")"
            );
        }
        let half = 1 << 62;
        assert_eq!(
            too_large(vec![spec("a", half), spec("b", half), spec("c", u64::MAX)]),
            "the archive would take more than 9223372036854775807 bytes (at record \"b\")"
        );
    }

    #[test]
    fn names_that_no_reader_finds() {
        for (root, name, problem) in [
            ("", "a", "a name is empty"),
            ("m", "", "a name is empty"),
            ("m/n", "a", "the root folder contains a slash"),
            ("m", "a\0", "a name contains a NUL"),
            (
                "m",
                &"x".repeat(510),
                "longer than the 511 bytes that torch can read",
            ),
        ] {
            let specs = vec![spec(name, 1)];
            assert_eq!(
                Layout::plan(root, specs, Alignment::TORCH_DEFAULT)
                    .unwrap_err()
                    .to_string(),
                format!("record name {name:?} in root folder {root:?}: {problem}")
            );
        }
        assert!(
            Layout::plan(
                "m",
                vec![spec(&"x".repeat(509), 1)],
                Alignment::TORCH_DEFAULT
            )
            .is_ok()
        );
    }
}
