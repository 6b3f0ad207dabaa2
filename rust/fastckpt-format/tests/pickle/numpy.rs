//! numpy's arrays, scalars and dtypes: what is understood, what is left to torch, what is refused.

use fastckpt_format::pickle::{ArrayProblem, Number, NumberKind, NumpyArray, NumpyDtype};

use super::*;

const RECONSTRUCT: &[u8] = b"cnumpy.core.multiarray\n_reconstruct\n";
const NDARRAY: &[u8] = b"cnumpy\nndarray\n";
const DTYPE: &[u8] = b"cnumpy\ndtype\n";
const SCALAR: &[u8] = b"cnumpy.core.multiarray\nscalar\n";
/// `None`, three times, no size of its own, no flags.
const NO_PARTS: &[u8] = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00";

/// Bytes of protocol 2.
fn bytes(bytes: &[u8]) -> Vec<u8> {
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let (text, encoding) = (unicode(&text), unicode("latin1"));
    [b"c_codecs\nencode\n".as_slice(), &text, &encoding, b"\x86R"].concat()
}

fn dtype(code: &str, order: &str) -> Vec<u8> {
    let (code, order) = (unicode(code), unicode(order));
    [
        DTYPE,
        &code,
        b"\x89\x88\x87R",
        b"(K\x03",
        &order,
        NO_PARTS,
        b"tb",
    ]
    .concat()
}

fn begun() -> Vec<u8> {
    [RECONSTRUCT, NDARRAY, b"K\x00\x85", &bytes(b"b"), b"\x87R"].concat()
}

fn array(shape: &[u8], dtype: &[u8], data: &[u8]) -> Vec<u8> {
    [
        begun().as_slice(),
        b"(K\x01",
        shape,
        dtype,
        b"\x89",
        &bytes(data),
        b"tb",
    ]
    .concat()
}

fn scalar(code: &str, order: &str, data: &[u8]) -> Vec<u8> {
    [SCALAR, &dtype(code, order), &bytes(data), b"\x86R"].concat()
}

fn found_array(graph: &Graph, id: NodeId) -> &NumpyArray {
    match graph.node(id) {
        Node::NumpyArray(array) => array,
        other => panic!("{other:?}"),
    }
}

