//! Whatever the file system does, records arrive as they were written, or an error does.
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
#[path = "support/mod.rs"]
mod support;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use archives::{archive_of, archive_with, keys, payload, payloads, pickle_of};
use disk::{Behaviour, Cache, Direct, Disk};
use fastckpt_core::Error;
use fastckpt_core::files::RealFiles;
use fastckpt_core::format::FormatError;
use fastckpt_core::job::{Observer, Stop, Unobserved};
use fastckpt_core::memory::Memory;
use fastckpt_core::read::{Archive, LoadStager, ReadOptions};
use proptest::prelude::*;
use support::Scratch;

const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;

fn open(bytes: Vec<u8>, behaviour: Behaviour) -> Archive {
    Archive::from_file(
        Disk::new(bytes, behaviour).file(),
        PathBuf::from("model.pt"),
    )
    .unwrap()
}

fn in_memory(bytes: Vec<u8>) -> Result<Archive, Error> {
    Archive::from_bytes(Arc::new(bytes), PathBuf::from("model.pt"))
}

fn options(verify: bool, threads: usize) -> ReadOptions {
    ReadOptions {
        verify,
        threads: NonZeroUsize::new(threads),
    }
}

/// Reads all records and compares them, and where they lie, with what was written.
fn assert_reads(archive: &Archive, storages: &[Vec<u8>], options: &ReadOptions) {
    let keys = keys(storages.len());
    let spans = archive.read(&keys, options, &mut Unobserved).unwrap();
    assert_eq!(spans.len(), storages.len());
    for ((span, storage), key) in spans.iter().zip(storages).zip(&keys) {
        assert!(
            span.as_slice() == storage,
            "data/{key} of {} bytes differs",
            storage.len()
        );
        let (_, entry) = archive.index().find(&format!("data/{key}")).unwrap();
        let address = span.memory.address().addr() + span.offset;
        if entry.payload_offset % 16 == 0 {
            let at = entry.payload_offset % BLOCK as u64;
            assert_eq!(address as u64 % BLOCK as u64, at, "data/{key}");
        } else if !storage.is_empty() {
            assert_eq!(address % 64, 0, "data/{key} was not moved");
        }
    }
}

fn behaviours() -> impl Strategy<Value = Behaviour> {
    let caches = prop_oneof![
        Just(Cache::Full),
        (1_u64..4 << 20).prop_map(Cache::Striped),
        Just(Cache::Empty),
        Just(Cache::Unknown),
    ];
    let directs = prop_oneof![
        Just(Direct::Works),
        Just(Direct::RefusedAtOpen),
        Just(Direct::RefusedAtRead),
        (1_usize..5).prop_map(Direct::RefusedAfter),
    ];
    // Less than a block per read makes direct reads give up; both sides of it are tried.
    let mosts = prop_oneof![Just(usize::MAX), 100_000_usize..3_000_000, 2000_usize..9000];
    let interrupts = prop_oneof![Just(usize::MAX), 2_usize..5];
    (caches, directs, mosts, interrupts).prop_map(
        |(cache, direct, most_per_read, interrupt_every)| Behaviour {
            cache,
            direct,
            most_per_read,
            interrupt_every,
            fail_read: None,
        },
    )
}

/// Sizes on both sides of every border: blocks, pieces, chunks, own mappings.
fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let near = |nbytes: usize| nbytes - 3..nbytes + 4;
    let size = prop_oneof![
        3 => Just(0_usize),
        3 => 1_usize..100,
        3 => near(BLOCK),
        2 => 10_000_usize..200_000,
        2 => near(MIB),
        1 => near(2 * MIB),
        1 => near(4 * MIB),
    ];
    prop::collection::vec(size, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_file_system_gives_the_same_bytes(
        sizes in sizes(),
        behaviour in behaviours(),
        threads in 1_usize..6,
        alignment in prop_oneof![Just(64_u64), Just(1), Just(4096), Just(32768)],
    ) {
        let storages = payloads(&sizes);
        let archive = open(archive_of(&storages, alignment), behaviour);
        prop_assert!(archive.index().layout().is_some());
        assert_reads(&archive, &storages, &options(true, threads));
        assert_reads(&archive, &storages, &options(false, threads));
        archive.check(&keys(storages.len()), &options(true, threads), &mut Unobserved).unwrap();
    }

    #[test]
    fn staged_records_are_those_that_were_read(
        sizes in sizes(),
        behaviour in behaviours(),
        threads in 1_usize..6,
        slots in 1_usize..5,
        slot_nbytes in prop_oneof![Just(BLOCK), Just(9 * BLOCK), Just(MIB), Just(3 * MIB)],
        misaligned in prop_oneof![Just(0_usize), Just(8)],
    ) {
        let storages = payloads(&sizes);
        let archive = open(archive_of(&storages, 64), behaviour);
        let mut device = Device::new(&sizes, slots, slot_nbytes, misaligned);
        archive
            .read_staged(&keys(sizes.len()), &options(true, threads), &mut Unobserved, &mut device)
            .unwrap();
        prop_assert!(device.destinations == storages);
        prop_assert!(device.pending.is_empty(), "copies under way: {:?}", device.pending);
    }
}

