//! The bytes that were written, whatever the disk does, in memory that is laid out as it should be.

use std::path::PathBuf;
use std::sync::Arc;

use fastckpt_core::files::RealFiles;
use fastckpt_core::job::{Observer, Stop, Unobserved};
use fastckpt_core::read::{Archive, ReadOptions};
use proptest::prelude::*;

use crate::archives::{archive_of, keys, payload, payloads};
use crate::disk::{Behaviour, Cache, Disk};
use crate::support::Scratch;
use crate::{BLOCK, MIB, assert_reads, behaviours, in_memory, open, options, sizes};

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
fn many_small_records_are_read() {
    let storages: Vec<Vec<u8>> = (0..20_000).map(|seed| payload(seed, seed % 97)).collect();
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    assert_reads(&archive, &storages, &options(true, 4));
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
