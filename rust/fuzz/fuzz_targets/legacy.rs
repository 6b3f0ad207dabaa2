//! Any bytes as a file of torch before 1.6: refused, or every storage lies in it and is read as it
//! stands there.
#![no_main]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use fastckpt_core::Error;
use fastckpt_core::job::Unobserved;
use fastckpt_core::read::{LegacyFile, ReadOptions};
use fastckpt_format::pickle::Node;
use fastckpt_fuzz::memory::bounded;
use libfuzzer_sys::fuzz_target;

/// As for a pickle, of which a file may consist whole: a node is some 100 bytes.
const MEMORY_PER_BYTE: usize = 256;

/// A worker for each input would cost more than the input.
const OPTIONS: ReadOptions = ReadOptions {
    verify: true,
    threads: NonZeroUsize::new(1),
};

fn check(file: &[u8]) {
    let opened = LegacyFile::from_bytes(Arc::new(file.to_vec()), PathBuf::from("fuzzed.pt"), 0);
    let legacy = match opened {
        Ok(legacy) => legacy,
        Err(Error::Legacy { source, .. }) => {
            assert!(!source.to_string().is_empty());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let nbytes = file.len() as u64;
    assert!(legacy.end <= nbytes);
    let entries = legacy.archive.index().entries();
    let keys: Vec<String> = entries
        .iter()
        .map(|entry| entry.name["data/".len()..].to_owned())
        .collect();
    let graph = &legacy.graph;
    for storage in graph.storages() {
        let record = format!("data/{}", storage.key);
        let (_, entry) = legacy.archive.index().find(&record).expect("it is there");
        let start = storage.view_offset.unwrap_or(0);
        let itemsize = storage.dtype.map_or(1, |dtype| dtype.itemsize());
        assert!(start * itemsize + storage.nbytes <= entry.nbytes);
    }
    for id in graph.reachable() {
        if let Node::Tensor(tensor) = graph.node(*id) {
            assert!(tensor.storage.index() < graph.storages().len());
        }
    }
    let spans = legacy.archive.read(&keys, &OPTIONS, &mut Unobserved);
    let spans = spans.expect("memory can be read");
    for (span, entry) in spans.iter().zip(entries) {
        let start = entry.payload_offset as usize;
        assert_eq!(span.as_slice(), &file[start..start + entry.nbytes as usize]);
    }
}

fuzz_target!(|file: &[u8]| {
    bounded(file.len(), MEMORY_PER_BYTE, || check(file));
});