#[test]
fn keys_may_come_in_any_order_and_twice() {
    let storages = payloads(&[3, 5 * MIB, 70, 0, 200]);
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    let order = [4, 1, 1, 3, 0];
    let keys: Vec<String> = order.iter().map(usize::to_string).collect();
    let spans = archive
        .read(&keys, &ReadOptions::default(), &mut Unobserved)
        .unwrap();
    for (span, key) in spans.iter().zip(order) {
        assert_eq!(span.as_slice(), storages[key]);
    }
    assert!(Arc::ptr_eq(&spans[1].memory, &spans[2].memory));
}

#[test]
fn large_records_have_memory_of_their_own_and_small_ones_share_it() {
    let storages = payloads(&[1000, 4 * MIB, 1000, 1000, 4 * MIB - 1]);
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    let spans = archive
        .read(&keys(5), &ReadOptions::default(), &mut Unobserved)
        .unwrap();
    assert!(!Arc::ptr_eq(&spans[0].memory, &spans[1].memory));
    assert!(!Arc::ptr_eq(&spans[1].memory, &spans[2].memory));
    assert!(Arc::ptr_eq(&spans[2].memory, &spans[3].memory));
    assert!(Arc::ptr_eq(&spans[3].memory, &spans[4].memory));
    assert!(spans[1].memory.nbytes() <= 4 * MIB + 2 * BLOCK);
}

#[test]
fn arenas_are_bounded() {
    let storages = payloads(&[3 * MIB; 30]);
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    let spans = archive
        .read(&keys(30), &ReadOptions::default(), &mut Unobserved)
        .unwrap();
    assert!(spans.iter().all(|span| span.memory.nbytes() <= 64 * MIB));
    assert!(!Arc::ptr_eq(&spans[0].memory, &spans[29].memory));
    assert!(
        spans
            .iter()
            .zip(&storages)
            .all(|(span, storage)| span.as_slice() == storage)
    );
}

#[test]
fn what_nobody_wants_is_not_read() {
    let storages = payloads(&[100, 50 * MIB, 100]);
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    let mut progress = Progress::default();
    let wanted = ["0".to_owned(), "2".to_owned()];
    archive
        .read(&wanted, &ReadOptions::default(), &mut progress)
        .unwrap();
    assert!(progress.total_nbytes < 4096, "{progress:?}");
    assert_eq!(progress.done_nbytes, progress.total_nbytes);
}

#[test]
fn a_file_on_disk_is_read_and_mapped() {
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    let storages = payloads(&[0, 17, 5 * MIB + 3, 100_000, 2 * MIB]);
    std::fs::write(&path, archive_of(&storages, 64)).unwrap();
    let archive = Archive::open(&RealFiles, &path).unwrap();
    assert_reads(&archive, &storages, &ReadOptions::default());
    assert_eq!(archive.nbytes(), std::fs::metadata(&path).unwrap().len());
    for verify in [true, false] {
        let spans = archive
            .map(&keys(5), &options(verify, 3), &mut Unobserved)
            .unwrap();
        assert!(
            spans
                .iter()
                .zip(&storages)
                .all(|(span, storage)| span.as_slice() == storage)
        );
        assert!(
            spans
                .iter()
                .all(|span| Arc::ptr_eq(&span.memory, &spans[0].memory))
        );
    }
}

#[test]
fn most_of_a_cached_file_is_read_in_one_pass() {
    let storages = payloads(&[8 * MIB]);
    let bytes = archive_of(&storages, 64);
    let disk = Disk::new(bytes, Behaviour::default());
    let archive = Archive::from_file(disk.file(), PathBuf::from("model.pt")).unwrap();
    assert_reads(&archive, &storages, &ReadOptions::default());
    assert_eq!(disk.direct_reads(), 0);
}

