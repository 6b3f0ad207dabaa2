//! The entries of the central directory, each checked by itself.

use std::ops::Range;

use super::end::Directory;
use super::source::Source;
use crate::error::FormatError;
use crate::layout::MAX_NAME_NBYTES;
use crate::zip::{
    CENTRAL_NBYTES, CENTRAL_SIGNATURE, CentralEntry, FLAGS_ALLOWED, LOCAL_NBYTES, METHOD_STORED,
    widen, zip64_field,
};

const STRUCTURE: &str = "directory entry";

/// The MS-DOS attribute of a directory, APPNOTE 4.4.15. miniz, through which torch reads, gives
/// memory that it has not filled for the payload of a record that has it.
const DIRECTORY_ATTRIBUTE: u32 = 0x10;
/// The newest version of the zip format, 6.3; Python's zipfile reads nothing that needs a newer one.
const NEWEST_VERSION: u8 = 63;

/// What the directory says of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Name without the root folder.
    pub(super) name: String,
    pub(super) header_offset: u64,
    pub(super) nbytes: u64,
    pub(super) crc32: u32,
    pub(super) flags: u16,
    /// Compression method.
    pub(super) method: u16,
}

/// All entries in the order of the directory, and their root folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) root: String,
    pub(super) records: Vec<Listed>,
}

/// Reads the directory, window by window. Memory grows with the entries that are really there,
/// never with the number that the end record claims.
pub(super) fn read_directory<E, R>(
    source: &mut Source<R>,
    directory: &Directory,
) -> Result<Listing, E>
where
    E: From<FormatError>,
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
{
    let Range { start, end } = directory.range;
    let mut listing = Listing::default();
    let mut at = start;
    let mut position = 0_u64;
    while at < end {
        let fixed = require(source, at, CENTRAL_NBYTES, end, position)?;
        let central = parse_fixed(fixed, at, position)?;
        let total = CENTRAL_NBYTES.saturating_add(central.tail_nbytes());
        let bytes = require(source, at, total, end, position)?;
        let tail = bytes.get(CENTRAL_NBYTES..).unwrap_or_default();
        list_entry(&mut listing, &central, tail, at, start)?;
        at = at.saturating_add(total as u64);
        position = position.saturating_add(1);
    }
    if position != directory.entries {
        return Err(FormatError::EndRecord {
            structure: "end of central directory",
            offset: end,
            field: "entries",
            expected: position,
            found: directory.entries,
        }
        .into());
    }
    Ok(listing)
}

/// `nbytes` bytes of the directory at `offset`, or an error that says that it ends before.
fn require<E, R>(
    source: &mut Source<R>,
    offset: u64,
    nbytes: usize,
    end: u64,
    entry: u64,
) -> Result<&[u8], E>
where
    E: From<FormatError>,
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
{
    let left = end.saturating_sub(offset);
    if left < nbytes as u64 {
        return Err(FormatError::DirectoryEntry {
            entry,
            offset,
            expected: "a whole entry before the end of the directory",
            found: format!("{left} of {nbytes} bytes"),
        }
        .into());
    }
    source.bytes(offset, nbytes, end)
}

fn parse_fixed(bytes: &[u8], offset: u64, entry: u64) -> Result<CentralEntry, FormatError> {
    match CentralEntry::parse(bytes) {
        Some(central) if central.signature == CENTRAL_SIGNATURE => Ok(central),
        _ => Err(FormatError::DirectoryEntry {
            entry,
            offset,
            expected: "signature PK\\x01\\x02",
            found: format!("{:02x?}", bytes.get(..4).unwrap_or_default()),
        }),
    }
}

