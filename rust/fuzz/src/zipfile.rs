//! The parts of an archive, found by their signatures alone: it may be damaged in any way.

use std::ops::Range;

use fastckpt_format::checksum::crc32;
use fastckpt_format::layout::{Alignment, Layout, RecordSpec};

const LOCAL: [u8; 4] = *b"PK\x03\x04";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const DESCRIPTOR: [u8; 4] = *b"PK\x07\x08";
const END64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR: [u8; 4] = *b"PK\x06\x07";
const END: [u8; 4] = *b"PK\x05\x06";

const LOCAL_NBYTES: usize = 30;
const CENTRAL_NBYTES: usize = 46;
const END64_NBYTES: usize = 56;
const LOCATOR_NBYTES: usize = 20;
const END_NBYTES: usize = 22;
const SENTINEL: u32 = u32::MAX;
const ZIP64_ID: u16 = 1;
const FLAG_DESCRIPTOR: u16 = 8;

/// One record, as its local header has it.
#[derive(Debug, Clone)]
struct Record {
    header: usize,
    name: Range<usize>,
    payload: Range<usize>,
    /// Where the next structure begins: behind the descriptor.
    end: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Writes a size or offset into a field of 32 bits, unless the field says that it stands elsewhere.
fn put_unless_sentinel(bytes: &mut [u8], at: usize, value: usize) -> bool {
    let written = u32_at(bytes, at) != SENTINEL;
    if written {
        put(bytes, at, &(value as u32).to_le_bytes());
    }
    written
}

fn is_at(bytes: &[u8], at: usize, signature: [u8; 4], nbytes: usize) -> bool {
    bytes
        .get(at..)
        .is_some_and(|rest| rest.len() >= nbytes && rest.starts_with(&signature))
}

/// The records in front of the directory.
fn records(bytes: &[u8]) -> Vec<Record> {
    let mut found = Vec::new();
    let mut at = 0;
    while is_at(bytes, at, LOCAL, LOCAL_NBYTES) {
        let name = at + LOCAL_NBYTES..at + LOCAL_NBYTES + usize::from(u16_at(bytes, at + 26));
        let start = name.end + usize::from(u16_at(bytes, at + 28));
        if start > bytes.len() {
            break;
        }
        let starts = |window: &[u8]| [LOCAL, CENTRAL, END64, END].iter().any(|s| window == s);
        let end = bytes[start..].windows(4).position(starts);
        let end = end.map_or(bytes.len(), |nbytes| start + nbytes);
        let payload_end = [16, 24]
            .into_iter()
            .filter_map(|nbytes| end.checked_sub(nbytes).filter(|at| *at >= start))
            .find(|at| is_at(bytes, *at, DESCRIPTOR, 16))
            .unwrap_or(end);
        found.push(Record {
            header: at,
            name,
            payload: start..payload_end,
            end,
        });
        at = end;
    }
    found
}

/// Makes checksums, sizes, offsets and counts agree with where the records are, and changes nothing
/// else: flags, methods and names stay whatever they have become.
pub fn repair(bytes: &mut [u8]) {
    let records = records(bytes);
    for record in &records {
        repair_record(bytes, record);
    }
    let directory = records.last().map_or(0, |last| last.end);
    let mut at = directory;
    let mut entries = 0;
    while is_at(bytes, at, CENTRAL, CENTRAL_NBYTES) {
        let tail: usize = [28, 30, 32]
            .map(|field| usize::from(u16_at(bytes, at + field)))
            .iter()
            .sum();
        let end = at + CENTRAL_NBYTES + tail;
        if end > bytes.len() {
            break;
        }
        if let Some(record) = records.get(entries) {
            let crc32 = checksum(bytes, record);
            repair_entry(&mut bytes[at..end], record, crc32);
        }
        at = end;
        entries += 1;
    }
    repair_end(bytes, directory, at, entries);
}

fn checksum(bytes: &[u8], record: &Record) -> u32 {
    crc32(&bytes[record.payload.clone()])
}

fn repair_record(bytes: &mut [u8], record: &Record) {
    let Record {
        header,
        payload,
        end,
        ..
    } = record;
    let crc32 = checksum(bytes, record).to_le_bytes();
    let nbytes = payload.len();
    if u16_at(bytes, header + 6) & FLAG_DESCRIPTOR == 0 {
        put(bytes, header + 14, &crc32);
        put_unless_sentinel(bytes, header + 18, nbytes);
        put_unless_sentinel(bytes, header + 22, nbytes);
    }
    match end - payload.end {
        16 => {
            put(bytes, payload.end + 4, &crc32);
            put(bytes, payload.end + 8, &(nbytes as u32).to_le_bytes());
            put(bytes, payload.end + 12, &(nbytes as u32).to_le_bytes());
        }
        24 => {
            put(bytes, payload.end + 4, &crc32);
            put(bytes, payload.end + 8, &(nbytes as u64).to_le_bytes());
            put(bytes, payload.end + 16, &(nbytes as u64).to_le_bytes());
        }
        _ => {}
    }
}

/// `entry` is one directory entry with its name, extra fields and comment.
fn repair_entry(entry: &mut [u8], record: &Record, crc32: u32) {
    put(entry, 16, &crc32.to_le_bytes());
    let extra = CENTRAL_NBYTES + usize::from(u16_at(entry, 28));
    let is_zip64 = entry.len() >= extra + 4 && u16_at(entry, extra) == ZIP64_ID;
    let mut wide = extra + 4;
    let fields = [
        (24, record.payload.len()),
        (20, record.payload.len()),
        (42, record.header),
    ];
    for (field, value) in fields {
        if put_unless_sentinel(entry, field, value) || !is_zip64 {
            continue;
        }
        if wide + 8 <= entry.len() {
            put(entry, wide, &(value as u64).to_le_bytes());
        }
        wide += 8;
    }
}

fn repair_end(bytes: &mut [u8], directory: usize, mut at: usize, entries: usize) {
    let nbytes = at - directory;
    let end64 = at;
    if is_at(bytes, at, END64, END64_NBYTES) {
        for (field, value) in [(24, entries), (32, entries), (40, nbytes), (48, directory)] {
            put(bytes, at + field, &(value as u64).to_le_bytes());
        }
        at += END64_NBYTES;
    }
    if is_at(bytes, at, LOCATOR, LOCATOR_NBYTES) {
        put(bytes, at + 8, &(end64 as u64).to_le_bytes());
        at += LOCATOR_NBYTES;
    }
    if is_at(bytes, at, END, END_NBYTES) {
        put(bytes, at + 8, &(entries as u16).to_le_bytes());
        put(bytes, at + 10, &(entries as u16).to_le_bytes());
        put_unless_sentinel(bytes, at + 12, nbytes);
        put_unless_sentinel(bytes, at + 16, directory);
    }
}

/// The records of an archive, to be written again in torch's own layout.
#[derive(Debug)]
pub struct Contents {
    /// The root folder.
    pub root: String,
    /// Names without it, and payloads.
    pub records: Vec<(String, Vec<u8>)>,
}

impl Contents {
    /// What can be found in `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut root = String::from("archive");
        let mut found = Vec::new();
        for record in records(bytes) {
            let name = String::from_utf8_lossy(&bytes[record.name]).into_owned();
            let payload = bytes[record.payload].to_vec();
            match name.split_once('/') {
                Some((folder, name)) => {
                    folder.clone_into(&mut root);
                    found.push((name.to_owned(), payload));
                }
                None => found.push((name, payload)),
            }
        }
        Self {
            root,
            records: found,
        }
    }

