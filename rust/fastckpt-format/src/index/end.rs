//! The end records: where the directory lies.

use std::ops::Range;

use super::source::Source;
use crate::error::FormatError;
use crate::zip::{
    END_NBYTES, END_SIGNATURE, END64_NBYTES, END64_UNCOUNTED_NBYTES, End, End64, LOCATOR_NBYTES,
    Locator, SENTINEL16, SENTINEL32,
};

/// How far before the end of the file the end record may begin: its own size and the longest
/// comment. miniz, through which torch reads, looks no further either.
const SEARCHED_NBYTES: u64 = (END_NBYTES as u64).saturating_add(u16::MAX as u64);
/// What torch puts in front of the end record; read in the same go.
const ZIP64_NBYTES: u64 = (END64_NBYTES as u64).saturating_add(LOCATOR_NBYTES as u64);

const END: &str = "end of central directory";
const LOCATOR: &str = "zip64 end of central directory locator";
const END64: &str = "zip64 end of central directory";

/// What the end records say about the directory, checked against each other and the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) range: Range<u64>,
    pub(super) entries: u64,
}

/// Finds the directory as miniz does: by the last end record in the file's last 64 KiB, and by
/// the zip64 records before it if the locator is there.
pub(super) fn find_directory<E, R>(source: &mut Source<R>) -> Result<Directory, E>
where
    E: From<FormatError>,
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
{
    let (end, end_offset) = find_end(source)?;
    let end64 = find_end64(source, end_offset)?;
    let (first_end_offset, directory) = match end64 {
        Some((end64, end64_offset)) => {
            check_end64(&end64, end64_offset)?;
            (
                end64_offset,
                (
                    end64.directory_offset,
                    end64.directory_nbytes,
                    end64.entries,
                ),
            )
        }
        None => (
            end_offset,
            (
                u64::from(end.directory_offset),
                u64::from(end.directory_nbytes),
                u64::from(end.entries),
            ),
        ),
    };
    let (offset, nbytes, entries) = directory;
    check_end(&end, end_offset, offset, nbytes, entries)?;
    // Equality, not "at most": tools that find the directory from the end of the file and tools
    // that find it by its offset then see the same one, and nothing hides between the two.
    let found = offset.saturating_add(nbytes);
    same(
        END,
        end_offset,
        "end of the directory",
        first_end_offset,
        found,
    )?;
    Ok(Directory {
        range: offset..first_end_offset,
        entries,
    })
}

fn same(
    structure: &'static str,
    offset: u64,
    field: &'static str,
    expected: u64,
    found: u64,
) -> Result<(), FormatError> {
    if expected == found {
        return Ok(());
    }
    Err(FormatError::EndRecord {
        structure,
        offset,
        field,
        expected,
        found,
    })
}

fn find_end<E, R>(source: &mut Source<R>) -> Result<(End, u64), E>
where
    E: From<FormatError>,
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
{
    let file_nbytes = source.file_nbytes();
    let tail_nbytes = SEARCHED_NBYTES
        .saturating_add(ZIP64_NBYTES)
        .min(file_nbytes);
    let tail_offset = file_nbytes.saturating_sub(tail_nbytes);
    let searched = SEARCHED_NBYTES.min(file_nbytes);
    let first_candidate = usize::try_from(tail_nbytes.saturating_sub(searched)).unwrap_or(0);
    let tail_len = usize::try_from(tail_nbytes).unwrap_or(usize::MAX);
    let tail = source.bytes(tail_offset, tail_len, 0)?;
    let found = tail
        .windows(END_NBYTES)
        .enumerate()
        .skip(first_candidate)
        .rev()
        .find_map(|(at, bytes)| {
            bytes
                .starts_with(&END_SIGNATURE)
                .then_some(at)
                .zip(End::parse(bytes))
        });
    match found {
        Some((at, end)) => Ok((end, tail_offset.saturating_add(at as u64))),
        None => Err(FormatError::NoEndRecord {
            searched,
            file_nbytes,
        }
        .into()),
    }
}

/// The zip64 end record, by the locator in front of the end record.
fn find_end64<E, R>(source: &mut Source<R>, end_offset: u64) -> Result<Option<(End64, u64)>, E>
where
    E: From<FormatError>,
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
{
    let Some(locator_offset) = end_offset.checked_sub(LOCATOR_NBYTES as u64) else {
        return Ok(None);
    };
    let Some(locator) = Locator::parse(source.bytes(locator_offset, LOCATOR_NBYTES, 0)?) else {
        return Ok(None);
    };
    same(LOCATOR, locator_offset, "disk", 0, u64::from(locator.disk))?;
    // Some writers count disks from 0.
    if locator.disks > 1 {
        same(
            LOCATOR,
            locator_offset,
            "number of disks",
            1,
            u64::from(locator.disks),
        )?;
    }
    let end64_offset = locator.end64_offset;
    let last = locator_offset.saturating_sub(END64_NBYTES as u64);
    let stray = |field| FormatError::EndRecord {
        structure: LOCATOR,
        offset: locator_offset,
        field,
        expected: last,
        found: end64_offset,
    };
    if end64_offset > last {
        return Err(stray("offset of the zip64 end record").into());
    }
    let bytes = source.bytes(end64_offset, END64_NBYTES, 0)?;
    let end64 = End64::parse(bytes)
        .ok_or_else(|| stray("offset of the zip64 end record (no PK\\x06\\x06 there)"))?;
    let expected = locator_offset
        .saturating_sub(end64_offset)
        .saturating_sub(END64_UNCOUNTED_NBYTES);
    same(
        END64,
        end64_offset,
        "size of the record",
        expected,
        end64.record_nbytes,
    )?;
    Ok(Some((end64, end64_offset)))
}

fn check_end64(end64: &End64, offset: u64) -> Result<(), FormatError> {
    same(END64, offset, "disk", 0, u64::from(end64.disk))?;
    same(
        END64,
        offset,
        "disk of the directory",
        0,
        u64::from(end64.directory_disk),
    )?;
    same(
        END64,
        offset,
        "entries on this disk",
        end64.entries,
        end64.disk_entries,
    )
}

/// The end record says the same as `offset`, `nbytes` and `entries`, or nothing (the sentinel).
fn check_end(
    end: &End,
    end_offset: u64,
    offset: u64,
    nbytes: u64,
    entries: u64,
) -> Result<(), FormatError> {
    let at = end_offset;
    same(END, at, "disk", 0, u64::from(end.disk))?;
    same(
        END,
        at,
        "disk of the directory",
        0,
        u64::from(end.directory_disk),
    )?;
    same(
        END,
        at,
        "entries on this disk",
        u64::from(end.entries),
        u64::from(end.disk_entries),
    )?;
    if end.entries != SENTINEL16 {
        same(END, at, "entries", entries, u64::from(end.entries))?;
    }
    if end.directory_nbytes != SENTINEL32 {
        same(
            END,
            at,
            "size of the directory",
            nbytes,
            u64::from(end.directory_nbytes),
        )?;
    }
    if end.directory_offset != SENTINEL32 {
        same(
            END,
            at,
            "offset of the directory",
            offset,
            u64::from(end.directory_offset),
        )?;
    }
    Ok(())
}
