//! Any storages, any alignment, any way of writing: the archive is byte for byte the one that is put
//! together the plain way, it verifies, it loads, and any flipped bit in it is reported.

#![no_main]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use fastckpt_core::Error;
use fastckpt_core::job::{Stop, Unobserved};
use fastckpt_core::memory::Memory;
use fastckpt_core::read::{Archive, ReadOptions};
use fastckpt_core::verify::{FileReport, VerifyOptions, verify_archive};
use fastckpt_core::write::{ArchivePlan, Sink, StorageSource, WriteOptions, write_to_sink};
use fastckpt_format::archive::{
    FIRST_STORAGE, SaveMark, fixed_payload, record_specs, serialization_id,
};
use fastckpt_format::checksum::crc32;
use fastckpt_format::index::Checksums;
use fastckpt_format::layout::{Alignment, Layout};
use fastckpt_fuzz::zipfile::render;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const ROOT: &str = "model";
/// Enough for records that share an arena, and for records in many chunks; more is only slower.
const MAX_STORAGES: usize = 12;
/// A record above this has several chunks of the smallest size.
const MAX_STORAGE_NBYTES: u16 = 9000;
/// Every record pays for the alignment in bytes to look at: more than this is for one input in 16.
const USUAL_ALIGNMENT: u16 = 130;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Size of each storage, and the byte that its contents begin with.
    storages: Vec<(u16, u8)>,
    alignment: u16,
    shards: u32,
    save_id: u64,
    threads: u8,
    chunk_nbytes: u16,
    /// Which bit of the file is flipped in the end.
    flipped: u32,
}

struct Bytes(Vec<u8>);

