//! An archive is the same bytes however it is written, and a failed save leaves what was there.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use fastckpt_core::commit::Commit;
use fastckpt_core::files::{Files, RealFiles};
use fastckpt_core::job::{Observer, Stop, Unobserved};
use fastckpt_core::memory::Memory;
use fastckpt_core::write::{
    self, ArchivePlan, NO_STEP, SaveStager, Sink, StorageSource, WriteOptions,
};
use fastckpt_core::{Error, Phase};
use fastckpt_format::layout::{Alignment, Layout};
use fastckpt_format::{archive, checksum};
use proptest::prelude::*;
use support::{Scratch, Script, ScriptedFiles};

const BLOCK: usize = 4096;
const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EINVAL: i32 = 22;

/// Bytes that differ from place to place, for as long as the test process lives.
fn payload(seed: u64, nbytes: usize) -> &'static [u8] {
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

fn payloads(sizes: &[usize]) -> Vec<&'static [u8]> {
    sizes
        .iter()
        .enumerate()
        .map(|(seed, nbytes)| payload(seed as u64 + 1, *nbytes))
        .collect()
}

fn plan_of(storages: &[&'static [u8]], alignment: u64) -> ArchivePlan {
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
fn oracle(storages: &[&'static [u8]], alignment: u64) -> Vec<u8> {
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

fn save(
    path: &Path,
    plan: &ArchivePlan,
    options: &WriteOptions,
    script: Script,
) -> (Result<u64, Error>, Arc<Script>) {
    let script = Arc::new(script);
    let mut commit = Commit::new(Arc::new(ScriptedFiles(Arc::clone(&script))), true);
    let result = commit
        .write_archive(path, plan, options, &mut Unobserved, None)
        .and_then(|nbytes| commit.publish(&[path], &mut Unobserved).map(|()| nbytes));
    drop(commit);
    (result, script)
}

fn threads(count: usize) -> Option<NonZeroUsize> {
    NonZeroUsize::new(count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn same_bytes_whatever_the_threads_chunks_and_back_end(
        sizes in prop::collection::vec(prop_oneof![
            Just(0usize), 1usize..200, BLOCK - 40..BLOCK + 40, 1usize..70_000, 2 * BLOCK..40 * BLOCK,
        ], 0..12),
        alignment in prop::sample::select(vec![1u64, 8, 64, 100, 512, 4096, 32768]),
        thread_count in 1usize..9,
        chunk_blocks in 1usize..12,
        direct in any::<bool>(),
    ) {
        let scratch = Scratch::new();
        let storages = payloads(&sizes);
        let options = WriteOptions {
            threads: threads(thread_count),
            chunk_nbytes: NonZeroUsize::new(chunk_blocks * BLOCK),
            direct: Some(direct),
        };
        let path = scratch.path("model.pt");
        let (result, _) = save(&path, &plan_of(&storages, alignment), &options, Script::default());
        let expected = oracle(&storages, alignment);
        prop_assert_eq!(result.unwrap(), expected.len() as u64);
        prop_assert!(std::fs::read(&path).unwrap() == expected);
        prop_assert_eq!(scratch.names(), ["model.pt"]);
    }

    #[test]
    fn a_device_gives_the_same_bytes_through_any_buffers(
        sizes in prop::collection::vec((0usize..60_000, any::<bool>()), 1..8),
        slots in 1usize..5,
        slot_nbytes in 1usize..20_000,
        thread_count in 1usize..6,
        in_sequence in any::<bool>(),
    ) {
        let scratch = Scratch::new();
        let storages = payloads(&sizes.iter().map(|(nbytes, _)| *nbytes).collect::<Vec<_>>());
        let sources: Vec<_> = storages.iter().zip(&sizes).map(|(bytes, (nbytes, staged))| if *staged {
            StorageSource::Staged { nbytes: *nbytes as u64 }
        } else {
            StorageSource::Memory(Memory::of_static(bytes))
        }).collect();
        let alignment = Alignment::TORCH_DEFAULT;
        let plan = ArchivePlan::new("model", b"the pickle".to_vec(), &sources, alignment, NO_STEP).unwrap();
        let mut device = FakeDevice::new(&storages, slots, slot_nbytes);
        let options = WriteOptions {
            threads: threads(thread_count), chunk_nbytes: NonZeroUsize::new(3 * BLOCK), direct: None,
        };
        let written = if in_sequence {
            let mut sink = Collect(Vec::new());
            write::write_to_sink(&mut sink, &plan, &options, &mut Unobserved, Some(&mut device)).unwrap();
            sink.0
        } else {
            let path = scratch.path("model.pt");
            let mut commit = Commit::new(Arc::new(RealFiles), false);
            commit.write_archive(&path, &plan, &options, &mut Unobserved, Some(&mut device)).unwrap();
            commit.publish(&[&path], &mut Unobserved).unwrap();
            std::fs::read(&path).unwrap()
        };
        prop_assert!(written == oracle(&storages, 64));
    }

    #[test]
    fn short_and_interrupted_writes_change_nothing(
        sizes in prop::collection::vec(1usize..50_000, 1..6),
        most in prop::sample::select(vec![1usize, 511, 512, 4096, 5000]),
    ) {
        let scratch = Scratch::new();
        let small: Vec<usize> = sizes.iter().map(|nbytes| if most < 500 { nbytes % 300 } else { *nbytes }).collect();
        let storages = payloads(&small);
        let path = scratch.path("model.pt");
        let script = Script { short_writes: Some(most), ..Script::default() };
        let (result, _) = save(&path, &plan_of(&storages, 64), &WriteOptions::default(), script);
        result.unwrap();
        prop_assert!(std::fs::read(&path).unwrap() == oracle(&storages, 64));
    }
}

struct Collect(Vec<u8>);

impl Sink for Collect {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Hands out bytes of host memory as a device would: only when it is told to finish.
struct FakeDevice {
    storages: Vec<&'static [u8]>,
    buffers: Vec<Vec<u8>>,
    slots: Vec<Memory>,
    pending: Vec<Option<(usize, u64, usize)>>,
}

impl FakeDevice {
    fn new(storages: &[&'static [u8]], slots: usize, slot_nbytes: usize) -> Self {
        let mut buffers = vec![vec![0u8; slot_nbytes]; slots];
        // SAFETY: the buffers live as long as the device, and their vectors do not grow.
        #[allow(unsafe_code)]
        let slots = buffers
            .iter_mut()
            .map(|buffer| unsafe { Memory::new(buffer.as_mut_ptr(), slot_nbytes) })
            .collect();
        Self {
            storages: storages.to_vec(),
            pending: vec![None; buffers.len()],
            buffers,
            slots,
        }
    }
}

impl SaveStager for FakeDevice {
    fn slots(&self) -> &[Memory] {
        &self.slots
    }
    fn start(
        &mut self,
        slot: usize,
        storage: usize,
        offset: u64,
        nbytes: usize,
    ) -> Result<(), Stop> {
        assert!(self.pending[slot].is_none() && nbytes <= self.buffers[slot].len());
        self.pending[slot] = Some((storage, offset, nbytes));
        Ok(())
    }
    fn finish(&mut self, slot: usize) -> Result<(), Stop> {
        let (storage, offset, nbytes) = self.pending[slot].take().unwrap();
        let start = usize::try_from(offset).unwrap();
        self.buffers[slot][..nbytes]
            .copy_from_slice(&self.storages[storage][start..start + nbytes]);
        Ok(())
    }
}

#[test]
fn every_operation_that_fails_is_reported_and_leaves_the_old_file() {
    let storages = payloads(&[100_000, 0, 17]);
    let plan = plan_of(&storages, 64);
    let options = WriteOptions {
        threads: threads(1),
        chunk_nbytes: NonZeroUsize::new(8 * BLOCK),
        direct: None,
    };
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    let (_, counted) = save(&path, &plan, &options, Script::default());
    let operations = counted.log.lock().unwrap().clone();
    assert!(operations.len() > 10, "{operations:?}");
    for errno in [EIO, ENOSPC] {
        for (number, name) in operations.iter().enumerate() {
            std::fs::write(&path, b"the old checkpoint").unwrap();
            let (result, script) = save(
                &path,
                &plan,
                &options,
                Script {
                    fail: Some((number, errno)),
                    ..Script::default()
                },
            );
            let context = format!("{name} (operation {number}) fails with {errno}");
            if ["is_local", "names"].contains(name) {
                // Housekeeping: the save does not depend on it.
                result.expect(&context);
                continue;
            }
            match result.expect_err(&context) {
                Error::CommitUnknown { source, .. } => {
                    assert_eq!(
                        (*name, source.raw_os_error()),
                        ("sync_directory", Some(errno)),
                        "{context}"
                    );
                    assert!(
                        std::fs::read(&path).unwrap() == oracle(&storages, 64),
                        "{context}"
                    );
                    continue;
                }
                Error::Io {
                    source,
                    path: reported,
                    ..
                } => {
                    assert_eq!(source.raw_os_error(), Some(errno), "{context}");
                    assert!(
                        reported.starts_with(scratch.path("")),
                        "{context}: {reported:?}"
                    );
                }
                other => panic!("{context}: {other:?}"),
            }
            assert_eq!(
                std::fs::read(&path).unwrap(),
                b"the old checkpoint",
                "{context}"
            );
            assert_eq!(scratch.names(), ["model.pt"], "{context}");
            assert!(
                script.count("sync") <= 1,
                "{context}: fsync was tried again"
            );
        }
    }
}

#[test]
fn direct_io_that_is_refused_at_open_or_at_the_first_write_falls_back() {
    let storages = payloads(&[300_000, 5]);
    let expected = oracle(&storages, 64);
    for refused in ["create_direct", "write_at"] {
        let scratch = Scratch::new();
        let path = scratch.path("model.pt");
        let script = if refused == "write_at" {
            // The first write: directory, destination, creation, lock, metadata and allocation come before it.
            let (_, counted) = save(
                &path,
                &plan_of(&storages, 64),
                &WriteOptions::default(),
                Script::default(),
            );
            std::fs::remove_file(&path).unwrap();
            let first = counted
                .log
                .lock()
                .unwrap()
                .iter()
                .position(|name| *name == "write_at")
                .unwrap();
            Script {
                fail: Some((first, EINVAL)),
                ..Script::default()
            }
        } else {
            Script {
                fail_named: Some(("create_direct", EINVAL)),
                ..Script::default()
            }
        };
        let (result, script) = save(
            &path,
            &plan_of(&storages, 64),
            &WriteOptions::default(),
            script,
        );
        result.unwrap();
        assert!(std::fs::read(&path).unwrap() == expected, "{refused}");
        assert_eq!(
            script.count("set_direct"),
            usize::from(refused == "write_at")
        );
        assert_eq!(scratch.names(), ["model.pt"]);
    }
}

#[test]
fn a_file_system_that_cannot_reserve_space_is_written_to_all_the_same() {
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    let storages = payloads(&[9000]);
    let eopnotsupp = Script {
        fail_named: Some(("allocate", 95)),
        ..Script::default()
    };
    let (result, _) = save(
        &path,
        &plan_of(&storages, 64),
        &WriteOptions::default(),
        eopnotsupp,
    );
    result.unwrap();
    assert!(std::fs::read(&path).unwrap() == oracle(&storages, 64));
}

#[test]
fn the_order_is_write_fsync_rename_fsync_of_the_directory() {
    let scratch = Scratch::new();
    let (result, script) = save(
        &scratch.path("model.pt"),
        &plan_of(&payloads(&[10]), 64),
        &WriteOptions::default(),
        Script::default(),
    );
    result.unwrap();
    let log = script.log.lock().unwrap();
    let order: Vec<_> = log
        .iter()
        .filter(|name| ["write_at", "truncate", "sync", "rename", "sync_directory"].contains(name))
        .collect();
    assert_eq!(
        order,
        [
            &"write_at",
            &"truncate",
            &"sync",
            &"rename",
            &"sync_directory"
        ]
    );
}

/// Stops the job the first time it is asked after `after` bytes are done.
struct StopAfter(u64);

impl Observer for StopAfter {
    fn poll(&mut self, done_nbytes: u64, _total_nbytes: u64) -> Result<(), Stop> {
        if done_nbytes >= self.0 {
            Err(Stop)
        } else {
            Ok(())
        }
    }
}

#[test]
fn an_interrupted_save_ends_at_once_and_leaves_nothing() {
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    let storages = payloads(&[64 << 20]);
    for thread_count in [1, 4] {
        let mut commit = Commit::new(Arc::new(RealFiles), true);
        let options = WriteOptions {
            threads: threads(thread_count),
            ..WriteOptions::default()
        };
        let started = Instant::now();
        let result = commit.write_archive(
            &path,
            &plan_of(&storages, 64),
            &options,
            &mut StopAfter(1),
            None,
        );
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert!(started.elapsed().as_secs() < 10);
        assert_eq!(scratch.names(), Vec::<String>::new());
    }
}

#[test]
fn a_new_file_obeys_the_umask_and_a_replaced_one_keeps_its_mode() {
    let scratch = Scratch::new();
    let (other, path) = (scratch.path("other"), scratch.path("model.pt"));
    std::fs::write(&other, b"").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let plan = plan_of(&payloads(&[10]), 64);
    save(&path, &plan, &WriteOptions::default(), Script::default())
        .0
        .unwrap();
    assert_eq!(mode(&path), mode(&other));
    for wanted in [0o600, 0o640, 0o444, 0o755] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(wanted)).unwrap();
        save(&path, &plan, &WriteOptions::default(), Script::default())
            .0
            .unwrap();
        assert_eq!(mode(&path), wanted);
    }
}

#[test]
fn symbolic_links_are_followed_and_other_things_refused() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("elsewhere")).unwrap();
    let plan = plan_of(&payloads(&[10]), 64);
    let attempt = |name: &str| {
        save(
            &scratch.path(name),
            &plan,
            &WriteOptions::default(),
            Script::default(),
        )
        .0
    };

    std::os::unix::fs::symlink("elsewhere/target.pt", scratch.path("link.pt")).unwrap();
    attempt("link.pt").unwrap();
    assert!(
        std::fs::symlink_metadata(scratch.path("link.pt"))
            .unwrap()
            .is_symlink()
    );
    assert!(scratch.path("elsewhere/target.pt").is_file());

    std::os::unix::fs::symlink("loop.pt", scratch.path("loop.pt")).unwrap();
    let errno_of = |result: Result<u64, Error>| match result {
        Err(Error::Io { source, phase, .. }) => (source.raw_os_error(), phase),
        other => panic!("{other:?}"),
    };
    assert_eq!(errno_of(attempt("loop.pt")), (Some(40), Phase::Inspect));
    assert_eq!(errno_of(attempt("elsewhere")), (Some(21), Phase::Inspect));
    assert_eq!(
        errno_of(attempt("missing/model.pt")),
        (Some(2), Phase::OpenDirectory)
    );
    assert_eq!(
        errno_of(
            save(
                Path::new("/dev/null"),
                &plan,
                &WriteOptions::default(),
                Script::default()
            )
            .0
        )
        .0,
        Some(EINVAL)
    );
}

#[test]
fn the_last_of_several_saves_at_once_wins_and_is_whole() {
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    let candidates: Vec<_> = (1..5).map(|seed| vec![payload(seed, 300_000)]).collect();
    let finished = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for storages in &candidates {
            scope.spawn(|| {
                for _ in 0..5 {
                    save(
                        &path,
                        &plan_of(storages, 64),
                        &WriteOptions::default(),
                        Script::default(),
                    )
                    .0
                    .unwrap();
                }
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        while finished.load(Ordering::Relaxed) < candidates.len() {
            if let Ok(bytes) = std::fs::read(&path) {
                assert!(
                    candidates
                        .iter()
                        .any(|storages| oracle(storages, 64) == bytes)
                );
            }
        }
    });
    assert_eq!(scratch.names(), ["model.pt"]);
}

#[test]
fn directories_are_created_and_their_parents_synced() {
    let scratch = Scratch::new();
    let script = Arc::new(Script::default());
    let mut commit = Commit::new(Arc::new(ScriptedFiles(Arc::clone(&script))), true);
    let deep = scratch.path("a/b/c");
    commit.create_directory(&deep, &mut Unobserved).unwrap();
    assert!(deep.is_dir());
    assert_eq!(script.count("sync_directory"), 3);
    commit.create_directory(&deep, &mut Unobserved).unwrap();
    assert_eq!(script.count("sync_directory"), 3, "nothing was created");
    std::fs::write(scratch.path("file"), b"").unwrap();
    for taken in ["file", "file/below"] {
        let result = commit.create_directory(&scratch.path(taken), &mut Unobserved);
        assert!(
            matches!(result, Err(Error::Io { .. })),
            "{taken}: {result:?}"
        );
    }
}

#[test]
fn a_save_removes_the_temporary_files_of_the_dead_and_no_others() {
    let scratch = Scratch::new();
    let dead = ".fastckpt-1-0.tmp";
    for name in [
        dead,
        ".fastckpt-1-0.tmp.bak",
        "model_000001.tmp",
        "notes.txt",
    ] {
        std::fs::write(scratch.path(name), b"something").unwrap();
    }
    // The living: somebody who is writing right now, in this process or in another one.
    let alive = ".fastckpt-2-0.tmp";
    std::fs::write(scratch.path(alive), b"half a checkpoint").unwrap();
    let held = RealFiles.open(&scratch.path(alive)).unwrap();
    held.lock().unwrap();
    let plan = plan_of(&payloads(&[10]), 64);
    let attempt = || {
        save(
            &scratch.path("model.pt"),
            &plan,
            &WriteOptions::default(),
            Script::default(),
        )
        .0
    };
    attempt().unwrap();
    let left = [
        ".fastckpt-1-0.tmp.bak",
        alive,
        "model.pt",
        "model_000001.tmp",
        "notes.txt",
    ];
    assert_eq!(scratch.names(), left);
    drop(held);
    attempt().unwrap();
    assert!(!scratch.path(alive).exists());
}

/// Remembers what it was told.
#[derive(Default)]
struct Recorder(Vec<(u64, u64)>);

impl Observer for Recorder {
    fn poll(&mut self, done_nbytes: u64, total_nbytes: u64) -> Result<(), Stop> {
        self.0.push((done_nbytes, total_nbytes));
        Ok(())
    }
}

fn assert_progress(recorder: &Recorder, nbytes: u64) {
    assert!(recorder.0.is_sorted(), "{:?}", recorder.0);
    assert!(recorder.0.iter().all(|(_, total)| *total == nbytes));
    assert_eq!(recorder.0.last(), Some(&(nbytes, nbytes)));
}

#[test]
fn progress_grows_to_the_total_and_stays_there_during_a_slow_fsync() {
    let scratch = Scratch::new();
    let script = Script {
        slow_sync: std::time::Duration::from_millis(200),
        ..Script::default()
    };
    let path = scratch.path("model.pt");
    let plan = plan_of(&payloads(&[5 << 20]), 64);
    let mut commit = Commit::new(Arc::new(ScriptedFiles(Arc::new(script))), true);
    let mut recorder = Recorder::default();
    let nbytes = commit
        .write_archive(&path, &plan, &WriteOptions::default(), &mut recorder, None)
        .unwrap();
    assert_progress(&recorder, nbytes);
    assert!(recorder.0.len() > 2, "nothing was said during the fsync");
}

/// Takes its time.
struct SlowSink;

impl Sink for SlowSink {
    fn write(&mut self, _bytes: &[u8]) -> Result<(), Stop> {
        std::thread::sleep(std::time::Duration::from_millis(5));
        Ok(())
    }
}

#[test]
fn progress_in_sequence_ends_with_the_total() {
    let plan = plan_of(&payloads(&[20 << 20]), 64);
    let mut recorder = Recorder::default();
    write::write_to_sink(
        &mut SlowSink,
        &plan,
        &WriteOptions::default(),
        &mut recorder,
        None,
    )
    .unwrap();
    assert_progress(&recorder, plan.nbytes());
}
