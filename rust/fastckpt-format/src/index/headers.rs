//! Local headers: where the payloads begin, and whether they agree with the directory.

use super::Entry;
use super::source::{Source, WINDOW_NBYTES};
use crate::error::FormatError;
use crate::layout::MAX_NAME_NBYTES;
use crate::zip::{
    FLAG_DESCRIPTOR, LOCAL_NBYTES, LOCAL_SIGNATURE, LocalHeader, METHOD_STORED, SENTINEL32, widen,
    zip64_field,
};

/// What is read of a header at first: the fixed part, a name of usual length, a zip64 field and
/// the padding of torch's default alignment. More is read where this is not enough.
const USUAL_HEADER_NBYTES: u64 = 256;
/// Headers further apart than this are read by themselves: the payload between them would cost
/// more than another read.
const COALESCED_NBYTES: u64 = 64 << 10;

/// Reads the local header of every entry and checks it.
///
/// `flags` are the directory's. Payload offsets that are 0 are set from the headers; those that
/// are known already (from torch's layout) have to be what the headers say. One read covers the
/// headers of neighbouring small records, so an archive of 70,000 scalars takes a few dozen reads.
pub(super) fn read_headers<E, R>(
    source: &mut Source<R>,
    root: &str,
    entries: &mut [Entry],
    flags: &[u16],
    directory_offset: u64,
) -> Result<(), E>
where
    E: From<FormatError>,
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
{
    let untils = read_ahead(entries, directory_offset);
    for ((entry, &flags), until) in entries.iter_mut().zip(flags).zip(untils) {
        let offset = entry.header_offset;
        if entry.payload_offset == 0 {
            let fixed = source.bytes(offset, LOCAL_NBYTES, until)?;
            entry.payload_offset = payload_offset(entry, fixed, directory_offset)?;
        }
        let nbytes = entry.payload_offset.saturating_sub(offset);
        let nbytes = usize::try_from(nbytes).unwrap_or(usize::MAX);
        let bytes = source.bytes(offset, nbytes, until)?;
        check(root, entry, flags, bytes)?;
    }
    Ok(())
}

/// Where the local header that begins with `fixed` ends, if the payload then still fits.
fn payload_offset(entry: &Entry, fixed: &[u8], directory_offset: u64) -> Result<u64, FormatError> {
    // The signature is checked before the lengths: a stray offset is the likelier fault.
    check_signature(entry, fixed)?;
    let header_nbytes = LocalHeader::parse(fixed).map_or(0, |header| header.total_nbytes());
    let offset = entry.header_offset.saturating_add(header_nbytes);
    if offset.saturating_add(entry.nbytes) <= directory_offset {
        return Ok(offset);
    }
    Err(FormatError::OutOfBounds {
        record: entry.name.clone(),
        header_offset: entry.header_offset,
        nbytes: entry.nbytes,
        directory_offset,
    })
}

/// How far it pays to read on at each header: as long as the next header is near, at most a window.
fn read_ahead(entries: &[Entry], directory_offset: u64) -> Vec<u64> {
    let mut untils = vec![0_u64; entries.len()];
    let mut next: Option<(u64, u64)> = None;
    for (until, entry) in untils.iter_mut().zip(entries).rev() {
        let own = entry.header_offset.saturating_add(USUAL_HEADER_NBYTES);
        *until = match next {
            Some((header_offset, until))
                if header_offset <= own.saturating_add(COALESCED_NBYTES) =>
            {
                until.max(own)
            }
            _ => own,
        };
        next = Some((entry.header_offset, *until));
        *until = (*until)
            .min(entry.header_offset.saturating_add(WINDOW_NBYTES))
            .min(directory_offset);
    }
    untils
}

fn mismatch(
    entry: &Entry,
    field: &'static str,
    expected: &dyn std::fmt::Display,
    found: &dyn std::fmt::Display,
) -> FormatError {
    FormatError::LocalHeader {
        record: entry.name.clone(),
        offset: entry.header_offset,
        field,
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

fn check_signature(entry: &Entry, bytes: &[u8]) -> Result<(), FormatError> {
    let found = bytes.get(..4).unwrap_or_default();
    if found == LOCAL_SIGNATURE {
        return Ok(());
    }
    let shown = |signature: &[u8]| format!("{signature:02x?}");
    Err(mismatch(
        entry,
        "signature",
        &shown(&LOCAL_SIGNATURE),
        &shown(found),
    ))
}

/// Checks the local header of `entry` (all its bytes) against what the directory said.
pub(super) fn check(
    root: &str,
    entry: &Entry,
    flags: u16,
    bytes: &[u8],
) -> Result<(), FormatError> {
    check_signature(entry, bytes)?;
    let expected_nbytes = entry.payload_offset.saturating_sub(entry.header_offset);
    let Some(header) = LocalHeader::parse(bytes).filter(|_| bytes.len() as u64 == expected_nbytes)
    else {
        return Err(mismatch(
            entry,
            "bytes of the header",
            &expected_nbytes,
            &bytes.len(),
        ));
    };
    if header.total_nbytes() != expected_nbytes {
        let found = header.total_nbytes();
        return Err(mismatch(
            entry,
            "length with name and extra fields",
            &expected_nbytes,
            &found,
        ));
    }
    if header.flags != flags {
        let shown = |flags: u16| format!("{flags:#06x}");
        return Err(mismatch(
            entry,
            "flags",
            &shown(flags),
            &shown(header.flags),
        ));
    }
    if header.method != METHOD_STORED {
        return Err(mismatch(entry, "compression method", &0, &header.method));
    }
    let tail = bytes.get(LOCAL_NBYTES..).unwrap_or_default();
    let (name, extra) = tail
        .split_at_checked(usize::from(header.name_nbytes))
        .unwrap_or_default();
    let same_name = name
        .strip_prefix(root.as_bytes())
        .and_then(|rest| rest.strip_prefix(b"/"))
        .is_some_and(|rest| rest == entry.name.as_bytes());
    if !same_name {
        let expected = format!("{:?}", format!("{root}/{}", entry.name));
        let shown = name
            .get(..name.len().min(MAX_NAME_NBYTES))
            .unwrap_or_default();
        let found = format!("{:?}", String::from_utf8_lossy(shown));
        return Err(mismatch(entry, "name", &expected, &found));
    }
    check_sizes(entry, &header, extra)
}

/// CRC and sizes are the directory's. With a data descriptor they may be 0, which is what torch
/// writes, whatever the zip64 field says.
fn check_sizes(entry: &Entry, header: &LocalHeader, extra: &[u8]) -> Result<(), FormatError> {
    let extra_error = |problem| FormatError::ExtraField {
        record: entry.name.clone(),
        structure: "local header",
        offset: entry.header_offset,
        problem,
    };
    let mut zip64 = zip64_field(extra).map_err(extra_error)?;
    let later = header.flags & FLAG_DESCRIPTOR != 0;
    let crc32_follows = later && header.crc32 == 0;
    if header.crc32 != entry.crc32 && !crc32_follows {
        let shown = |crc32: u32| format!("{crc32:#010x}");
        return Err(mismatch(
            entry,
            "crc32",
            &shown(entry.crc32),
            &shown(header.crc32),
        ));
    }
    for (field, value) in [
        ("size", header.nbytes),
        ("stored size", header.compressed_nbytes),
    ] {
        let found = match widen(value, &mut zip64) {
            Err(_) if later && value == SENTINEL32 => 0,
            found => found.map_err(extra_error)?,
        };
        if found != entry.nbytes && !(later && found == 0) {
            return Err(mismatch(entry, field, &entry.nbytes, &found));
        }
    }
    Ok(())
}