impl Sink for Bytes {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn contents((nbytes, first): (u16, u8)) -> Vec<u8> {
    let nbytes = usize::from(nbytes % MAX_STORAGE_NBYTES);
    let block: Vec<u8> = (0..=255).map(|byte| first.wrapping_add(byte)).collect();
    let mut bytes = Vec::with_capacity(nbytes + block.len() + 1);
    while bytes.len() < nbytes {
        bytes.extend_from_slice(&block);
        // No two blocks alike.
        let number = bytes.len() / block.len();
        bytes.push(number as u8);
    }
    bytes.truncate(nbytes);
    bytes
}

/// What torch.save pickles for a list of uint8 tensors.
fn pickle(storages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"\x80\x02](".to_vec();
    for (key, storage) in storages.iter().enumerate() {
        let key = key.to_string();
        let numel = (storage.len() as u32).to_le_bytes();
        out.extend(
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nByteStorage\nX",
        );
        out.extend((key.len() as u32).to_le_bytes());
        out.extend(key.as_bytes());
        out.extend(b"X\x03\0\0\0cpuJ");
        out.extend(numel);
        out.extend(b"tQK\x00J");
        out.extend(numel);
        out.extend(b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"e.");
    out
}

/// The archive, put together without the engine.
fn plain(pickle: &[u8], storages: &[Vec<u8>], alignment: Alignment, mark: SaveMark) -> Vec<u8> {
    let sizes: Vec<u64> = storages.iter().map(|bytes| bytes.len() as u64).collect();
    let specs = record_specs(pickle.len() as u64, alignment, &sizes);
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    for (position, spec) in specs.iter().enumerate() {
        let storage = position
            .checked_sub(FIRST_STORAGE)
            .and_then(|number| storages.get(number));
        payloads.push(match (position, storage) {
            (0, _) => pickle.to_vec(),
            (_, Some(storage)) => storage.clone(),
            (_, None) => fixed_payload(&spec.name, alignment).unwrap_or_else(|| {
                let written: Vec<_> = payloads
                    .iter()
                    .map(|payload| (crc32(payload), payload.len() as u64))
                    .collect();
                serialization_id(mark, &written).to_vec()
            }),
        });
    }
    let layout = Layout::plan(ROOT, specs, alignment).expect("the names are torch's");
    render(&layout, payloads.iter().map(Vec::as_slice))
}

fn write(
    pickle: Vec<u8>,
    storages: &[Vec<u8>],
    alignment: Alignment,
    mark: SaveMark,
    options: &WriteOptions,
) -> Vec<u8> {
    let sources: Vec<_> = storages
        .iter()
        .map(|bytes| {
            // SAFETY: the storages outlive this function, and are only read.
            let memory = unsafe { Memory::new(bytes.as_ptr().cast_mut(), bytes.len()) };
            StorageSource::Memory(memory)
        })
        .collect();
    let plan =
        ArchivePlan::new(ROOT, pickle, &sources, alignment, mark).expect("the names are torch's");
    let mut sink = Bytes(Vec::new());
    write_to_sink(&mut sink, &plan, options, &mut Unobserved, None).expect("memory takes it all");
    assert_eq!(sink.0.len() as u64, plan.nbytes());
    sink.0
}

fn open(file: Vec<u8>) -> Result<Archive, Error> {
    Archive::from_bytes(Arc::new(file), PathBuf::from("fuzzed.pt"))
}

fn verify(archive: &Archive) -> FileReport {
    let options = VerifyOptions {
        quick: false,
        threads: NonZeroUsize::new(1),
    };
    verify_archive(archive, &options, &mut Unobserved).expect("memory can be read")
}

fn check_loading(archive: &Archive, storages: &[Vec<u8>], threads: Option<NonZeroUsize>) {
    let graph = archive.decode(true).expect("the pickle is torch's");
    assert_eq!(graph.storages().len(), storages.len());
    assert_eq!(graph.outside(), None);
    let keys: Vec<String> = (0..storages.len()).map(|key| key.to_string()).collect();
    let options = ReadOptions {
        verify: true,
        threads,
    };
    let spans = archive
        .read(&keys, &options, &mut Unobserved)
        .expect("the records are good");
    for (span, storage) in spans.iter().zip(storages) {
        assert_eq!(span.as_slice(), storage);
    }
}

fuzz_target!(|input: Input| {
    let alignment = match input.alignment {
        large if large.is_multiple_of(16) => large,
        small => small % USUAL_ALIGNMENT + 1,
    };
    let Ok(alignment) = Alignment::new(u64::from(alignment)) else {
        return;
    };
    let mark = SaveMark {
        shards: input.shards % 100_000,
        save_id: input.save_id % 100_000_000_000_000,
    };
    let threads = NonZeroUsize::new(usize::from(input.threads % 4));
    let options = WriteOptions {
        threads,
        chunk_nbytes: NonZeroUsize::new(usize::from(input.chunk_nbytes)),
        direct: None,
    };
    let sizes = input.storages.into_iter().take(MAX_STORAGES);
    let storages: Vec<Vec<u8>> = sizes.map(contents).collect();
    let pickle = pickle(&storages);
    let mut file = write(pickle.clone(), &storages, alignment, mark, &options);
    assert!(file == plain(&pickle, &storages, alignment, mark));

    let archive = open(file.clone()).expect("the file is good");
    assert!(archive.index().layout().is_some());
    let good = FileReport {
        nbytes: file.len() as u64,
        records: storages.len() + 6,
        checksums: Checksums::All,
        headers_covered: true,
        damages: Vec::new(),
    };
    assert_eq!(verify(&archive), good);
    let id = archive
        .read_record(".data/serialization_id", true)
        .expect("the record is good");
    assert_eq!(SaveMark::parse(&id), Some(mark));
    check_loading(&archive, &storages, threads);

    let bit = input.flipped as usize % (file.len() * 8);
    file[bit / 8] ^= 1 << (bit % 8);
    match open(file) {
        Ok(damaged) => assert_ne!(verify(&damaged).damages, []),
        Err(Error::Format { .. }) => {}
        Err(error) => panic!("{error}"),
    }
});
