//! Archives to save, what they have to look like, and a save whose operations follow a script.
#![allow(
    clippy::missing_panics_doc,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test file uses a part of this"
)]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use fastckpt_core::Error;
use fastckpt_core::commit::Commit;
use fastckpt_core::job::Unobserved;
use fastckpt_core::memory::Memory;
use fastckpt_core::write::{ArchivePlan, NO_STEP, StorageSource, WriteOptions, Written};
use fastckpt_format::layout::{Alignment, Layout};
use fastckpt_format::{archive, checksum};

use super::support::{Script, ScriptedFiles};

pub const BLOCK: usize = 4096;

/// Bytes that differ from place to place, for as long as the test process lives.
pub fn payload(seed: u64, nbytes: usize) -> &'static [u8] {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes: Vec<u8> = (0..nbytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    bytes.leak()
}

pub fn payloads(sizes: &[usize]) -> Vec<&'static [u8]> {
    sizes
        .iter()
        .enumerate()
        .map(|(seed, nbytes)| payload(seed as u64 + 1, *nbytes))
        .collect()
}

pub fn plan_of(storages: &[&'static [u8]], alignment: u64) -> ArchivePlan {
    let sources: Vec<_> = storages
        .iter()
        .map(|bytes| StorageSource::Memory(Memory::of_static(bytes)))
        .collect();
    ArchivePlan::new(
        "model",
        b"the pickle".to_vec(),
        &sources,
        Alignment::new(alignment).unwrap(),
        NO_STEP,
    )
    .unwrap()
}

/// The archive, put together the plain way: one record after the other.
pub fn oracle(storages: &[&'static [u8]], alignment: u64) -> Vec<u8> {
    let alignment = Alignment::new(alignment).unwrap();
    let sizes: Vec<u64> = storages.iter().map(|bytes| bytes.len() as u64).collect();
    let pickle = b"the pickle";
    let layout = Layout::plan(
        "model",
        archive::record_specs(pickle.len() as u64, alignment, &sizes),
        alignment,
    )
    .unwrap();
    let mut out = Vec::new();
    let mut crcs: Vec<(u32, u64)> = Vec::new();
    for (index, record) in layout.records().iter().enumerate() {
        let id;
        let bytes: &[u8] = match (index, archive::fixed_payload(&record.name, alignment)) {
            (0, _) => pickle,
            (_, Some(fixed)) => fixed.leak(),
            (_, None) if index < archive::FIRST_STORAGE + storages.len() => {
                storages[index - archive::FIRST_STORAGE]
            }
            _ => {
                id = archive::serialization_id(NO_STEP, &crcs);
                &id
            }
        };
        let crc = checksum::crc32(bytes);
        crcs.push((crc, bytes.len() as u64));
        out.extend(layout.local_header(index));
        assert_eq!(out.len() as u64, record.payload_offset);
        out.extend(bytes);
        out.extend(layout.descriptor(index, crc));
    }
    let crcs: Vec<u32> = crcs.into_iter().map(|(crc, _)| crc).collect();
    out.extend(layout.directory(&crcs));
    assert_eq!(out.len() as u64, layout.nbytes());
    out
}

pub fn save(
    path: &Path,
    plan: &ArchivePlan,
    options: &WriteOptions,
    script: Script,
) -> (Result<Written, Error>, Arc<Script>) {
    let script = Arc::new(script);
    let mut commit = Commit::new(Arc::new(ScriptedFiles(Arc::clone(&script))), true);
    let result = commit
        .write_archive(path, plan, options, &mut Unobserved, None)
        .and_then(|written| commit.publish(&[path], &mut Unobserved).map(|()| written));
    drop(commit);
    (result, script)
}

pub fn threads(count: usize) -> Option<NonZeroUsize> {
    NonZeroUsize::new(count)
}
