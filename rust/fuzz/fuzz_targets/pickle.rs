//! Any bytes as `data.pkl`: refused, or a graph whose every part can be visited. What torch's unpickler gets
//! in its place leaves the same stack, so that no opcode meets another object than the decoder saw.
#![no_main]

use fastckpt_format::pickle::{Graph, Limits, Node, decode};
use fastckpt_fuzz::memory::bounded;
use fastckpt_fuzz::stack::unpickle;
use libfuzzer_sys::fuzz_target;

/// A node of the graph, with its place on the stack and in the memo, is some 100 bytes, and can cost a
/// single byte of pickle.
const MEMORY_PER_BYTE: usize = 256;

fn check(bytes: Vec<u8>) {
    let nbytes = bytes.len();
    let Ok(graph) = decode(bytes, Limits::default()) else {
        return;
    };
    // A node costs a byte, but for the four singletons.
    assert!(graph.nodes().len() <= nbytes + 4);
    assert!(graph.reachable().contains(&graph.root()));
    for id in graph.reachable() {
        if let Node::Tensor(tensor) = graph.node(*id) {
            assert!(tensor.storage.index() < graph.storages().len());
            assert_eq!(tensor.size.len(), tensor.stride.len());
        }
    }
    let reduced = graph.clone().for_plain_values(16);
    assert!(reduced.reachable().is_sorted());
    assert!(reduced.reachable().contains(&graph.root()));
    check_arrays(&graph);
    if let Some(for_torch) = graph.for_torch() {
        let asked = unpickle(&for_torch.pickle);
        assert_eq!(asked, for_torch.objects.len());
    }
    for (storage, name) in graph.tensor_names() {
        assert!(graph.record_name(storage).is_some());
        assert!(!name.contains(char::is_control));
    }
}

fn check_arrays(graph: &Graph) {
    for node in graph.nodes() {
        if let Node::NumpyArray(array) = node {
            let numel: u64 = array.shape.iter().product();
            assert_eq!(numel, array.numel());
            let itemsize = usize::from(array.dtype.kind.itemsize());
            assert!(array.data.len().is_multiple_of(itemsize));
        }
    }
}

fuzz_target!(|bytes: Vec<u8>| {
    bounded(bytes.len(), MEMORY_PER_BYTE, || check(bytes));
});
