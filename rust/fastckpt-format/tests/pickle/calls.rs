//! Calls with a meaning, and calls that are left to torch.

use super::*;

#[test]
fn plain_values_come_from_calls() {
    let latin1 = [
        b"c_codecs\nencode\n".as_slice(),
        &unicode("\u{e9}a"),
        &unicode("latin1"),
    ];
    let latin1 = [latin1.concat().as_slice(), b"\x86R"].concat();
    let cases: &[(&[&[u8]], Node)] = &[
        (&[&latin1], Node::Bytes([0xe9, b'a'].into())),
        (
            &[b"c__builtin__\nbytearray\n", &latin1, b"\x85R"],
            Node::ByteArray([0xe9, b'a'].into()),
        ),
        (
            &[b"c__builtin__\nbytearray\n)R"],
            Node::ByteArray(Box::default()),
        ),
        (
            &[
                b"cbuiltins\nbytearray\n",
                &unicode("\u{ff}"),
                &unicode("latin-1"),
                b"\x86R",
            ],
            Node::ByteArray([0xff].into()),
        ),
        (
            &[b"c__builtin__\ncomplex\nG\0\0\0\0\0\0\0\0G\x80\0\0\0\0\0\0\0\x86R"],
            Node::Complex(0.0, -0.0),
        ),
        (
            &[b"ctorch\nSize\n", &tuple(&[2, 3]), b"\x85R"],
            Node::Size([2, 3].into()),
        ),
        (&[b"ctorch\nbfloat16\n"], Node::Dtype(Dtype::BFloat16)),
    ];
    for (parts, node) in cases {
        let graph = graph(parts);
        assert_eq!(graph.outside(), None, "{node:?}");
        assert_eq!(root(&graph), node);
    }
}

#[test]
fn a_set_copies_its_list() {
    let graph = graph(&[b"c__builtin__\nset\n](K\x01K\x02e\x85R"]);
    let Node::Set(items) = root(&graph) else {
        panic!("no set");
    };
    assert_eq!(items.len(), 2);
}

#[test]
fn a_device_has_a_kind_and_an_index() {
    for (parts, expected) in [(b"\x85R".as_slice(), None), (b"K\x03\x86R", Some(3))] {
        let graph = graph(&[b"ctorch\ndevice\n", &unicode("cuda"), parts]);
        let Node::Device { kind, index } = root(&graph) else {
            panic!("no device");
        };
        assert_eq!(graph.text(*kind), b"cuda");
        assert_eq!(*index, expected);
    }
}

#[test]
fn rare_forms_are_left_to_torch() {
    let cases: &[(&[&[u8]], &str)] = &[
        (
            &[b"ctorch\nSize\n]\x85R"],
            "a call of torch.Size of a rare form",
        ),
        (&[b"ctorch\nSize\n"], "global torch.Size as a value"),
        (
            &[b"ctorch\nFloatStorage\n"],
            "global torch.FloatStorage as a value",
        ),
        (&[b"ctorch\nquint8\n"], "global torch.quint8"),
        (&[b"ctorch\nnn\n"], "global torch.nn"),
        (&[b"c__builtin__\neval\n"], "global builtins.eval"),
        (
            &[b"ccopy_reg\n_reconstructor\n"],
            "global copyreg._reconstructor",
        ),
        (
            &[b"c__builtin__\nset\n)\x85R"],
            "a call of builtins.set of a rare form",
        ),
        (&[b"ctorch\nSize\n)\x81"], "object of class torch.Size"),
        (&[HOOKS, b"}K\x01Nsb"], "an OrderedDict with a state"),
        (&[HOOKS, b"Nb"], "an OrderedDict with a state"),
        (
            &[
                b"c_codecs\nencode\n",
                &unicode("\u{100}"),
                &unicode("latin1"),
                b"\x86R",
            ],
            "a call of _codecs.encode of a rare form",
        ),
        (
            &[
                b"c_codecs\nencode\n",
                &unicode("a"),
                &unicode("rot13"),
                b"\x86R",
            ],
            "a call of _codecs.encode of a rare form",
        ),
        (
            &[&storage("torch\nFloatStorage", "7", 1)],
            "storage \"7\" without a tensor",
        ),
        (
            &[
                &storage("torch\nFloatStorage", "7", 1),
                &storage("torch\nFloatStorage", "7", 2),
                b"\x86",
            ],
            "storage \"7\" described in two ways",
        ),
        (
            &[&storage("torch.cuda\nHalfStorage", "7", 1)],
            "global torch.cuda.HalfStorage",
        ),
    ];
    for (parts, reason) in cases {
        assert_eq!(graph(parts).outside(), Some(*reason));
    }
    let no_protocol = decode(b"N.".to_vec(), Limits::default()).unwrap();
    assert_eq!(no_protocol.outside(), Some("a pickle without a protocol"));
    let protocol_3 = decode(b"\x80\x03N.".to_vec(), Limits::default()).unwrap();
    assert_eq!(protocol_3.outside(), Some("pickle protocol 3"));
}
