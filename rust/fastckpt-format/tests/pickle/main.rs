//! The pickle decoder: each opcode, each refusal with its message, and pickles of `torch.save`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use fastckpt_format::pickle::{
    Dtype, Graph, Limits, Node, NodeId, PickleError, Tensor, TensorProblem, decode,
};

mod bounds;
mod calls;
mod containers;
mod literals;
mod numpy;
mod properties;
mod real;
mod refusals;
mod tensors;
mod values;

/// A pickle of protocol 2 with this body.
fn pickle(parts: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02", parts.concat().as_slice(), b"."].concat()
}

fn graph(parts: &[&[u8]]) -> Graph {
    decode(pickle(parts), Limits::default()).unwrap()
}

fn refusal(parts: &[&[u8]]) -> PickleError {
    decode(pickle(parts), Limits::default()).unwrap_err()
}

fn root(graph: &Graph) -> &Node {
    graph.node(graph.root())
}

fn text(graph: &Graph, id: NodeId) -> &str {
    let Node::Text(text) = graph.node(id) else {
        panic!("{:?} is no text", graph.node(id));
    };
    std::str::from_utf8(graph.text(*text)).unwrap()
}

/// `BINUNICODE`.
fn unicode(text: &str) -> Vec<u8> {
    let nbytes = u32::try_from(text.len()).unwrap().to_le_bytes();
    [b"X", nbytes.as_slice(), text.as_bytes()].concat()
}

/// `BININT`.
fn int(number: i32) -> Vec<u8> {
    [b"J", number.to_le_bytes().as_slice()].concat()
}

/// A tuple of ints.
fn tuple(numbers: &[i32]) -> Vec<u8> {
    let numbers: Vec<u8> = numbers.iter().flat_map(|number| int(*number)).collect();
    [b"(", numbers.as_slice(), b"t"].concat()
}

fn storage(class: &str, key: &str, numel: i32) -> Vec<u8> {
    [
        b"(".as_slice(),
        &unicode("storage"),
        b"c",
        class.as_bytes(),
        b"\n",
        &unicode(key),
        &unicode("cpu"),
        &int(numel),
        b"tQ",
    ]
    .concat()
}

const HOOKS: &[u8] = b"ccollections\nOrderedDict\n)R";

/// A tensor of version 2 over a storage of `numel` floats.
fn tensor(numel: i32, offset: i32, size: &[i32], stride: &[i32]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".as_slice(),
        &storage("torch\nFloatStorage", "0", numel),
        &int(offset),
        &tuple(size),
        &tuple(stride),
        b"\x89",
        HOOKS,
        b"tR",
    ]
    .concat()
}

/// A pickle of `torch.save`, see `data/`.
fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("tests/data/{name}.pkl")).unwrap()
}