#[test]
fn what_is_not_cached_is_read_directly() {
    let storages = payloads(&[8 * MIB]);
    let behaviour = Behaviour {
        cache: Cache::Empty,
        ..Behaviour::default()
    };
    let disk = Disk::new(archive_of(&storages, 64), behaviour);
    let archive = Archive::from_file(disk.file(), PathBuf::from("model.pt")).unwrap();
    let opening = disk.reads();
    assert_reads(&archive, &storages, &ReadOptions::default());
    assert!(disk.direct_reads() >= 4);
    // The page cache was asked now and then; all that was read was read directly.
    assert!(disk.reads() - opening <= 2 * disk.direct_reads());
}

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
                (Path::new("model.pt"), Some(5))
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

#[test]
fn data_pkl_is_decoded_after_its_checksum() {
    let storages = payloads(&[40, 70]);
    let good = archive_of(&storages, 64);
    let archive = in_memory(good.clone()).unwrap();
    let graph = archive.decode(true).unwrap();
    assert_eq!(graph.storages().len(), 2);
    assert_eq!(
        archive.read_record("data.pkl", true).unwrap(),
        pickle_of(&storages)
    );
    for name in ["data.pkl", "version", "byteorder", ".format_version"] {
        let (_, entry) = archive.index().find(name).unwrap();
        let mut bytes = good.clone();
        bytes[usize::try_from(entry.payload_offset).unwrap()] ^= 1;
        let outcome = in_memory(bytes).unwrap().decode(true);
        let Err(Error::Checksum(mismatch)) = outcome else {
            panic!("{name}: {outcome:?}")
        };
        assert_eq!(mismatch.record, name);
    }
}

#[test]
fn an_unknown_byte_order_is_refused() {
    let mut bytes = archive_of(&payloads(&[40]), 64);
    let archive = in_memory(bytes.clone()).unwrap();
    let (_, entry) = archive.index().find("byteorder").unwrap();
    bytes[usize::try_from(entry.payload_offset).unwrap()] = b'L';
    let message = in_memory(bytes)
        .unwrap()
        .decode(false)
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "model.pt: record byteorder has \"Little\", expected \"little\" or \"big\""
    );
}

#[test]
fn what_torch_refuses_an_archive_for_is_refused() {
    let good = archive_of(&payloads(&[40]), 64);
    for (name, byte, problem) in [
        (
            "version",
            b'0',
            "has \"0\\n\", expected a version from 1 to 10",
        ),
        (
            "version",
            b'-',
            "has \"-\\n\", expected a version from 1 to 10",
        ),
        (".storage_alignment", b'+', "has \"+4\", expected a number"),
        (
            ".data/serialization_id",
            0xff,
            "has \"\u{fffd}0000000000000000000040490072216\", expected text",
        ),
    ] {
        let archive = in_memory(good.clone()).unwrap();
        let (_, entry) = archive.index().find(name).unwrap();
        let mut bytes = good.clone();
        bytes[usize::try_from(entry.payload_offset).unwrap()] = byte;
        // Without their checksums, or these would be what is wrong.
        let message = in_memory(bytes)
            .unwrap()
            .decode(false)
            .unwrap_err()
            .to_string();
        assert_eq!(message, format!("model.pt: record {name} {problem}"));
    }
}

#[test]
fn a_missing_record_is_named() {
    let archive = in_memory(archive_of(&payloads(&[40]), 64)).unwrap();
    let outcome = archive.read(&["7".to_owned()], &ReadOptions::default(), &mut Unobserved);
    let message = outcome.unwrap_err().to_string();
    assert_eq!(
        message,
        "model.pt: record data/7 is missing from the archive"
    );
}

#[test]
fn a_pickle_that_is_none_is_refused() {
    let storages = payloads(&[40]);
    let archive = in_memory(archive_with(b"\x80\x02", &storages, 64)).unwrap();
    let Err(Error::Pickle { path, .. }) = archive.decode(true) else {
        panic!("decoded")
    };
    assert_eq!(path, Path::new("model.pt"));
}

#[test]
fn many_small_records_are_read() {
    let storages: Vec<Vec<u8>> = (0..20_000).map(|seed| payload(seed, seed % 97)).collect();
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    assert_reads(&archive, &storages, &options(true, 4));
}

#[test]
fn an_observer_can_stop_every_way_of_reading() {
    let storages = payloads(&[20 * MIB, 20 * MIB]);
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    for threads in [1, 4] {
        let options = options(true, threads);
        let mut device = Device::new(&[20 * MIB, 20 * MIB], 2, MIB, 0);
        for outcome in [
            archive.read(&keys(2), &options, &mut Stopping).map(drop),
            archive.map(&keys(2), &options, &mut Stopping).map(drop),
            archive.check(&keys(2), &options, &mut Stopping),
            archive.read_staged(&keys(2), &options, &mut Stopping, &mut device),
        ] {
            assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
        }
        assert!(device.pending.is_empty());
    }
}

