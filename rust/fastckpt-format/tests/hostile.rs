//! One file for each thing the parser refuses, with its message.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use fastckpt_format::FormatError;
use fastckpt_format::index::{Index, Kind};

use support::{Verdict, archive, find, parse, parse_with_headers, patched, small_archive, verdict};

/// Fields of a directory entry, APPNOTE 4.3.12.
const VERSION_NEEDED: usize = 6;
const FLAGS: usize = 8;
const METHOD: usize = 10;
const STORED_SIZE: usize = 20;
const SIZE: usize = 24;
const EXTRA_LENGTH: usize = 30;
const DISK: usize = 34;
const EXTERNAL_ATTRIBUTES: usize = 38;
const HEADER_OFFSET: usize = 42;
const NAME: usize = 46;

/// Distances from the end of the file.
const END: usize = 22;
const LOCATOR: usize = END + 20;
const END64: usize = LOCATOR + 56;

/// `small_archive` with `patch` in a field of the directory entry at `position`.
fn with_entry(position: usize, field: usize, patch: &[u8]) -> Vec<u8> {
    let good = small_archive();
    let entry = find(&good, b"PK\x01\x02", position);
    patched(&good, entry + field, patch)
}

/// `small_archive` with `patch` so far from the start of the structure that begins `from_end`
/// bytes before the end.
fn with_end(from_end: usize, field: usize, patch: &[u8]) -> Vec<u8> {
    let good = small_archive();
    let at = good.len() - from_end + field;
    patched(&good, at, patch)
}

fn message(bytes: &[u8]) -> String {
    parse(bytes).expect_err("it is refused").to_string()
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    assert_eq!(message(bytes), expected);
}

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

#[test]
fn encrypted_or_unknown_flags() {
    refused(
        &with_entry(2, FLAGS, &0x0809_u16.to_le_bytes()),
        "record \"data/0\": flags 0x0809 have bits outside 0x080e (encrypted or unknown)",
    );
}

#[test]
fn compressed() {
    refused(
        &with_entry(2, METHOD, &8_u16.to_le_bytes()),
        "record \"data/0\" is compressed (method 8), expected stored (method 0); the archive is a checkpoint of torch.save",
    );
}

#[test]
fn two_sizes() {
    refused(
        &with_entry(2, SIZE, &11_u32.to_le_bytes()),
        "record \"data/0\": stored sizes differ: 10 and 11 bytes",
    );
}

#[test]
fn sizes_and_offsets_past_the_end() {
    let good = small_archive();
    let directory = find(&good, b"PK\x01\x02", 0);
    let huge = u32::MAX - 1;
    let sizes = [huge.to_le_bytes(), huge.to_le_bytes()].concat();
    let header = find(&good, b"PK\x03\x04", 2);
    refused(
        &with_entry(2, STORED_SIZE, &sizes),
        &format!(
            "record \"data/0\": {huge} bytes from header offset {header} do not fit before the central directory at {directory}"
        ),
    );
    refused(
        &with_entry(2, HEADER_OFFSET, &huge.to_le_bytes()),
        &format!(
            "record \"data/0\": 10 bytes from header offset {huge} do not fit before the central directory at {directory}"
        ),
    );
}

/// Sizes near 2^64 in a zip64 field must not wrap around.
#[test]
fn zip64_sizes_that_overflow() {
    let mut bytes = archive("m", &[("data.pkl", b"p"), ("data/0", b"x")], 1);
    let entry = find(&bytes, b"PK\x01\x02", 1);
    let directory = find(&bytes, b"PK\x01\x02", 0);
    let header = find(&bytes, b"PK\x03\x04", 1);
    bytes = patched(&bytes, entry + STORED_SIZE, &[0xff; 8]);
    bytes = patched(&bytes, entry + EXTRA_LENGTH, &20_u16.to_le_bytes());
    let nbytes = u64::MAX - 3;
    let field = [
        &b"\x01\0\x10\0"[..],
        &nbytes.to_le_bytes(),
        &nbytes.to_le_bytes(),
    ]
    .concat();
    let at = entry + NAME + "m/data/0".len();
    bytes.splice(at..at, field);
    let end64 = bytes.len() - END64;
    let directory_nbytes = (end64 - directory) as u64;
    bytes = patched(&bytes, end64 + 40, &directory_nbytes.to_le_bytes());
    bytes = patched(&bytes, end64 + 56 + 8, &(end64 as u64).to_le_bytes());
    let end = bytes.len() - END;
    bytes = patched(&bytes, end + 12, &[0xff; 4]);
    refused(
        &bytes,
        &format!(
            "record \"data/0\": {nbytes} bytes from header offset {header} do not fit before the central directory at {directory}"
        ),
    );
}