fn number(code: &str, order: &str, data: &[u8]) -> Number {
    let graph = graph(&[&scalar(code, order, data)]);
    assert_eq!(graph.outside(), None);
    match root(&graph) {
        Node::NumpyScalar(scalar) => scalar.number(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_numpy_writes_is_inside() {
    for name in ["numpy", "numpy_1", "numpy_protocol_3"] {
        let graph = decode(file(name), Limits::default()).unwrap();
        let reason = (name == "numpy_protocol_3").then_some("pickle protocol 3");
        assert_eq!(graph.outside(), reason, "{name}");
        let Node::Dict(items) = root(&graph) else {
            panic!("no dict");
        };
        let [array, again, fortran, no_dims, empty, scalar, dtype, last] = items.as_slice() else {
            panic!("{items:?}");
        };
        assert_eq!(array.1, again.1);
        let array = found_array(&graph, array.1);
        assert_eq!(array.dtype.to_string(), "<f4");
        assert_eq!(
            (&*array.shape, array.is_fortran),
            ([2, 3].as_slice(), false)
        );
        let floats: Vec<u8> = [0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        assert_eq!(*array.data, *floats);
        let fortran = found_array(&graph, fortran.1);
        assert_eq!(fortran.dtype.name(), ">i2");
        assert_eq!(
            (&*fortran.shape, fortran.is_fortran),
            ([2, 3].as_slice(), true)
        );
        assert_eq!(*fortran.data, [0, 0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5]);
        let no_dims = found_array(&graph, no_dims.1);
        assert_eq!(
            (no_dims.shape.len(), no_dims.dtype.name()),
            (0, "bool".to_owned())
        );
        assert_eq!(no_dims.only_element().unwrap().number(), Number::Bool(true));
        let empty = found_array(&graph, empty.1);
        assert_eq!((&*empty.shape, empty.numel()), ([0, 3].as_slice(), 0));
        assert!(matches!(graph.node(scalar.1), Node::NumpyScalar(found)
            if found.number() == Number::Float(2.5) && found.kind() == NumberKind::Float64));
        let big = NumpyDtype {
            kind: NumberKind::UInt32,
            is_big_endian: true,
        };
        assert_eq!(graph.node(dtype.1), &Node::NumpyDtype(big));
        assert!(matches!(graph.node(last.0), Node::NumpyScalar(found)
            if found.number() == Number::Int(-3)));
    }
}

#[test]
fn the_names_of_numpy_1_and_2_are_the_same() {
    let nodes = |name| decode(file(name), Limits::default()).unwrap().nodes().len();
    assert_eq!(nodes("numpy"), nodes("numpy_1"));
}

#[test]
fn scalars_are_worth_what_their_bytes_say() {
    for (code, order, data, expected) in [
        ("b1", "|", b"\x01".as_slice(), Number::Bool(true)),
        ("b1", "|", b"\x00", Number::Bool(false)),
        ("i1", "|", b"\x80", Number::Int(-128)),
        ("u1", "|", b"\xff", Number::UInt(255)),
        ("i2", "<", b"\xfe\xff", Number::Int(-2)),
        ("i2", ">", b"\xff\xfe", Number::Int(-2)),
        ("u4", ">", b"\0\0\x01\0", Number::UInt(256)),
        ("i8", "<", b"\0\0\0\0\0\0\0\x80", Number::Int(i64::MIN)),
        (
            "u8",
            "<",
            b"\xff\xff\xff\xff\xff\xff\xff\xff",
            Number::UInt(u64::MAX),
        ),
        ("f2", "<", b"\0\x3e", Number::Float(1.5)),
        ("f4", ">", b"\x3f\xc0\0\0", Number::Float(1.5)),
        ("f8", "<", b"\0\0\0\0\0\0\xf8\x3f", Number::Float(1.5)),
        (
            "c8",
            ">",
            b"\x3f\xc0\0\0\xc0\0\0\0",
            Number::Complex(1.5, -2.0),
        ),
        (
            "c16",
            "<",
            b"\0\0\0\0\0\0\xf8\x3f\0\0\0\0\0\0\0\xc0",
            Number::Complex(1.5, -2.0),
        ),
    ] {
        assert_eq!(number(code, order, data), expected, "{order}{code}");
    }
}

#[test]
fn ints_in_the_place_of_bools_are_those_of_older_numpy() {
    let old = [
        DTYPE,
        &unicode("f8"),
        b"K\x00K\x01\x87R",
        b"(K\x03",
        &unicode("<"),
        NO_PARTS,
        b"tb",
    ];
    assert_eq!(graph(&old).outside(), None);
}

#[test]
fn empty_bytes_are_bytes() {
    let graph = decode(file("empty_bytes"), Limits::default()).unwrap();
    assert_eq!(graph.outside(), None);
    assert!(graph.nodes().contains(&Node::Bytes([].into())));
}

#[test]
fn an_array_is_as_large_as_its_bytes() {
    let huge = b"\x8a\x09\0\0\0\0\0\0\0\0\x01\x85".as_slice();
    for (shape, data, problem) in [
        (
            b"K\x02\x85".as_slice(),
            b"1234567890".as_slice(),
            ArrayProblem::Length {
                needed: 8,
                found: 10,
            },
        ),
        (
            b"K\x02\x85",
            b"",
            ArrayProblem::Length {
                needed: 8,
                found: 0,
            },
        ),
        (
            b")",
            b"12345678",
            ArrayProblem::Length {
                needed: 4,
                found: 8,
            },
        ),
        (
            b"K\x00\x85",
            b"1234",
            ArrayProblem::Length {
                needed: 0,
                found: 4,
            },
        ),
        (
            b"J\xff\xff\xff\xff\x85",
            b"1234",
            ArrayProblem::Negative { length: -1 },
        ),
        (
            b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87",
            b"1234",
            ArrayProblem::Overflow,
        ),
        // numpy counts a length of zero as one here.
        (
            b"K\x00J\xff\xff\xff\x7f\x8a\x08\0\0\0\0\0\0\0\x40\x87",
            b"",
            ArrayProblem::Overflow,
        ),
        (huge, b"1234", ArrayProblem::Overflow),
    ] {
        let body = array(shape, &dtype("f4", "<"), data);
        let PickleError::Array { problem: found, .. } = refusal(&[&body]) else {
            panic!("{:?}", refusal(&[&body]));
        };
        assert_eq!(found, problem);
    }
    let body = array(b"K\x02\x85", &dtype("f4", "<"), b"1");
    assert_eq!(
        refusal(&[&body]).to_string(),
        "data.pkl byte 186: a numpy array whose shape and dtype need 8 bytes, and 1 are there"
    );
}

/// A dtype of float64 whose state begins and ends so; its byte order is the usual one.
fn f8_with_state(begin: &[u8], end: &[u8]) -> Vec<u8> {
    let order = unicode("<");
    [DTYPE, &unicode("f8"), b"\x89\x88\x87R", begin, &order, end].concat()
}

/// Checks that torch gets such a pickle as it is.
fn are_left_to_torch(cases: &[Vec<u8>]) {
    for case in cases {
        let graph = graph(&[case]);
        assert!(graph.outside().is_some(), "{case:?}");
        assert_eq!(graph.for_torch(), None, "{case:?}");
    }
}

#[test]
fn dtypes_of_anything_else_are_left_to_torch() {
    are_left_to_torch(&[
        // Objects, texts, dates, records, longer floats, no dtype at all.
        dtype("O8", "|"),
        dtype("U3", "<"),
        dtype("M8", "<"),
        dtype("V8", "|"),
        dtype("f16", "<"),
        dtype("", "<"),
        // Byte orders that numpy writes for other sizes, or for none.
        dtype("f8", "|"),
        dtype("u1", "<"),
        dtype("f8", "="),
        // Another state: a version, parts, metadata, a size of its own, flags, no tuple.
        f8_with_state(b"(K\x04", &[NO_PARTS, b"tb"].concat()),
        f8_with_state(b"(K\x03", b")NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"),
        f8_with_state(b"(K\x03", b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}tb"),
        f8_with_state(b"(K\x03", b"NNNK\x08K\x08K\x00tb"),
        f8_with_state(b"(K\x03", b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"),
        [DTYPE, &unicode("f8"), b"\x89\x88\x87R", b"}b"].concat(),
    ]);
}

#[test]
fn calls_and_states_of_another_form_are_left_to_torch() {
    let f8 = dtype("f8", "<");
    are_left_to_torch(&[
        // Arguments that numpy does not write, and no state.
        [DTYPE, &unicode("f8"), b"\x88\x88\x87R"].concat(),
        [DTYPE, &unicode("f8"), b"\x85R"].concat(),
        [DTYPE, &unicode("f8"), b"\x89\x88\x87R"].concat(),
        begun(),
        [
            RECONSTRUCT,
            b"cnumpy\nmatrix\n",
            b"K\x00\x85",
            &bytes(b"b"),
            b"\x87R",
        ]
        .concat(),
        [RECONSTRUCT, NDARRAY, b"K\x07\x85", &bytes(b"b"), b"\x87R"].concat(),
        [RECONSTRUCT, NDARRAY, b"K\x00\x85", &bytes(b"O"), b"\x87R"].concat(),
        // States that are not those of an array of numbers.
        [begun().as_slice(), b"}b"].concat(),
        [
            begun().as_slice(),
            b"(K\x02K\x01\x85",
            &f8,
            b"\x89",
            &bytes(b"12345678"),
            b"tb",
        ]
        .concat(),
        [begun().as_slice(), b"(K\x01K\x01\x85", &f8, b"\x89]tb"].concat(),
        [
            begun().as_slice(),
            b"(K\x01K\x01\x85N\x89",
            &bytes(b"12345678"),
            b"tb",
        ]
        .concat(),
        [begun().as_slice(), b"(K\x01NN\x89Ntb"].concat(),
        array(b"NK\x01\x86", &f8, b"12345678"),
        // Scalars whose bytes are too few or too many, and of a dtype that stays opaque.
        scalar("f8", "<", b"1234567"),
        scalar("f8", "<", b"123456789"),
        scalar("U1", "<", b"1234"),
        // The functions themselves.
        SCALAR.to_vec(),
        NDARRAY.to_vec(),
        [NDARRAY, b"\x85"].concat(),
        [NDARRAY, b")R"].concat(),
        [RECONSTRUCT, b"\x85"].concat(),
        [DTYPE, b")\x81"].concat(),
        b"c__builtin__\nbytes\n".to_vec(),
    ]);
}

#[test]
fn bytes_are_not_called_with_a_length() {
    let body = [
        b"c__builtin__\nbytes\n".as_slice(),
        &int(i32::MAX),
        b"\x85R",
    ]
    .concat();
    assert!(
        matches!(refusal(&[&body]), PickleError::Call { path, .. } if path == "builtins.bytes")
    );
}

#[test]
fn an_array_is_no_key_and_a_scalar_is_one() {
    let array = array(b")", &dtype("f8", "<"), b"12345678");
    assert_eq!(
        refusal(&[b"}", &array, b"Ns"]).to_string(),
        "data.pkl byte 194: a numpy array cannot be a dict key or a set element"
    );
    let scalar = scalar("i2", "<", b"\x07\0");
    assert_eq!(graph(&[b"}", &scalar, b"Ns"]).outside(), None);
}

#[test]
fn nobody_chooses_keys_of_one_hash_among_scalars() {
    // A complex number hashes to its real part and 1000003 times the other: all of these to 0.
    let keys: Vec<u8> = (0..2000_i32)
        .flat_map(|number| {
            let parts = [-1_000_003.0 * f64::from(number), f64::from(number)];
            let data = parts.map(f64::to_le_bytes).concat();
            [scalar("c16", "<", &data), b"N".to_vec()].concat()
        })
        .collect();
    let found = decode(pickle(&[b"}(", &keys, b"u"]), Limits::default()).err();
    assert!(matches!(
        found,
        Some(PickleError::Collisions {
            what: "a dict",
            keys: 2000,
            ..
        })
    ));
}

/// What torch gets in the place of a function that a state follows, and of one without.
const WORD: &[u8] = b"X\x07\0\0\0storage";

#[test]
fn torch_gets_what_it_would_refuse_by_persistent_ids() {
    let body = [
        b"(".as_slice(),
        SCALAR,
        b"q\x01",
        DTYPE,
        b"q\x02",
        &unicode("i1"),
        b"\x89\x88\x87R(K\x03",
        &unicode("|"),
        NO_PARTS,
        b"tb",
        &bytes(b"7"),
        b"\x86R",
        RECONSTRUCT,
        NDARRAY,
        b"K\x00\x85",
        &bytes(b"b"),
        b"\x87R(K\x01)h\x02",
        &unicode("u1"),
        b"\x89\x88\x87R(K\x03",
        &unicode("|"),
        NO_PARTS,
        b"tb\x89",
        &bytes(b"8"),
        b"tbC\x02hit",
    ];
    let graph = graph(&body);
    assert_eq!(graph.outside(), None);
    let for_torch = graph.for_torch().unwrap();
    let expected = [
        b"\x80\x02(".as_slice(),
        WORD,
        b"q\x01",
        WORD,
        WORD,
        b"q\x02",
        &unicode("i1"),
        b"\x89\x88\x87\x86Q(K\x03",
        &unicode("|"),
        NO_PARTS,
        b"t\x87Q",
        &bytes(b"7"),
        b"\x86\x86Q",
        WORD,
        WORD,
        WORD,
        b"K\x00\x85",
        &bytes(b"b"),
        b"\x87\x86Q(K\x01)",
        WORD,
        WORD,
        &unicode("u1"),
        b"\x89\x88\x87\x86Q(K\x03",
        &unicode("|"),
        NO_PARTS,
        b"t\x87Q\x89",
        &bytes(b"8"),
        b"t\x87Q",
        WORD,
        b"N\x86Qt.",
    ];
    assert_eq!(for_torch.pickle, expected.concat());
    let kinds: Vec<_> = for_torch
        .objects
        .iter()
        .map(|id| match graph.node(*id) {
            Node::NumpyArray(_) => "array",
            Node::NumpyScalar(_) => "scalar",
            Node::NumpyDtype(_) => "dtype",
            Node::Bytes(_) => "bytes",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["dtype", "scalar", "array", "dtype", "bytes"]);
}

#[test]
fn torch_gets_the_pickle_itself_where_there_is_nothing_to_replace() {
    assert_eq!(graph(&[b"}"]).for_torch(), None);
}

/// Each would leave torch's stack in another state than the decoder's.
#[test]
fn what_python_never_pickles_so_is_not_replaced() {
    let f8 = dtype("f8", "<");
    let state = [
        b"(K\x01)".as_slice(),
        &f8,
        b"\x89",
        &bytes(b"12345678"),
        b"t",
    ]
    .concat();
    are_left_to_torch(&[
        // A function that is put somewhere instead of being called.
        [b"(", SCALAR, &array(b")", &f8, b"12345678"), b"t"].concat(),
        [
            b"(",
            DTYPE,
            b"q\x01h\x01",
            &unicode("f8"),
            b"\x89\x88\x87R(K\x03",
            &unicode("<"),
            NO_PARTS,
            b"tbt",
        ]
        .concat(),
        // An object that is used before it has its state, or gets it elsewhere.
        [b"(", begun().as_slice(), b"q\x01h\x01", &state, b"bt"].concat(),
        [b"]", begun().as_slice(), b"q\x01ah\x01", &state, b"b\x86"].concat(),
        [begun().as_slice(), b"q\x01\x85h\x01", &state, b"b\x86"].concat(),
        // Two objects that have begun, of which the lower gets its state first.
        [
            b"(",
            begun().as_slice(),
            b"q\x01",
            &begun(),
            b"q\x02h\x01",
            &state,
            b"bh\x02",
            &state,
            b"bt",
        ]
        .concat(),
        // The class as part of the result, though its call was understood.
        [b"(", NDARRAY, &array(b")", &f8, b"12345678"), b"t"].concat(),
    ]);
}
