//! The opcodes that push a value of their own.

use super::*;

#[test]
fn each_opcode_pushes_its_value() {
    let cases: &[(&[u8], Node)] = &[
        (b"N", Node::None),
        (b"\x88", Node::Bool(true)),
        (b"\x89", Node::Bool(false)),
        (b"K\xff", Node::Int(255)),
        (b"M\x00\x01", Node::Int(256)),
        (b"J\xff\xff\xff\xff", Node::Int(-1)),
        (b"G\xbf\xf8\x00\x00\x00\x00\x00\x00", Node::Float(-1.5)),
        (b")", Node::Tuple(Box::default())),
        (b"]", Node::List(vec![])),
        (b"}", Node::Dict(vec![])),
        (b"\x8f", Node::Set(Box::default())),
        (b"\x8a\x00", Node::Int(0)),
        (b"\x8a\x01\xff", Node::Int(-1)),
        (b"\x8a\x05\x00\x00\x00\x80\x00", Node::Int(1 << 31)),
        (
            b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80",
            Node::Int(i64::MIN),
        ),
        (
            b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
            Node::Int(i64::MAX),
        ),
        // Padded with sign bytes it is still short.
        (
            b"\x8a\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            Node::Int(-1),
        ),
    ];
    for (bytes, node) in cases {
        assert_eq!(root(&graph(&[bytes])), node, "{bytes:?}");
    }
}

#[test]
fn longer_ints_keep_their_bytes() {
    // 2**63 and -2**63 - 1 differ from 64-bit numbers in their ninth byte alone.
    for bytes in [
        b"\x00\x00\x00\x00\x00\x00\x00\x80\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f\xff",
    ] {
        let graph = graph(&[b"\x8a\x09", bytes]);
        assert_eq!(root(&graph), &Node::Long(bytes.as_slice().into()));
    }
}

#[test]
fn texts_are_spans_of_the_pickle() {
    for (opcode, surrogates, bytes) in [
        (
            b"X\x03\x00\x00\x00".as_slice(),
            false,
            b"h\xc3\xa9".as_slice(),
        ),
        (b"U\x03", false, b"h\xc3\xa9"),
        (b"X\x05\x00\x00\x00", true, b"a\xed\xa0\x80b"),
    ] {
        let graph = graph(&[opcode, bytes]);
        let Node::Text(text) = *root(&graph) else {
            panic!("no text");
        };
        assert_eq!(graph.text(text), bytes);
        assert_eq!(text.has_surrogates(), surrogates);
    }
}

#[test]
fn a_node_is_half_a_cache_line() {
    assert_eq!(size_of::<Node>(), 32);
}
