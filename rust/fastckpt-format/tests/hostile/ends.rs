//! The file as a whole, its end records and the directory that they point to.

use fastckpt_format::FormatError;
use fastckpt_format::index::Index;

use crate::support::{Verdict, find, parse, patched, small_archive, verdict};
use crate::{END, END64, EXTRA_LENGTH, LOCATOR, message, refused, with_end, with_entry};

#[test]
fn empty_file() {
    refused(b"", "the file is empty");
}

#[test]
fn not_a_zip() {
    refused(
        b"hello",
        "not a torch zip archive: the file begins with [68, 65, 6c, 6c], expected [50, 4b, 03, 04] (PK\\x03\\x04)",
    );
    refused(
        b"PK",
        "not a torch zip archive: the file begins with [50, 4b], expected [50, 4b, 03, 04] (PK\\x03\\x04)",
    );
}

#[test]
fn junk_in_front() {
    let mut bytes = b"junk".to_vec();
    bytes.extend(small_archive());
    assert!(matches!(
        parse(&bytes),
        Err(FormatError::NotAnArchive { .. })
    ));
    // Even where the junk looks like a record, the offsets no longer fit.
    let mut bytes = b"PK\x03\x04".to_vec();
    bytes.extend(small_archive());
    assert!(
        message(&bytes).contains("no PK\\x06\\x06 there"),
        "{}",
        message(&bytes)
    );
}

#[test]
fn truncated() {
    let good = small_archive();
    let nbytes = good.len() - 1;
    refused(
        &good[..nbytes],
        &format!(
            "no end of central directory (PK\\x05\\x06) in the last {nbytes} bytes of {nbytes}: the file is truncated or overwritten"
        ),
    );
}

#[test]
fn zero_filled_tail() {
    let good = small_archive();
    let zeros = vec![0; good.len() / 2];
    let bytes = patched(&good, good.len() - zeros.len(), &zeros);
    assert!(matches!(
        parse(&bytes),
        Err(FormatError::NoEndRecord { .. })
    ));
}

#[test]
fn trailing_junk_is_readable_as_in_torch_but_reported() {
    let mut bytes = small_archive();
    bytes.resize(bytes.len() + 65_535, b'j');
    assert_eq!(parse(&bytes).unwrap().entries().len(), 5);
    assert_eq!(
        verdict(&bytes),
        Verdict::Framing {
            mismatched: 1,
            is_torch: true
        }
    );
    bytes.push(b'j');
    assert!(matches!(
        parse(&bytes),
        Err(FormatError::NoEndRecord {
            searched: 65_557,
            ..
        })
    ));
}

#[test]
fn false_end_record_in_a_comment() {
    let mut bytes = with_end(END, 20, &22_u16.to_le_bytes());
    let directory = find(&bytes, b"PK\x01\x02", 0);
    bytes.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    bytes.extend(50_u32.to_le_bytes());
    bytes.extend(u32::try_from(directory).unwrap().to_le_bytes());
    bytes.extend(b"\0\0");
    let end = bytes.len() - END;
    refused(
        &bytes,
        &format!(
            "end of central directory at offset {end}: end of the directory: expected {end}, found {}",
            directory + 50
        ),
    );
}

#[test]
fn several_disks() {
    let cases = [
        (
            LOCATOR,
            4,
            "zip64 end of central directory locator",
            "disk: expected 0, found 1",
        ),
        (
            LOCATOR,
            16,
            "zip64 end of central directory locator",
            "number of disks: expected 1, found 257",
        ),
        (
            END64,
            16,
            "zip64 end of central directory",
            "disk: expected 0, found 1",
        ),
        (
            END64,
            20,
            "zip64 end of central directory",
            "disk of the directory: expected 0, found 1",
        ),
        (
            END64,
            24,
            "zip64 end of central directory",
            "entries on this disk: expected 5, found 1",
        ),
        (
            END,
            4,
            "end of central directory",
            "disk: expected 0, found 1",
        ),
        (
            END,
            6,
            "end of central directory",
            "disk of the directory: expected 0, found 1",
        ),
        (
            END,
            8,
            "end of central directory",
            "entries on this disk: expected 5, found 1",
        ),
    ];
    for (from_end, field, structure, problem) in cases {
        let patch: &[u8] = if problem.contains("257") {
            b"\x01\x01"
        } else {
            b"\x01"
        };
        let bytes = with_end(from_end, field, patch);
        let offset = bytes.len() - from_end;
        refused(
            &bytes,
            &format!("{structure} at offset {offset}: {problem}"),
        );
    }
}

