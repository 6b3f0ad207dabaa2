//! What records are called, and which an archive needs.

use fastckpt_format::index::Kind;

use crate::support::{Verdict, archive, find, parse, small_archive, verdict};
use crate::{NAME, message, refused, with_entry};

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