#[test]
fn a_device_that_fails_ends_the_job_with_its_buffers_free() {
    let sizes = [7 * MIB, 100, 3 * MIB];
    let storages = payloads(&sizes);
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    for calls in 0..20 {
        let mut device = Device::new(&sizes, 2, MIB, 0);
        device.calls_until_failure = Some(calls);
        let outcome =
            archive.read_staged(&keys(3), &options(true, 3), &mut Unobserved, &mut device);
        assert!(
            matches!(outcome, Err(Error::Interrupted)),
            "call {calls}: {outcome:?}"
        );
        assert!(
            device.pending.is_empty(),
            "call {calls}: {:?}",
            device.pending
        );
    }
}

#[test]
fn a_damaged_record_is_found_while_it_is_staged() {
    let sizes = [7 * MIB, 100];
    let mut bytes = archive_of(&payloads(&sizes), 64);
    bytes[5 * MIB] ^= 1;
    let archive = in_memory(bytes).unwrap();
    let mut device = Device::new(&sizes, 2, MIB, 0);
    let outcome = archive.read_staged(
        &keys(2),
        &ReadOptions::default(),
        &mut Unobserved,
        &mut device,
    );
    let Err(Error::Checksum(mismatch)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        (mismatch.record.as_str(), mismatch.tensors),
        ("data/0", vec!["t0".to_owned()])
    );
    assert!(device.pending.is_empty());
}

/// A device that copies as late as it may: when the slot is released.
#[derive(Debug)]
struct Device {
    slots: Vec<Memory>,
    destinations: Vec<Vec<u8>>,
    /// Slot, offset in it, destination, offset there, size.
    pending: Vec<(usize, usize, usize, u64, usize)>,
    calls_until_failure: Option<usize>,
}

impl Device {
    fn new(sizes: &[usize], slots: usize, slot_nbytes: usize, misaligned: usize) -> Self {
        let slot = |_| {
            let memory = vec![0xee_u8; slot_nbytes + 2 * BLOCK].leak();
            let start = memory.as_ptr().addr().next_multiple_of(BLOCK) - memory.as_ptr().addr()
                + misaligned;
            // SAFETY: leaked, so valid from now on, and nobody else's.
            unsafe { Memory::new(memory[start..].as_mut_ptr(), slot_nbytes) }
        };
        Self {
            slots: (0..slots).map(slot).collect(),
            destinations: sizes.iter().map(|&nbytes| vec![0xdd; nbytes]).collect(),
            pending: Vec::new(),
            calls_until_failure: None,
        }
    }

    fn call(&mut self) -> Result<(), Stop> {
        match &mut self.calls_until_failure {
            Some(0) => Err(Stop),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl LoadStager for Device {
    fn slots(&self) -> &[Memory] {
        &self.slots
    }

    fn place(
        &mut self,
        slot: usize,
        slot_offset: usize,
        index: usize,
        offset: u64,
        nbytes: usize,
    ) -> Result<(), Stop> {
        self.call()?;
        self.pending
            .push((slot, slot_offset, index, offset, nbytes));
        Ok(())
    }

    fn release(&mut self, slot: usize) -> Result<(), Stop> {
        let (done, pending) = self.pending.drain(..).partition(|copy| copy.0 == slot);
        self.pending = pending;
        let done: Vec<(usize, usize, usize, u64, usize)> = done;
        for (slot, slot_offset, index, offset, nbytes) in done {
            let offset = usize::try_from(offset).unwrap();
            let into = &mut self.destinations[index][offset..offset + nbytes];
            let _crc = self.slots[slot].copy_checksummed(slot_offset, into);
        }
        self.call()
    }
}

struct Stopping;

impl Observer for Stopping {
    fn poll(&mut self, _done_nbytes: u64, _total_nbytes: u64) -> Result<(), Stop> {
        Err(Stop)
    }
}

#[derive(Debug, Default)]
struct Progress {
    done_nbytes: u64,
    total_nbytes: u64,
}

impl Observer for Progress {
    fn poll(&mut self, done_nbytes: u64, total_nbytes: u64) -> Result<(), Stop> {
        (self.done_nbytes, self.total_nbytes) = (done_nbytes, total_nbytes);
        Ok(())
    }
}