    /// As torch.save would write these records; `None` where it could not.
    pub fn write(&self) -> Option<Vec<u8>> {
        let spec = |(name, payload): &(String, Vec<u8>)| RecordSpec {
            name: name.clone(),
            nbytes: payload.len() as u64,
        };
        let specs = self.records.iter().map(spec).collect();
        let layout = Layout::plan(&self.root, specs, self.alignment()).ok()?;
        let payloads = self.records.iter().map(|(_, payload)| payload.as_slice());
        Some(render(&layout, payloads))
    }

    fn alignment(&self) -> Alignment {
        let stated = self.records.iter().find_map(|(name, payload)| {
            let digits = std::str::from_utf8(payload).ok()?;
            (name == ".storage_alignment").then(|| digits.parse().ok())?
        });
        stated
            .and_then(|nbytes| Alignment::new(nbytes).ok())
            .unwrap_or(Alignment::TORCH_DEFAULT)
    }
}

/// The file of a layout, one record after the other.
///
/// # Panics
/// Where the parts are not as long as the layout says.
pub fn render<'a>(layout: &Layout, payloads: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut crc32s = Vec::new();
    let mut file = Vec::new();
    for (index, (record, payload)) in layout.records().iter().zip(payloads).enumerate() {
        assert_eq!(record.nbytes, payload.len() as u64);
        assert_eq!(file.len() as u64, record.header_offset);
        file.extend(layout.local_header(index));
        assert_eq!(file.len() as u64, record.payload_offset);
        file.extend(payload);
        let crc32 = crc32(payload);
        file.extend(layout.descriptor(index, crc32));
        crc32s.push(crc32);
    }
    assert_eq!(file.len() as u64, layout.directory_offset());
    file.extend(layout.directory(&crc32s));
    assert_eq!(file.len() as u64, layout.nbytes());
    file
}