/// Checks one entry and adds it to the listing. `tail` is its name, extra fields and comment.
fn list_entry(
    listing: &mut Listing,
    central: &CentralEntry,
    tail: &[u8],
    offset: u64,
    directory_offset: u64,
) -> Result<(), FormatError> {
    let (name, rest) = tail
        .split_at_checked(usize::from(central.name_nbytes))
        .unwrap_or_default();
    let extra = rest
        .get(..usize::from(central.extra_nbytes))
        .unwrap_or_default();
    let full_name = check_name(name, offset)?;
    let name = strip_root(
        &mut listing.root,
        full_name,
        listing.records.is_empty(),
        offset,
    )?;
    if central.flags & !FLAGS_ALLOWED != 0 {
        let (record, found) = (name.to_owned(), central.flags);
        return Err(FormatError::Flags {
            record,
            allowed: FLAGS_ALLOWED,
            found,
        });
    }
    let extra_error = |problem| FormatError::ExtraField {
        record: name.to_owned(),
        structure: STRUCTURE,
        offset,
        problem,
    };
    let mut zip64 = zip64_field(extra).map_err(extra_error)?;
    let nbytes = widen(central.nbytes, &mut zip64).map_err(extra_error)?;
    let compressed_nbytes = widen(central.compressed_nbytes, &mut zip64).map_err(extra_error)?;
    let header_offset = widen(central.header_offset, &mut zip64).map_err(extra_error)?;
    if central.disk != 0 {
        return Err(extra_error("a disk number other than 0"));
    }
    if central.external_attributes & DIRECTORY_ATTRIBUTE != 0 {
        return Err(extra_error("the attribute of a directory"));
    }
    let [version, _host_system] = central.version_needed.to_le_bytes();
    if version > NEWEST_VERSION {
        return Err(extra_error("a version of the zip format above 6.3"));
    }
    if central.method == METHOD_STORED && compressed_nbytes != nbytes {
        let record = name.to_owned();
        return Err(FormatError::Sizes {
            record,
            compressed_nbytes,
            nbytes,
        });
    }
    let record = Listed {
        name: name.to_owned(),
        header_offset,
        nbytes: compressed_nbytes,
        crc32: central.crc32,
        flags: central.flags,
        method: central.method,
    };
    check_bounds(&record, full_name.len(), directory_offset)?;
    listing.records.push(record);
    Ok(())
}

/// The shortest the record can be lies before the directory.
fn check_bounds(
    record: &Listed,
    name_nbytes: usize,
    directory_offset: u64,
) -> Result<(), FormatError> {
    let end = record
        .header_offset
        .checked_add(LOCAL_NBYTES as u64)
        .and_then(|end| end.checked_add(name_nbytes as u64))
        .and_then(|end| end.checked_add(record.nbytes));
    if end.is_some_and(|end| end <= directory_offset) {
        return Ok(());
    }
    Err(FormatError::OutOfBounds {
        record: record.name.clone(),
        header_offset: record.header_offset,
        nbytes: record.nbytes,
        directory_offset,
    })
}

fn check_name(name: &[u8], offset: u64) -> Result<&str, FormatError> {
    let problem = match std::str::from_utf8(name) {
        Ok(_) if name.contains(&0) => "the name contains a NUL",
        Ok(_) if name.len() > MAX_NAME_NBYTES => "the name is longer than 511 bytes",
        Ok(name) => return Ok(name),
        Err(_) => "the name is not UTF-8",
    };
    let shown = name.get(..name.len().min(64)).unwrap_or_default();
    Err(FormatError::Name {
        name: String::from_utf8_lossy(shown).into_owned(),
        offset,
        problem,
    })
}

/// The name without its root folder, which is that of the first entry.
fn strip_root<'a>(
    root: &mut String,
    full_name: &'a str,
    first: bool,
    offset: u64,
) -> Result<&'a str, FormatError> {
    if first {
        match full_name.split_once('/') {
            Some((folder, _)) if !folder.is_empty() => folder.clone_into(root),
            _ => {
                return Err(FormatError::Name {
                    name: full_name.to_owned(),
                    offset,
                    problem: "the record is in no root folder",
                });
            }
        }
    }
    full_name
        .strip_prefix(root.as_str())
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| FormatError::SecondRoot {
            name: full_name.to_owned(),
            root: root.clone(),
        })
}
