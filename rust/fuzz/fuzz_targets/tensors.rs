//! An archive's data.pkl and its records: refused, or every tensor lies in the bytes of its storage.

#![no_main]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use fastckpt_core::Error;
use fastckpt_core::job::Unobserved;
use fastckpt_core::read::{Archive, ReadOptions, Span};
use fastckpt_format::pickle::{Graph, Node, StorageRef, Tensor};
use fastckpt_fuzz::memory::bounded;
use fastckpt_fuzz::mutate::mutate_archive;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

/// A node of the graph, with its place on the stack and in the memo, is some 100 bytes, and can cost a
/// single byte of pickle.
const MEMORY_PER_BYTE: usize = 256;

const OPTIONS: ReadOptions = ReadOptions {
    verify: true,
    threads: NonZeroUsize::new(1),
};

/// The bytes of its storage that a tensor has, reckoned here in numbers that cannot overflow.
fn extent(tensor: &Tensor) -> Option<(u128, u128)> {
    if tensor.size.contains(&0) {
        return None;
    }
    let itemsize = u128::from(tensor.dtype.itemsize());
    let dimensions = tensor.size.iter().zip(&tensor.stride);
    let reach = |(size, stride): (&u64, &u64)| u128::from(size - 1) * u128::from(*stride);
    let last = u128::from(tensor.offset) + dimensions.map(reach).sum::<u128>();
    Some((u128::from(tensor.offset) * itemsize, (last + 1) * itemsize))
}

/// The storages whose records are as long as data.pkl says, as a loader has it before it reads them.
fn read_storages(archive: &Archive, graph: &Graph) -> Option<Vec<Span>> {
    let nbytes = |storage: &StorageRef| {
        let (_, entry) = archive.index().find(&format!("data/{}", storage.key))?;
        Some(entry.nbytes)
    };
    let fits = |storage: &StorageRef| nbytes(storage).is_some_and(|found| found >= storage.nbytes);
    if !graph.storages().iter().all(fits) {
        return None;
    }
    let keys: Vec<String> = graph
        .storages()
        .iter()
        .map(|storage| storage.key.clone())
        .collect();
    match archive.read(&keys, &OPTIONS, &mut Unobserved) {
        Ok(spans) => Some(spans),
        Err(Error::Format { .. } | Error::Checksum(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

fn check_tensor(tensor: &Tensor, graph: &Graph, spans: Option<&[Span]>) {
    assert_eq!(tensor.size.len(), tensor.stride.len());
    let storage = &graph.storages()[tensor.storage.index()];
    let Some((start, end)) = extent(tensor) else {
        return;
    };
    assert!(
        end <= u128::from(storage.nbytes),
        "{tensor:?} in {storage:?}"
    );
    if let Some(spans) = spans {
        let memory = spans[tensor.storage.index()].as_slice();
        black_box((memory[start as usize], memory[end as usize - 1]));
    }
}

fn check(file: &[u8]) {
    let path = PathBuf::from("fuzzed.pt");
    let archive = match Archive::from_bytes(Arc::new(file.to_vec()), path) {
        Ok(archive) => archive,
        Err(Error::Format { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let graph = match archive.decode(true) {
        Ok(graph) => graph,
        Err(
            Error::Format { .. } | Error::Pickle { .. } | Error::Record { .. } | Error::Checksum(_),
        ) => return,
        Err(error) => panic!("{error}"),
    };
    let spans = read_storages(&archive, &graph);
    for id in graph.reachable() {
        if let Node::Tensor(tensor) = graph.node(*id) {
            check_tensor(tensor, &graph, spans.as_deref());
        }
    }
    for (storage, name) in graph.tensor_names() {
        assert!(graph.record_name(storage).is_some());
        assert!(!name.contains(char::is_control));
    }
}

fuzz_target!(|file: &[u8]| {
    bounded(file.len(), MEMORY_PER_BYTE, || check(file));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_archive(data, size, max_size, seed)
});
