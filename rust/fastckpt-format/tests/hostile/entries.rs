//! One record: its directory entry, where it lies, and its local header.

use fastckpt_format::FormatError;

use crate::support::{
    Verdict, archive, find, parse, parse_with_headers, patched, small_archive, verdict,
};
use crate::{
    DISK, END, END64, EXTERNAL_ATTRIBUTES, EXTRA_LENGTH, FLAGS, HEADER_OFFSET, METHOD, NAME, SIZE,
    STORED_SIZE, VERSION_NEEDED, refused, with_entry,
};

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
