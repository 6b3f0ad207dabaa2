//! Extra fields: where the sizes stand that do not fit into 32 bits.

use super::{Cursor, SENTINEL32, ZIP64_ID};

/// Extra field id of the Info-ZIP Unicode path, 4.6.9: a name that some readers (Python's zipfile since
/// 3.13) take in place of the header's, and others (torch) do not.
const UNICODE_PATH_ID: u16 = 0x7075;

/// What is wrong with extra fields, in words.
const EXTRA_MALFORMED: &str = "malformed extra fields";
/// What is wrong with extra fields, in words.
const ZIP64_TWICE: &str = "two zip64 fields";
/// What is wrong with extra fields, in words.
const ZIP64_SHORT: &str = "zip64 field absent or too short";

/// Problem of an extra field with another name than the header's.
const SECOND_NAME: &str = "a second name (Info-ZIP Unicode path)";

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
