//! Verification finds whatever differs from what torch writes, and says where.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/archives.rs"]
mod archives;
#[path = "support/disk.rs"]
mod disk;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use archives::{archive_of, archive_with, payload, payloads};
use disk::{Behaviour, Cache, Direct, Disk};
use fastckpt_core::Error;
use fastckpt_core::files::RealFiles;
use fastckpt_core::format::index::Checksums;
use fastckpt_core::job::{Observer, Stop, Unobserved};
use fastckpt_core::read::Archive;
use fastckpt_core::verify::{FileReport, VerifyOptions, verify_file};

const MIB: usize = 1 << 20;
const QUICK: VerifyOptions = VerifyOptions {
    quick: true,
    threads: None,
};
const FULL: VerifyOptions = VerifyOptions {
    quick: false,
    threads: None,
};

fn verify(bytes: Vec<u8>, options: &VerifyOptions) -> FileReport {
    let disk = Disk::new(bytes, Behaviour::default());
    verify_file(&disk, Path::new("model.pt"), options, &mut Unobserved).unwrap()
}

/// Where a record's payload lies.
fn payload_of(bytes: &[u8], record: &str) -> std::ops::Range<usize> {
    let archive = Archive::from_bytes(Arc::new(bytes.to_vec()), PathBuf::new()).unwrap();
    let (_, entry) = archive.index().find(record).unwrap();
    let start = usize::try_from(entry.payload_offset).unwrap();
    start..start + usize::try_from(entry.nbytes).unwrap()
}

