//! Disks that fail, files that shrink, bits that flip: an error, which names what it hit.

use std::path::{Path, PathBuf};

use fastckpt_core::Error;
use fastckpt_core::files::RealFiles;
use fastckpt_core::format::FormatError;
use fastckpt_core::job::Unobserved;
use fastckpt_core::read::{Archive, ReadOptions};

use crate::archives::{archive_of, keys, payloads};
use crate::disk::{Behaviour, Cache, Disk};
use crate::staging::Device;
use crate::support::Scratch;
use crate::{MIB, assert_reads, in_memory, options};

#[test]
fn an_unreadable_sector_is_an_error_of_the_system() {
    let storages = payloads(&[3 * MIB, 5 * MIB]);
    let bytes = archive_of(&storages, 64);
    for cache in [Cache::Full, Cache::Empty, Cache::Unknown] {
        let healthy = Disk::new(
            bytes.clone(),
            Behaviour {
                cache,
                ..Behaviour::default()
            },
        );
        let archive = Archive::from_file(healthy.file(), PathBuf::from("model.pt")).unwrap();
        let opening = healthy.reads();
        assert_reads(&archive, &storages, &options(true, 1));
        for number in 0..healthy.reads() {
            let behaviour = Behaviour {
                cache,
                fail_read: Some(number),
                ..Behaviour::default()
            };
            let disk = Disk::new(bytes.clone(), behaviour);
            let opened = Archive::from_file(disk.file(), PathBuf::from("model.pt"));
            assert_eq!(opened.is_err(), number < opening);
            let outcome = opened.and_then(|archive| {
                archive
                    .read(&keys(2), &options(true, 1), &mut Unobserved)
                    .map(drop)
            });
            let Err(Error::Io { path, source, .. }) = outcome else {
                panic!("read {number} of {cache:?} failed, and: {outcome:?}")
            };
            assert_eq!(
                (path.as_path(), source.raw_os_error()),
                (Path::new("model.pt"), Some(libc::EIO))
            );
        }
    }
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let storages = payloads(&[3 * MIB, 100]);
    let bytes = archive_of(&storages, 64);
    let full = bytes.len() as u64;
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    std::fs::write(&path, &bytes).unwrap();
    let archive = Archive::open(&RealFiles, &path).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(full - 2 * MIB as u64)
        .unwrap();
    for outcome in [
        archive.read(&keys(2), &ReadOptions::default(), &mut Unobserved),
        archive.map(&keys(2), &ReadOptions::default(), &mut Unobserved),
    ] {
        let Err(Error::Format {
            source: FormatError::Truncated { .. },
            ..
        }) = outcome
        else {
            panic!("{outcome:?}")
        };
    }
}

#[test]
fn truncation_at_every_length_is_an_error() {
    let storages = payloads(&[1000, 0, 70]);
    let bytes = archive_of(&storages, 64);
    for nbytes in 0..bytes.len() {
        let Err(Error::Format { .. }) = in_memory(bytes[..nbytes].to_vec()) else {
            panic!("{nbytes} of {} bytes were accepted", bytes.len())
        };
    }
}

#[test]
fn every_flipped_bit_of_a_payload_is_named() {
    let storages = payloads(&[40, 0, 70]);
    let good = archive_of(&storages, 64);
    let index = in_memory(good.clone()).unwrap();
    for key in [0_usize, 2] {
        let (_, entry) = index.index().find(&format!("data/{key}")).unwrap();
        let start = usize::try_from(entry.payload_offset).unwrap();
        for bit in 0..storages[key].len() * 8 {
            let mut bytes = good.clone();
            bytes[start + bit / 8] ^= 1 << (bit % 8);
            let archive = in_memory(bytes).unwrap();
            let outcome = archive.read(&keys(3), &ReadOptions::default(), &mut Unobserved);
            let Err(Error::Checksum(mismatch)) = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!(mismatch.record, format!("data/{key}"));
            assert_eq!(mismatch.tensors, [format!("t{key}")]);
            assert_eq!(
                (mismatch.offset, mismatch.nbytes),
                (entry.payload_offset, entry.nbytes)
            );
            assert_eq!(mismatch.expected, entry.crc32);
            assert_ne!(mismatch.found, entry.crc32);
            archive
                .read(&keys(3), &options(false, 1), &mut Unobserved)
                .unwrap();
        }
    }
}

