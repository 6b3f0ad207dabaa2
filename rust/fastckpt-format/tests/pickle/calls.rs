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
        (&[b"ctorch\nSize\n)\x81"], "object of class torch.Size"),
        (&[HOOKS, b"}K\x01Nsb"], "an OrderedDict with a state"),
        (&[HOOKS, b"Nb"], "an OrderedDict with a state"),
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

#[test]
fn devices_of_other_kinds_are_left_to_torch() {
    for name in ["cuda:0", "cuda:99", "meta", "mps:1"] {
        let graph = graph(&[b"ctorch\ndevice\n", &unicode(name), b"\x85R"]);
        assert_eq!(graph.outside(), None, "{name}");
    }
    for name in ["nowhere", "cuda:", "cuda:100", "cuda:01", "cuda:-1", ""] {
        let graph = graph(&[b"ctorch\ndevice\n", &unicode(name), b"\x85R"]);
        assert_eq!(
            graph.outside(),
            Some("a call of torch.device of a rare form"),
            "{name}"
        );
    }
}

#[test]
fn calls_of_one_form_are_refused_in_any_other() {
    let endless = expanded(1 << 24);
    let zlib = [unicode("a"), unicode("zlib")].concat();
    let wide = [unicode("\u{100}"), unicode("latin1")].concat();
    let cases: &[(&[&[u8]], &str)] = &[
        (&[b"ctorch\nSize\n]\x85R"], "torch.Size"),
        (&[b"ctorch\nSize\n(K\x02K\x03tR"], "torch.Size"),
        (&[b"c__builtin__\nset\n)\x85R"], "builtins.set"),
        (&[b"c__builtin__\nset\n(", &endless, b"tR"], "builtins.set"),
        (
            &[b"c__builtin__\nbytearray\nK\x07\x85R"],
            "builtins.bytearray",
        ),
        (&[b"c__builtin__\ncomplex\nK\x07\x85R"], "builtins.complex"),
        (
            &[b"ccollections\nOrderedDict\n]\x85R"],
            "collections.OrderedDict",
        ),
        (&[b"ccollections\nCounter\n]\x85R"], "collections.Counter"),
        (&[b"c_codecs\nencode\n", &zlib, b"\x86R"], "_codecs.encode"),
        (&[b"c_codecs\nencode\n", &wide, b"\x86R"], "_codecs.encode"),
        (&[b"ctorch\nSize\nK\x01\x85\x81"], "torch.Size"),
    ];
    for (parts, path) in cases {
        assert!(
            matches!(refusal(parts), PickleError::Call { path: found, .. } if found == *path),
            "{path}"
        );
    }
}

#[test]
fn tensors_and_storages_are_not_made_of_nothing() {
    for path in [
        "torch\nTensor",
        "torch\nFloatTensor",
        "torch.cuda\nHalfTensor",
        "torch.sparse\nLongTensor",
        "torch.cuda.sparse\nByteTensor",
        "torch.storage\nUntypedStorage",
        "torch.storage\nTypedStorage",
        "torch\nstorage.UntypedStorage",
    ] {
        for call in [b")R".as_slice(), b"K\x07\x85R", b")\x81", b"K\x07\x85\x81"] {
            let found = refusal(&[b"c", path.as_bytes(), b"\n", call]);
            let path = path.replace('\n', ".");
            assert!(matches!(found, PickleError::Call { path: found, .. } if found == path));
        }
        let by_type = [
            b"ctorch._tensor\n_rebuild_from_type_v2\n(c",
            path.as_bytes(),
            b"\nctorch\nTensor\nK\x07\x85}tR",
        ];
        assert!(matches!(refusal(&by_type), PickleError::Call { .. }));
    }
}

#[test]
fn tensors_have_no_state() {
    let cases: &[&[u8]] = &[
        &expanded(3),
        b"ctorch.nn.parameter\nParameter\n)\x81",
        b"ctorch._utils\n_rebuild_tensor\n)R",
        b"ctorch._tensor\n_rebuild_from_type_v2\n)R",
    ];
    for object in cases {
        assert!(matches!(
            refusal(&[object, b")b"]),
            PickleError::BuildTarget {
                found: "a tensor",
                ..
            }
        ));
    }
}

#[test]
fn functions_that_copy_get_no_endless_tensors() {
    let rare = |numel: i32| {
        let size = [b"(".as_slice(), &int(numel), b"t(K\x00t"].concat();
        let arguments = [
            &storage("torch\nFloatStorage", "7", 1),
            b"K\x00".as_slice(),
            &size,
        ];
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            arguments.concat().as_slice(),
            b"\x89NtR",
        ]
        .concat()
    };
    for name in [
        "_rebuild_device_tensor_from_cpu_tensor",
        "_rebuild_sparse_tensor",
        "_rebuild_qtensor",
    ] {
        let call = |argument: &[u8]| {
            let name = format!("ctorch._utils\n{name}\n");
            pickle(&[name.as_bytes(), b"(N(", argument, b"ttR"])
        };
        for argument in [expanded(1 << 20), rare(1 << 20)] {
            assert!(decode(call(&argument), Limits::default()).is_ok(), "{name}");
        }
        for argument in [expanded(1 << 24), rare(1 << 24)] {
            assert!(matches!(
                decode(call(&argument), Limits::default()),
                Err(PickleError::Call { .. })
            ));
        }
    }
}

/// One element, seen so many times.
fn expanded(numel: i32) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".as_slice(),
        &storage("torch\nFloatStorage", "7", 1),
        b"K\x00(",
        &int(numel),
        b"t(K\x00t\x89",
        HOOKS,
        b"tR",
    ]
    .concat()
}
