//! The alignment that an archive states, and whether its records lie as torch lays them out for it.

use super::Entry;
use super::names::Names;
use super::source::Source;
use crate::error::FormatError;
use crate::layout::{Alignment, Layout, RecordSpec};
use crate::zip::{LOCAL_NBYTES, LOCAL_SIGNATURE, LocalHeader};

/// Reads `.storage_alignment`, the only record whose contents decide where others lie.
///
/// Whatever is wrong with it is not an error here: without a sound alignment there is no layout,
/// every local header is read, and that finds what there is to find.
pub(super) fn stated_alignment<E, R>(
    source: &mut Source<R>,
    root: &str,
    names: &Names,
    entries: &[Entry],
    directory_offset: u64,
) -> Result<Option<Alignment>, E>
where
    E: From<FormatError>,
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
{
    /// The decimal digits of 2^64.
    const LONGEST_NBYTES: u64 = 20;
    let Some(position) = names.find(".storage_alignment") else {
        return Ok(Some(Alignment::TORCH_DEFAULT));
    };
    let entry = entries
        .get(position)
        .filter(|entry| entry.nbytes <= LONGEST_NBYTES);
    let Some(entry) = entry else {
        return Ok(None);
    };
    let at = entry.header_offset;
    // One read for header, padding and payload at any usual alignment.
    let until = at.saturating_add(4 << 10).min(directory_offset);
    let fixed = source.bytes(at, LOCAL_NBYTES, until)?;
    let header = LocalHeader::parse(fixed).filter(|header| header.signature == LOCAL_SIGNATURE);
    let Some(header) = header else {
        return Ok(None);
    };
    let offset = at.saturating_add(header.total_nbytes());
    let name_nbytes = root
        .len()
        .saturating_add(1)
        .saturating_add(entry.name.len());
    let in_place = usize::from(header.name_nbytes) == name_nbytes
        && offset.saturating_add(entry.nbytes) <= directory_offset;
    if !in_place {
        return Ok(None);
    }
    let digits = source.bytes(offset, usize::try_from(entry.nbytes).unwrap_or(0), until)?;
    Ok(parse_alignment(digits))
}

fn parse_alignment(digits: &[u8]) -> Option<Alignment> {
    let text = std::str::from_utf8(digits).ok()?;
    // str::parse would take a sign.
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(())?;
    Alignment::new(text.parse().ok()?).ok()
}

/// torch's layout of these records, if the headers are where it has them.
pub(super) fn torch_layout(root: &str, entries: &[Entry], alignment: Alignment) -> Option<Layout> {
    let spec = |entry: &Entry| RecordSpec {
        name: entry.name.clone(),
        nbytes: entry.nbytes,
    };
    let layout = Layout::plan(root, entries.iter().map(spec).collect(), alignment).ok()?;
    let same = entries
        .iter()
        .zip(layout.records())
        .all(|(entry, record)| entry.header_offset == record.header_offset);
    same.then_some(layout)
}