#[test]
fn lies_of_the_zip64_records() {
    let good = small_archive();
    let (end64, locator) = (good.len() - END64, good.len() - LOCATOR);
    let directory = find(&good, b"PK\x01\x02", 0);
    let nbytes = end64 - directory;
    let stray = |field, found: u64| {
        format!(
            "zip64 end of central directory locator at offset {locator}: {field}: expected {end64}, found {found}"
        )
    };
    refused(
        &with_end(LOCATOR, 8, &u64::MAX.to_le_bytes()),
        &stray("offset of the zip64 end record", u64::MAX),
    );
    refused(
        &with_end(LOCATOR, 8, &4_u64.to_le_bytes()),
        &stray("offset of the zip64 end record (no PK\\x06\\x06 there)", 4),
    );
    let in_end64 =
        |problem: String| format!("zip64 end of central directory at offset {end64}: {problem}");
    refused(
        &with_end(END64, 4, &45_u64.to_le_bytes()),
        &in_end64("size of the record: expected 44, found 45".to_owned()),
    );
    let in_end = |problem: String| {
        format!(
            "end of central directory at offset {}: {problem}",
            good.len() - END
        )
    };
    // What the end record says too has to be the same there.
    refused(
        &with_end(END64, 40, &u64::MAX.to_le_bytes()),
        &in_end(format!(
            "size of the directory: expected {}, found {nbytes}",
            u64::MAX
        )),
    );
    refused(
        &with_end(END64, 48, &(1_u64 << 62).to_le_bytes()),
        &in_end(format!(
            "offset of the directory: expected {}, found {directory}",
            1_u64 << 62
        )),
    );
    // Without the locator's signature there is a hole between directory and end record.
    refused(
        &with_end(LOCATOR, 0, b"QK"),
        &in_end(format!(
            "end of the directory: expected {}, found {end64}",
            good.len() - END
        )),
    );
}

/// A count that both end records claim, and that the directory does not have.
#[test]
fn more_entries_claimed_than_there_are() {
    let good = small_archive();
    let end64 = good.len() - END64;
    let claimed = (u64::from(u32::MAX) + 1).to_le_bytes();
    let bytes = patched(&good, end64 + 24, &claimed);
    let bytes = patched(&bytes, end64 + 32, &claimed);
    let bytes = patched(&bytes, good.len() - END + 8, &[0xff; 4]);
    refused(
        &bytes,
        &format!(
            "end of central directory at offset {end64}: entries: expected 5, found 4294967296"
        ),
    );
}

#[test]
fn directory_that_is_none() {
    let good = small_archive();
    let entry = find(&good, b"PK\x01\x02", 1);
    refused(
        &with_entry(1, 0, b"\0\0\0\0"),
        &format!(
            "central directory entry 1 at offset {entry}: expected signature PK\\x01\\x02, found [00, 00, 00, 00]"
        ),
    );
    let last = find(&good, b"PK\x01\x02", 4);
    refused(
        &with_entry(4, EXTRA_LENGTH, &[1, 0]),
        &format!(
            "central directory entry 4 at offset {last}: expected a whole entry before the end of the directory, found 55 of 56 bytes"
        ),
    );
}

#[test]
fn sparse_file_of_eight_exbibytes() {
    let good = small_archive();
    let tail = &good[good.len() - END64..];
    let file_nbytes = i64::MAX.unsigned_abs();
    let directory_offset = 1_u64 << 20;
    let end64_offset = file_nbytes - END64 as u64;
    let mut tail = patched(tail, 40, &(end64_offset - directory_offset).to_le_bytes());
    tail = patched(&tail, 48, &directory_offset.to_le_bytes());
    tail = patched(&tail, END64 - LOCATOR + 8, &end64_offset.to_le_bytes());
    tail = patched(&tail, END64 - END + 12, &[0xff; 8]);
    let mut nbytes_read = 0;
    let result = Index::parse(file_nbytes, |offset, nbytes| {
        nbytes_read += nbytes;
        let mut bytes = vec![0; nbytes];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let at = offset + i as u64;
            if at < 4 {
                *byte = b"PK\x03\x04"[i];
            } else if let Some(at) = at.checked_sub(end64_offset) {
                *byte = tail[usize::try_from(at).unwrap()];
            }
        }
        Ok::<_, FormatError>(bytes)
    });
    assert_eq!(
        result.unwrap_err().to_string(),
        "central directory entry 0 at offset 1048576: expected signature PK\\x01\\x02, found [00, 00, 00, 00]"
    );
    assert!(nbytes_read < 2 << 20, "{nbytes_read} bytes read");
}

#[test]
fn file_that_shrinks_while_it_is_read() {
    let good = small_archive();
    let result = Index::parse(good.len() as u64, |_, nbytes| {
        Ok::<_, FormatError>(good[..nbytes.min(100)].to_vec())
    });
    assert_eq!(
        result.unwrap_err().to_string(),
        format!(
            "the file ends early: expected {} bytes at offset 0, found 100",
            good.len()
        )
    );
}
