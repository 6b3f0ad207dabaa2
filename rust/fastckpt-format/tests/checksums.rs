//! A CRC of 0 says that there is none, unless it is that of no bytes.
#![allow(clippy::unwrap_used)]

mod support;

use fastckpt_format::index::Checksums;
use support::{archive, parse};

#[test]
fn an_empty_pickle_takes_the_checksums_of_no_other_record() {
    let file = archive(
        "m",
        &[("data.pkl", b""), ("data/0", b"values"), ("version", b"3")],
        64,
    );
    let index = parse(&file).unwrap();
    assert_eq!(index.checksums(), Checksums::All);
    assert_eq!(index.checksum(0), Some(0));
    assert!(index.checksum(1).is_some_and(|crc32| crc32 != 0));
}

#[test]
fn empty_storages_alone_do_not_say_that_storages_have_no_checksums() {
    let file = archive(
        "m",
        &[
            ("data.pkl", b"pickle"),
            ("data/0", b""),
            ("data/1", b""),
            ("version", b"3"),
        ],
        64,
    );
    let index = parse(&file).unwrap();
    assert_eq!(index.checksums(), Checksums::All);
    assert_eq!(index.checksum(1), Some(0));
}