#[test]
fn extra_fields_that_are_none() {
    let good = small_archive();
    let entry = find(&good, b"PK\x01\x02", 2);
    let problem =
        |problem| format!("record \"data/0\": {problem} in the directory entry at offset {entry}");
    refused(
        &with_entry(2, SIZE, &[0xff; 4]),
        &problem("zip64 field absent or too short"),
    );
    refused(
        &with_entry(2, DISK, &[1, 0]),
        &problem("a disk number other than 0"),
    );
    // torch would return memory that nobody has filled.
    refused(
        &with_entry(2, EXTERNAL_ATTRIBUTES, &[0x10]),
        &problem("the attribute of a directory"),
    );
    refused(
        &with_entry(2, VERSION_NEEDED, &[64]),
        &problem("a version of the zip format above 6.3"),
    );
    assert!(parse(&with_entry(2, VERSION_NEEDED, &[63, 3])).is_ok());
}

#[test]
fn overlapping_records() {
    let good = small_archive();
    let next = find(&good, b"PK\x03\x04", 3);
    let size = 12_u32.to_le_bytes();
    let grown = with_entry(2, STORED_SIZE, &[size, size].concat());
    // The last 4 of 16 descriptor bytes are optional, so 12 + 12 fit where 10 + 16 did not.
    assert_eq!(verdict(&grown), Verdict::Checksum(2));
    let size = 15_u32.to_le_bytes();
    let payload = find(&good, b"0123456789", 0);
    refused(
        &with_entry(2, STORED_SIZE, &[size, size].concat()),
        &format!(
            "record \"data/0\" ends at offset {}, inside what begins at {next} (\"data/1\")",
            payload + 15 + 12
        ),
    );
}

/// A whole record inside another one's payload: each by itself is sound.
#[test]
fn record_inside_a_record() {
    let inner = archive("m", &[("data/0", b"inner")], 1);
    let header = find(&inner, b"PK\x01\x02", 0);
    let good = archive(
        "m",
        &[("data.pkl", &inner[..header]), ("data/0", b"inner")],
        1,
    );
    let nested = find(&good, b"PK\x03\x04", 1);
    let outer_end = nested + header + 12;
    let entry = find(&good, b"PK\x01\x02", 1);
    let offset = u32::try_from(nested).unwrap().to_le_bytes();
    refused(
        &patched(&good, entry + HEADER_OFFSET, &offset),
        &format!(
            "record \"data.pkl\" ends at offset {outer_end}, inside what begins at {nested} (\"data/0\")"
        ),
    );
}

#[test]
fn two_records_at_one_place() {
    let good = small_archive();
    let first = u32::try_from(find(&good, b"PK\x03\x04", 2)).unwrap();
    let bytes = with_entry(3, HEADER_OFFSET, &first.to_le_bytes());
    assert!(matches!(
        parse(&bytes),
        Err(FormatError::LocalHeader { field: "flags", .. })
    ));
}

#[test]
fn offset_without_a_local_header() {
    let good = small_archive();
    let at = find(&good, b"PK\x03\x04", 2) + 1;
    let bytes = with_entry(2, HEADER_OFFSET, &u32::try_from(at).unwrap().to_le_bytes());
    refused(
        &bytes,
        &format!(
            "record \"data/0\": local header at offset {at}: signature: expected [50, 4b, 03, 04], found [4b, 03, 04, 00]"
        ),
    );
}

/// A local header that says other things than the directory is what loaders and scanners disagree on.
#[test]
fn local_headers_that_contradict() {
    let good = small_archive();
    let index = parse(&good).unwrap();
    let entry = &index.entries()[2];
    let header = usize::try_from(entry.header_offset).unwrap();
    let payload = usize::try_from(entry.payload_offset).unwrap();
    assert_eq!(index.check_local_header(2, &good[header..payload]), Ok(()));
    for (field, patch, problem) in [
        (6, &b"\x09"[..], "flags: expected 0x0808, found 0x0809"),
        (8, &b"\x08"[..], "compression method: expected 0, found 8"),
        (
            14,
            &b"\x01"[..],
            "crc32: expected 0xa684c7c6, found 0x00000001",
        ),
        (18, &b"\x01"[..], "stored size: expected 10, found 1"),
        (22, &b"\x01"[..], "size: expected 10, found 1"),
        (
            26,
            &b"\x07"[..],
            "length with name and extra fields: expected 47, found 46",
        ),
        (
            28,
            &b"\x08"[..],
            "length with name and extra fields: expected 47, found 46",
        ),
        (
            34,
            &b"A"[..],
            "name: expected \"m/data/0\", found \"m/daAa/0\"",
        ),
    ] {
        let bytes = patched(&good, header + field, patch);
        assert!(parse_with_headers(&bytes).is_err(), "{problem}");
        assert_eq!(
            index
                .check_local_header(2, &bytes[header..payload])
                .unwrap_err()
                .to_string(),
            format!("record \"data/0\": local header at offset {header}: {problem}")
        );
    }
    assert_eq!(
        index
            .check_local_header(2, &good[header..payload - 1])
            .unwrap_err()
            .to_string(),
        format!(
            "record \"data/0\": local header at offset {header}: bytes of the header: expected 47, found 46"
        )
    );
    assert_eq!(
        index.check_local_header(9, b"").unwrap_err().to_string(),
        "the archive has 5 records, there is none at position 9"
    );
}

