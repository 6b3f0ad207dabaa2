//! Whatever the file system does, records arrive as they were written, or an error does.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../support/archives.rs"]
mod archives;
mod bytes;
mod damage;
#[path = "../support/disk.rs"]
mod disk;
mod records;
mod staging;
#[path = "../support/mod.rs"]
mod support;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use archives::keys;
use disk::{Behaviour, Cache, Direct, Disk};
use fastckpt_core::Error;
use fastckpt_core::job::Unobserved;
use fastckpt_core::read::{Archive, ReadOptions};
use proptest::prelude::*;

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
