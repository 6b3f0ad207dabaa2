//! Whatever the bytes are: no panic, and a graph that keeps its promises.

use proptest::prelude::*;

use super::*;

const FILES: &[&str] = &[
    "adamw",
    "attributes",
    "nested",
    "newer_dtypes",
    "sparse",
    "state_dict",
    "views",
];

/// What every accepted pickle has to keep, whatever its bytes.
fn check_invariants(graph: &Graph) {
    check_nodes(graph);
    let reduced = graph.clone().for_plain_values(2);
    check_nodes(&reduced);
    assert!(reduced.reachable().len() <= graph.reachable().len() + 1);
}

fn check_nodes(graph: &Graph) {
    for (index, node) in graph.nodes().iter().enumerate() {
        match node {
            Node::Tuple(items) | Node::Set(items) => {
                assert!(items.iter().all(|item| item.index() < index));
            }
            Node::Parameter { tensor, .. } => assert!(tensor.index() < index),
            Node::Tensor(tensor) => check_tensor(graph, tensor),
            Node::Call { args, .. } => assert!(args.index() < index),
            _ => {}
        }
    }
    assert!(graph.reachable().is_sorted());
    assert!(graph.reachable().contains(&graph.root()));
    for (storage, name) in graph.tensor_names() {
        assert!(storage.index() < graph.storages().len());
        assert!(!name.contains(char::is_control));
    }
}

fn check_tensor(graph: &Graph, tensor: &Tensor) {
    if tensor.size.contains(&0) {
        return;
    }
    let steps = tensor.size.iter().zip(&tensor.stride);
    let last: u128 = steps
        .map(|(size, stride)| u128::from(size - 1) * u128::from(*stride))
        .sum();
    let end = (u128::from(tensor.offset) + last + 1) * u128::from(tensor.dtype.itemsize());
    assert!(end <= u128::from(graph.storages()[tensor.storage.index()].nbytes));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(graph) = decode(bytes, Limits::default()) {
            check_invariants(&graph);
        }
    }

    /// Short pieces that fit together more often than random bytes do.
    #[test]
    fn any_opcodes_are_decoded_or_refused(pieces in prop::collection::vec(0_usize..PIECES.len(), 0..60)) {
        let body: Vec<&[u8]> = pieces.iter().map(|piece| PIECES[*piece]).collect();
        if let Ok(graph) = decode(pickle(&body), Limits::default()) {
            check_invariants(&graph);
        }
    }

    #[test]
    fn any_change_of_a_real_pickle_is_decoded_or_refused(
        file_index in 0_usize..FILES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = crate::file(FILES[file_index]);
        for (position, value) in changes {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        if let Ok(graph) = decode(bytes, Limits::default()) {
            check_invariants(&graph);
        }
    }
}

const PIECES: &[&[u8]] = &[
    b"N",
    b"\x88",
    b"K\x01",
    b"K\x02",
    b"]",
    b"}",
    b")",
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"a",
    b"e",
    b"s",
    b"u",
    b"R",
    b"b",
    b"\x81",
    b"Q",
    b"q\x00",
    b"q\x01",
    b"h\x00",
    b"h\x01",
    b"X\x01\x00\x00\x00k",
    b"X\x09\x00\x00\x00_metadata",
    b"X\x07\x00\x00\x00storage",
    b"ccollections\nOrderedDict\n",
    b"ccollections\nOrderedDict\n)R",
    b"ctorch\nSize\n",
    b"c__builtin__\nset\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nuint16\n",
    b"cos\nsystem\n",
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ",
];