#[test]
fn names_that_no_loader_may_use() {
    let good = small_archive();
    let entry = find(&good, b"PK\x01\x02", 2);
    let problem =
        |name, problem| format!("record {name} (directory entry at offset {entry}): {problem}");
    refused(
        &with_entry(2, NAME + 2, b"da\0a/0"),
        &problem("\"m/da\\0a/0\"", "the name contains a NUL"),
    );
    refused(
        &with_entry(2, NAME + 2, b"da\xffa/0"),
        &problem("\"m/da\u{fffd}a/0\"", "the name is not UTF-8"),
    );
    let first = find(&good, b"PK\x01\x02", 0);
    refused(
        &with_entry(0, NAME, b"m.data.pkl"),
        &format!(
            "record \"m.data.pkl\" (directory entry at offset {first}): the record is in no root folder"
        ),
    );
}

#[test]
fn second_root_folder() {
    refused(
        &with_entry(2, NAME, b"n"),
        "record \"n/data/0\" is outside the root folder \"m\": an archive has one root folder",
    );
}

#[test]
fn names_that_are_paths_stay_names() {
    let bytes = archive(
        "..",
        &[
            ("data.pkl", b"p"),
            ("../../etc/x", b"x"),
            ("version", b"3\n"),
        ],
        64,
    );
    let index = parse(&bytes).unwrap();
    assert_eq!(index.root(), "..");
    assert_eq!(index.find("../../etc/x").unwrap().1.nbytes, 1);
}

#[test]
fn one_name_twice() {
    let good = small_archive();
    let offsets = [2, 3].map(|i| find(&good, b"PK\x03\x04", i));
    refused(
        &with_entry(3, NAME + 7, b"0"),
        &format!(
            "records \"data/0\" at offset {} and \"data/0\" at offset {} have the same name (torch's look-up ignores case)",
            offsets[0], offsets[1]
        ),
    );
}

#[test]
fn names_equal_but_for_case() {
    let bytes = archive("m", &[("data.pkl", b"p"), ("DATA.PKL", b"q")], 64);
    assert!(message(&bytes).starts_with("records \"data.pkl\" at offset 0 and \"DATA.PKL\" at"));
}

#[test]
fn missing_records_are_named() {
    let problem = |records: &[(&str, &[u8])]| {
        parse(&archive("m", records, 64))
            .unwrap()
            .require_checkpoint()
            .map_err(|e| e.to_string())
    };
    let missing = |record| {
        Err(format!(
            "record \"{record}\" is missing from the archive (root folder \"m\")"
        ))
    };
    assert_eq!(
        problem(&[("data/0", b"x"), ("version", b"3\n")]),
        missing("data.pkl")
    );
    assert_eq!(
        problem(&[("DATA.PKL", b"x"), ("version", b"3\n")]),
        missing("data.pkl")
    );
    assert_eq!(problem(&[("data.pkl", b"x")]), missing("version"));
    assert_eq!(
        problem(&[("data.pkl", b"x"), (".data/version", b"3\n")]),
        Ok(())
    );
    let other = |kind: Kind| {
        Err(format!(
            "the archive is {kind}, expected a checkpoint of torch.save"
        ))
    };
    assert_eq!(
        problem(&[("data.pkl", b"x"), ("Constants.pkl", b"x")]),
        other(Kind::TorchScript)
    );
    assert_eq!(
        problem(&[("archive_format", b"pt2")]),
        other(Kind::ExportedProgram)
    );
    assert_eq!(
        problem(&[(".data/extern_modules", b"")]),
        other(Kind::Package)
    );
}

/// An alignment record that lies costs the fast path, and nothing else.
#[test]
fn alignment_record_that_lies() {
    for digits in ["0", "9", "+8", "x", "99999999999999999999", "32769"] {
        let mut specs: Vec<(&str, &[u8])> = vec![("data.pkl", b"pickle")];
        specs.push((".storage_alignment", digits.as_bytes()));
        specs.push(("data/0", b"0123456789"));
        let bytes = archive("m", &specs, 8);
        let index = parse(&bytes).unwrap();
        assert_eq!(index.layout(), None, "{digits}");
        assert_eq!(verdict(&bytes), Verdict::Clean, "{digits}");
    }
}