#[test]
fn of_several_bad_records_the_first_is_reported() {
    let storages = payloads(&[5 * MIB, 100, 3 * MIB, 100, 5 * MIB]);
    let mut bytes = archive_of(&storages, 64);
    let archive = in_memory(bytes.clone()).unwrap();
    for key in ["data/1", "data/2", "data/4"] {
        let (_, entry) = archive.index().find(key).unwrap();
        bytes[usize::try_from(entry.payload_offset).unwrap() + 99] ^= 0x10;
    }
    let archive = in_memory(bytes).unwrap();
    let mut messages = std::collections::BTreeSet::new();
    for threads in [1, 2, 4, 8] {
        let outcome = archive.read(&keys(5), &options(true, threads), &mut Unobserved);
        messages.insert(outcome.unwrap_err().to_string());
        let outcome = archive.check(&keys(5), &options(true, threads), &mut Unobserved);
        messages.insert(outcome.unwrap_err().to_string());
    }
    assert_eq!(messages.len(), 1);
    let message = messages.pop_first().unwrap();
    assert!(
        message.starts_with("checksum mismatch in tensor 't1' (record data/1 of model.pt)"),
        "{message}"
    );
}

#[test]
fn no_flipped_bit_anywhere_gives_another_tensor() {
    let storages = payloads(&[40, 0, 70]);
    let good = archive_of(&storages, 64);
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let load = || {
            let archive = in_memory(bytes)?;
            archive.decode(true)?;
            archive.read(&keys(3), &ReadOptions::default(), &mut Unobserved)
        };
        // What is not an error did not matter: padding, descriptors.
        if let Ok(spans) = load() {
            for (span, storage) in spans.iter().zip(&storages) {
                assert_eq!(span.as_slice(), storage, "bit {bit}");
            }
        }
    }
}

#[test]
fn a_damaged_local_header_is_found_by_whoever_reads_the_record() {
    let storages = payloads(&[40, 3 * MIB, 5 * MIB]);
    let good = archive_of(&storages, 64);
    let entries = in_memory(good.clone()).unwrap();
    for (key, storage) in storages.iter().enumerate() {
        let (_, entry) = entries.index().find(&format!("data/{key}")).unwrap();
        let mut bytes = good.clone();
        // The last character of the name.
        bytes[usize::try_from(entry.header_offset).unwrap() + 30 + "model/data/".len()] ^= 1;
        let archive = in_memory(bytes).unwrap();
        assert!(archive.index().layout().is_some(), "the directory is whole");
        let wanted = [key.to_string()];
        let mut device = Device::new(&[storage.len()], 2, MIB, 0);
        let verified = ReadOptions::default();
        for outcome in [
            archive.read(&wanted, &verified, &mut Unobserved).map(drop),
            archive
                .read(&wanted, &options(false, 2), &mut Unobserved)
                .map(drop),
            archive.check(&wanted, &verified, &mut Unobserved),
            archive.read_staged(&wanted, &verified, &mut Unobserved, &mut device),
            archive.read_record(&format!("data/{key}"), true).map(drop),
        ] {
            let Err(Error::Format {
                source: FormatError::LocalHeader { record, .. },
                ..
            }) = outcome
            else {
                panic!("{outcome:?}")
            };
            assert!(record.ends_with(&format!("data/{key}")), "{record}");
        }
        let others: Vec<String> = (0..3)
            .filter(|other| *other != key)
            .map(|other| other.to_string())
            .collect();
        archive.read(&others, &verified, &mut Unobserved).unwrap();
    }
}
