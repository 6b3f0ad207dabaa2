//! An archive is the same bytes however it is written.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "support/saving.rs"]
mod saving;
mod support;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastckpt_core::Error;
use fastckpt_core::commit::Commit;
use fastckpt_core::files::RealFiles;
use fastckpt_core::job::{Observer, Stop, Unobserved};
use fastckpt_core::memory::Memory;
use fastckpt_core::read::Archive;
use fastckpt_core::write::{
    self, ArchivePlan, NO_STEP, SaveStager, Sink, StorageSource, WriteOptions,
};
use fastckpt_format::layout::Alignment;
use libc::EINVAL;
use proptest::prelude::*;
use saving::{BLOCK, oracle, payloads, plan_of, save, threads};
use support::{Scratch, Script, ScriptedFiles};

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
        let written = result.unwrap();
        prop_assert_eq!(written.nbytes, expected.len() as u64);
        prop_assert!(std::fs::read(&path).unwrap() == expected);
        prop_assert_eq!(scratch.names(), ["model.pt"]);
        let id = Archive::open(&RealFiles, &path)
            .and_then(|archive| archive.read_record(".data/serialization_id", true))
            .unwrap();
        prop_assert_eq!(written.content_hash.as_bytes(), &id[20..]);
        let sizes: Vec<u64> = sizes.iter().map(|nbytes| *nbytes as u64).collect();
        let alignment = Alignment::new(alignment).unwrap();
        let planned = write::archive_nbytes("model", b"the pickle".len() as u64, &sizes, alignment);
        prop_assert_eq!(planned.unwrap(), written.nbytes);
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
fn direct_io_that_is_refused_at_open_or_at_the_first_write_falls_back() {
    let storages = payloads(&[300_000, 5]);
    let expected = oracle(&storages, 64);
    for refused in ["set_direct", "write_at"] {
        let scratch = Scratch::new();
        let path = scratch.path("model.pt");
        let (plan, options) = (plan_of(&storages, 64), WriteOptions::default());
        let (_, counted) = save(&path, &plan, &options, Script::default());
        std::fs::remove_file(&path).unwrap();
        let operations = counted.log.lock().unwrap().clone();
        let first = operations.iter().position(|name| *name == refused);
        let script = Script {
            fail: Some((first.unwrap(), EINVAL)),
            ..Script::default()
        };
        let (result, script) = save(
            &path,
            &plan_of(&storages, 64),
            &WriteOptions::default(),
            script,
        );
        result.unwrap();
        assert!(std::fs::read(&path).unwrap() == expected, "{refused}");
        // On once, and off again where the first write was refused.
        assert_eq!(
            script.count("set_direct"),
            1 + usize::from(refused == "write_at")
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
        slow_sync: Duration::from_millis(200),
        ..Script::default()
    };
    let path = scratch.path("model.pt");
    let plan = plan_of(&payloads(&[5 << 20]), 64);
    let mut commit = Commit::new(Arc::new(ScriptedFiles(Arc::new(script))), true);
    let mut recorder = Recorder::default();
    let written = commit
        .write_archive(&path, &plan, &WriteOptions::default(), &mut recorder, None)
        .unwrap();
    assert_progress(&recorder, written.nbytes);
    assert!(recorder.0.len() > 2, "nothing was said during the fsync");
}

/// Takes its time.
struct SlowSink;

impl Sink for SlowSink {
    fn write(&mut self, _bytes: &[u8]) -> Result<(), Stop> {
        std::thread::sleep(Duration::from_millis(5));
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

/// Freed memory is found before it is read, where it was given back to the system: no crash, and no file.
#[test]
#[cfg(target_os = "linux")]
fn a_storage_without_memory_ends_the_save() {
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    // SAFETY: nothing is mapped at the lowest addresses, and it is looked at before it is read.
    let freed = unsafe { Memory::new(std::ptr::without_provenance_mut(BLOCK), 5 << 20) };
    let storages = [
        StorageSource::Memory(Memory::of_static(payloads(&[3 << 20])[0])),
        StorageSource::Memory(freed),
    ];
    let alignment = Alignment::new(64).unwrap();
    let plan =
        ArchivePlan::new("model", b"pickle".to_vec(), &storages, alignment, NO_STEP).unwrap();
    for thread_count in [1, 4] {
        let mut commit = Commit::new(Arc::new(RealFiles), true);
        let options = WriteOptions {
            threads: threads(thread_count),
            ..WriteOptions::default()
        };
        let result = commit.write_archive(&path, &plan, &options, &mut Unobserved, None);
        let Err(Error::StorageChanged { storage, nbytes }) = result else {
            panic!("{result:?}")
        };
        assert_eq!((storage, nbytes), (1, 5 << 20));
        assert_eq!(scratch.names(), Vec::<String>::new());
    }
}