#[test]
fn good_files_are_good() {
    for sizes in [
        vec![],
        vec![0],
        vec![1, 0, 4096],
        vec![5 * MIB, 3, 2 * MIB - 64],
    ] {
        for alignment in [1, 64, 4096] {
            let bytes = archive_of(&payloads(&sizes), alignment);
            for options in [QUICK, FULL] {
                let expected = FileReport {
                    nbytes: bytes.len() as u64,
                    records: sizes.len() + 6,
                    checksums: Checksums::All,
                    headers_covered: true,
                    damages: Vec::new(),
                };
                assert_eq!(verify(bytes.clone(), &options), expected);
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let good = archive_of(&payloads(&[40, 0, 70, 1]), 64);
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let report = verify(bytes, &FULL);
        assert!(
            !report.damages.is_empty(),
            "bit {} of byte {}",
            bit % 8,
            bit / 8
        );
    }
}

#[test]
fn a_damaged_payload_is_named_with_its_tensor() {
    let mut bytes = archive_of(&payloads(&[40, 5 * MIB]), 64);
    let place = payload_of(&bytes, "data/1");
    let good = verify(bytes.clone(), &FULL);
    assert_eq!(good.damages, []);
    bytes[place.start + 3 * MIB] ^= 4;
    let report = verify(bytes.clone(), &FULL);
    let [damage] = report.damages.as_slice() else {
        panic!("{report:?}")
    };
    assert_eq!(damage.record.as_deref(), Some("data/1"));
    assert_eq!(damage.tensors, ["t1"]);
    assert_eq!(
        (damage.offset, damage.nbytes),
        (place.start as u64, place.len() as u64)
    );
    assert_eq!(damage.detail, "checksum mismatch");
    assert_eq!(
        damage.expected,
        Some(fastckpt_core::format::checksum::crc32(&payload(1, 5 * MIB)))
    );
    assert_eq!(
        damage.found,
        Some(fastckpt_core::format::checksum::crc32(&bytes[place]))
    );
    assert_eq!(verify(bytes, &QUICK).damages, []);
}

#[test]
fn damage_between_the_payloads_is_described() {
    let good = archive_of(&payloads(&[40, 70]), 64);
    let first = payload_of(&good, "data/0");
    let second = payload_of(&good, "data/1");
    let end = good.len();
    // Descriptor, header and padding behind data/0; the directory; the end.
    let places = [
        (first.end, "data/0", "data descriptor of data/0"),
        (first.end + 16, "data/1", "local header of data/1"),
        (
            second.start - 1,
            "data/1",
            "padding before the payload of data/1",
        ),
    ];
    for (place, record, detail) in places {
        let mut bytes = good.clone();
        bytes[place] ^= 0x80;
        for options in [QUICK, FULL] {
            let report = verify(bytes.clone(), &options);
            let [damage] = report.damages.as_slice() else {
                panic!("{report:?}")
            };
            assert_eq!(damage.record.as_deref(), Some(record));
            assert_eq!((damage.offset, damage.nbytes), (place as u64, 1));
            let (expected, found) = (good[place], bytes[place]);
            let detail =
                format!("{detail}: expected byte {expected:#04x}, found byte {found:#04x}");
            assert_eq!(damage.detail, detail);
        }
    }
    let mut bytes = good;
    bytes[end - 22 - 20 - 56 + 12] ^= 1;
    let report = verify(bytes, &QUICK);
    let [damage] = report.damages.as_slice() else {
        panic!("{report:?}")
    };
    assert!(
        damage.detail.starts_with("zip64 end of central directory"),
        "{}",
        damage.detail
    );
}

#[test]
fn several_damages_come_in_file_order() {
    let mut bytes = archive_of(&payloads(&[3 * MIB, 40, 3 * MIB]), 64);
    let places = ["data/0", "data/1", "data/2"].map(|record| payload_of(&bytes, record));
    bytes[places[2].start] ^= 1;
    bytes[places[0].end] ^= 1;
    bytes[places[0].start] ^= 1;
    for threads in [1, 2, 7] {
        let options = VerifyOptions {
            threads: NonZeroUsize::new(threads),
            ..FULL
        };
        let report = verify(bytes.clone(), &options);
        let offsets: Vec<u64> = report.damages.iter().map(|damage| damage.offset).collect();
        assert_eq!(
            offsets,
            [
                places[0].start as u64,
                places[0].end as u64,
                places[2].start as u64
            ]
        );
    }
}

#[test]
fn names_are_done_without_where_data_pkl_is_damaged_too() {
    let mut bytes = archive_of(&payloads(&[40]), 64);
    for record in ["data.pkl", "data/0"] {
        let place = payload_of(&bytes, record);
        bytes[place.start] ^= 1;
    }
    let report = verify(bytes, &FULL);
    let records: Vec<_> = report
        .damages
        .iter()
        .map(|damage| damage.record.as_deref().unwrap())
        .collect();
    assert_eq!(records, ["data.pkl", "data/0"]);
    assert!(
        report
            .damages
            .iter()
            .all(|damage| damage.tensors.is_empty())
    );
}

#[test]
fn a_pickle_that_cannot_be_decoded_is_no_damage() {
    let storages = payloads(&[40]);
    let mut bytes = archive_with(b"\x80\x04not for us.", &storages, 64);
    assert_eq!(verify(bytes.clone(), &FULL).damages, []);
    let place = payload_of(&bytes, "data/0");
    bytes[place.start] ^= 1;
    let report = verify(bytes, &FULL);
    assert_eq!(report.damages.len(), 1);
    assert!(report.damages[0].tensors.is_empty());
}

#[test]
fn another_tools_framing_is_not_covered() {
    let storages = payloads(&[40, 70]);
    let mut bytes = archive_of(&storages, 64);
    // Another tool pads with zeros: every gap differs, no reader minds.
    let archive = Archive::from_bytes(Arc::new(bytes.clone()), PathBuf::new()).unwrap();
    for entry in archive.index().entries() {
        let end = usize::try_from(entry.payload_offset).unwrap();
        let mut padding = end;
        while bytes[padding - 1] == b'Z' {
            padding -= 1;
        }
        bytes[padding..end].fill(0);
    }
    let report = verify(bytes.clone(), &FULL);
    assert!(!report.headers_covered);
    assert_eq!(report.damages, []);
    let place = payload_of(&bytes, "data/1");
    bytes[place.start] ^= 1;
    let report = verify(bytes, &FULL);
    assert_eq!(report.damages.len(), 1);
    assert_eq!(report.damages[0].tensors, ["t1"]);
}

#[test]
fn truncation_at_every_length_is_damage() {
    let bytes = archive_of(&payloads(&[100, 0]), 64);
    for nbytes in 0..bytes.len() {
        let report = verify(bytes[..nbytes].to_vec(), &FULL);
        let [damage] = report.damages.as_slice() else {
            panic!("{nbytes}: {report:?}")
        };
        assert_eq!(
            (report.nbytes, damage.offset, damage.nbytes),
            (nbytes as u64, 0, nbytes as u64)
        );
        assert!(!damage.detail.is_empty());
        assert!(!report.headers_covered);
    }
}

#[test]
fn a_file_that_shrinks_meanwhile_is_damaged() {
    let mut bytes = archive_of(&payloads(&[3 * MIB]), 64);
    let nbytes = bytes.len() as u64;
    let tail = bytes.split_off(bytes.len() - 2048);
    // Its end was there when it was opened.
    let disk = Disk::cut(bytes.clone(), nbytes, Behaviour::default());
    let report = verify_file(&disk, Path::new("model.pt"), &FULL, &mut Unobserved).unwrap();
    assert_eq!(report.damages.len(), 1);
    assert!(
        report.damages[0].detail.contains("ends early"),
        "{}",
        report.damages[0].detail
    );
    bytes.extend(tail);
    assert_eq!(verify(bytes, &FULL).damages, []);
}

#[test]
fn every_file_system_gives_the_same_report() {
    let mut bytes = archive_of(&payloads(&[3 * MIB, 40, 5 * MIB]), 64);
    let place = payload_of(&bytes, "data/2");
    bytes[place.start + MIB] ^= 1;
    bytes[place.end + 3] ^= 1;
    let expected = verify(bytes.clone(), &FULL);
    assert_eq!(expected.damages.len(), 2);
    for cache in [
        Cache::Full,
        Cache::Striped(700_000),
        Cache::Empty,
        Cache::Unknown,
    ] {
        for direct in [Direct::Works, Direct::RefusedAtOpen, Direct::RefusedAtRead] {
            for most_per_read in [usize::MAX, 5000] {
                let behaviour = Behaviour {
                    cache,
                    direct,
                    most_per_read,
                    interrupt_every: 3,
                    ..Behaviour::default()
                };
                let disk = Disk::new(bytes.clone(), behaviour);
                let report =
                    verify_file(&disk, Path::new("model.pt"), &FULL, &mut Unobserved).unwrap();
                assert_eq!(report, expected, "{behaviour:?}");
            }
        }
    }
}

#[test]
fn a_disk_that_fails_is_an_error() {
    let bytes = archive_of(&payloads(&[3 * MIB]), 64);
    for number in 0..4 {
        let behaviour = Behaviour {
            fail_read: Some(number),
            ..Behaviour::default()
        };
        let disk = Disk::new(bytes.clone(), behaviour);
        let outcome = verify_file(&disk, Path::new("model.pt"), &FULL, &mut Unobserved);
        let Err(Error::Io { path, source, .. }) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(
            (path.as_path(), source.raw_os_error()),
            (Path::new("model.pt"), Some(libc::EIO))
        );
    }
}

#[test]
fn what_is_no_file_is_an_error() {
    for path in ["/nowhere/model.pt", "/"] {
        let outcome = verify_file(&RealFiles, Path::new(path), &FULL, &mut Unobserved);
        assert!(matches!(outcome, Err(Error::Io { .. })), "{outcome:?}");
    }
}

#[test]
fn it_can_be_interrupted() {
    struct Stopping;
    impl Observer for Stopping {
        fn poll(&mut self, _done_nbytes: u64, _total_nbytes: u64) -> Result<(), Stop> {
            Err(Stop)
        }
    }
    let disk = Disk::new(archive_of(&payloads(&[30 * MIB]), 64), Behaviour::default());
    let outcome = verify_file(&disk, Path::new("model.pt"), &FULL, &mut Stopping);
    assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
}

#[test]
fn the_structure_of_many_records_is_checked_quickly() {
    let storages: Vec<Vec<u8>> = (0..5000).map(|seed| payload(seed, 100)).collect();
    let good = archive_of(&storages, 64);
    assert_eq!(verify(good.clone(), &QUICK).damages, []);
    let mut bytes = good.clone();
    let place = payload_of(&good, "data/4321");
    bytes[place.end + 5] ^= 1;
    let report = verify(bytes, &QUICK);
    assert_eq!(report.damages.len(), 1);
    assert_eq!(report.damages[0].record.as_deref(), Some("data/4321"));
}
