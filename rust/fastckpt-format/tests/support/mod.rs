//! Archives in memory, and their parsing.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use fastckpt_format::FormatError;
use fastckpt_format::checksum::crc32;
use fastckpt_format::framing::Framing;
use fastckpt_format::index::Index;
use fastckpt_format::layout::{Alignment, Layout, RecordSpec};

/// Serves reads from `bytes`, and checks what [`Index::parse`] promises about them.
pub(crate) fn reader(bytes: &[u8]) -> impl FnMut(u64, usize) -> Result<Vec<u8>, FormatError> + '_ {
    |offset, nbytes| {
        assert!(nbytes <= 1 << 20, "asked for {nbytes} bytes at once");
        let start = usize::try_from(offset).unwrap();
        Ok(bytes
            .get(start..start + nbytes)
            .expect("asked within the file")
            .to_vec())
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Index, FormatError> {
    Index::parse(bytes.len() as u64, reader(bytes))
}

pub(crate) fn parse_with_headers(bytes: &[u8]) -> Result<Index, FormatError> {
    Index::parse_with_headers(bytes.len() as u64, reader(bytes))
}

/// The whole file of `layout` with these payloads.
pub(crate) fn render(layout: &Layout, payloads: &[Vec<u8>]) -> Vec<u8> {
    let crc32s: Vec<u32> = payloads.iter().map(|payload| crc32(payload)).collect();
    let mut file = Vec::new();
    for (i, (record, payload)) in layout.records().iter().zip(payloads).enumerate() {
        assert_eq!(file.len() as u64, record.header_offset);
        file.extend(layout.local_header(i));
        assert_eq!(file.len() as u64, record.payload_offset);
        file.extend(payload);
        file.extend(layout.descriptor(i, crc32s[i]));
    }
    assert_eq!(file.len() as u64, layout.directory_offset());
    file.extend(layout.directory(&crc32s));
    assert_eq!(file.len() as u64, layout.nbytes());
    file
}

/// An archive of these records, in torch's layout.
pub(crate) fn archive(root: &str, records: &[(&str, &[u8])], alignment: u64) -> Vec<u8> {
    let specs = records
        .iter()
        .map(|(name, payload)| RecordSpec {
            name: (*name).to_owned(),
            nbytes: payload.len() as u64,
        })
        .collect();
    let layout = Layout::plan(root, specs, Alignment::new(alignment).unwrap()).unwrap();
    let payloads: Vec<Vec<u8>> = records
        .iter()
        .map(|(_, payload)| payload.to_vec())
        .collect();
    render(&layout, &payloads)
}

/// The smallest thing that every reader takes, with an empty record among the rest.
pub(crate) fn small_archive() -> Vec<u8> {
    archive(
        "m",
        &[
            ("data.pkl", b"pickle"),
            (".storage_alignment", b"8"),
            ("data/0", b"0123456789"),
            ("data/1", b""),
            ("version", b"3\n"),
        ],
        8,
    )
}

/// What a reader that looks at everything says of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Clean,
    Refused(FormatError),
    Checksum(usize),
    Framing { mismatched: usize, is_torch: bool },
}

pub(crate) fn verdict(bytes: &[u8]) -> Verdict {
    let index = match parse(bytes) {
        Ok(index) => index,
        Err(error) => return Verdict::Refused(error),
    };
    let slice = |start: u64, end: u64| {
        &bytes[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()]
    };
    for (i, entry) in index.entries().iter().enumerate() {
        let payload = slice(entry.payload_offset, entry.payload_offset + entry.nbytes);
        if index
            .checksum(i)
            .is_some_and(|stored| stored != crc32(payload))
        {
            return Verdict::Checksum(i);
        }
    }
    let framing = Framing::new(&index);
    let mismatched = (0..framing.gaps())
        .filter(|&gap| {
            let range = framing.range(gap);
            framing
                .compare(gap, slice(range.start, range.end))
                .is_some()
        })
        .count();
    match mismatched {
        0 => Verdict::Clean,
        _ => Verdict::Framing {
            mismatched,
            is_torch: framing.is_torch(mismatched),
        },
    }
}

/// Offset of the `nth` occurrence of `needle`.
pub(crate) fn find(bytes: &[u8], needle: &[u8], nth: usize) -> usize {
    bytes
        .windows(needle.len())
        .enumerate()
        .filter(|(_, window)| *window == needle)
        .nth(nth)
        .expect("the needle is there")
        .0
}

/// `bytes` with `patch` written at `offset`.
pub(crate) fn patched(bytes: &[u8], offset: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[offset..offset + patch.len()].copy_from_slice(patch);
    bytes
}
