//! Tensors lie within their storage.

use super::*;

#[test]
fn a_tensor_that_just_fits_is_accepted() {
    let graph = graph(&[&tensor(12, 1, &[2, 3], &[6, 2])]);
    assert_eq!(graph.outside(), None);
    let Node::Tensor(tensor) = root(&graph) else {
        panic!("no tensor");
    };
    let storage = &graph.storages()[tensor.storage.index()];
    let expected = Tensor {
        storage: tensor.storage,
        dtype: Dtype::Float32,
        offset: 1,
        size: [2, 3].into(),
        stride: [6, 2].into(),
        requires_grad: false,
    };
    assert_eq!(**tensor, expected);
    assert_eq!(
        (storage.key.as_str(), storage.location.as_str()),
        ("0", "cpu")
    );
    assert_eq!((storage.numel, storage.nbytes), (12, 48));
    assert_eq!(graph.record_name(tensor.storage).unwrap(), "data/0");
    assert_eq!(
        graph.tensor_names(),
        [(tensor.storage, "<root>".to_owned())]
    );
}

#[test]
fn without_elements_any_position_is_inside() {
    let graph = graph(&[&tensor(3, 3, &[0, i32::MAX], &[i32::MAX, 1])]);
    assert!(matches!(root(&graph), Node::Tensor(_)));
}

#[test]
fn a_tensor_outside_its_storage_is_refused() {
    let cases = [
        (
            tensor(12, 2, &[2, 3], &[6, 2]),
            TensorProblem::Extent {
                needed: 52,
                found: 48,
            },
        ),
        (
            tensor(0, 0, &[], &[]),
            TensorProblem::Extent {
                needed: 4,
                found: 0,
            },
        ),
        (
            tensor(4, -1, &[1], &[1]),
            TensorProblem::Negative {
                what: "offset",
                value: -1,
            },
        ),
        (
            tensor(4, 0, &[-2], &[1]),
            TensorProblem::Negative {
                what: "size",
                value: -2,
            },
        ),
        (
            tensor(4, 0, &[2], &[-3]),
            TensorProblem::Negative {
                what: "stride",
                value: -3,
            },
        ),
        (
            tensor(4, 0, &[2], &[1, 1]),
            TensorProblem::Dimensions {
                sizes: 1,
                strides: 2,
            },
        ),
        (
            tensor(4, 0, &[i32::MAX; 3], &[0; 3]),
            TensorProblem::Overflow,
        ),
        (
            tensor(4, 0, &[i32::MAX; 2], &[i32::MAX; 2]),
            TensorProblem::Overflow,
        ),
    ];
    for (bytes, expected) in cases {
        let PickleError::Tensor { problem, .. } = refusal(&[&bytes]) else {
            panic!("{expected:?} was refused for another reason");
        };
        assert_eq!(problem, expected);
    }
}

#[test]
fn numbers_beyond_64_bits_are_refused() {
    let offset = int(7);
    let beyond = b"\x8a\x09\0\0\0\0\0\0\0\x80\0";
    let whole = tensor(4, 7, &[1], &[1]);
    let at = whole
        .windows(5)
        .position(|window| window == offset)
        .unwrap();
    let bytes = [&whole[..at], beyond.as_slice(), &whole[at + 5..]].concat();
    let message = refusal(&[&bytes]).to_string();
    assert!(
        message.ends_with("a tensor with offset beyond 64 bits"),
        "{message}"
    );
}

#[test]
fn version_3_counts_an_untyped_storage_in_bytes() {
    let with_dtype = |numel, dtype: &str| {
        let storage = storage("torch.storage\nUntypedStorage", "0", numel);
        let dtype = format!("ctorch\n{dtype}\n");
        let head = b"ctorch._utils\n_rebuild_tensor_v3\n(".as_slice();
        let (zero, two, one) = (int(0), tuple(&[2]), tuple(&[1]));
        [
            head,
            &storage,
            &zero,
            &two,
            &one,
            b"\x88",
            HOOKS,
            dtype.as_bytes(),
            b"tR",
        ]
        .concat()
    };
    let graph = graph(&[&with_dtype(16, "uint64")]);
    let Node::Tensor(tensor) = root(&graph) else {
        panic!("no tensor");
    };
    assert_eq!((tensor.dtype, tensor.requires_grad), (Dtype::UInt64, true));
    assert_eq!(
        refusal(&[&with_dtype(15, "uint64")]).to_string(),
        "data.pkl byte 162: a tensor that needs 16 bytes of a storage that has 15"
    );
    for dtype in ["quint8", "uint4"] {
        let graph = super::graph(&[&with_dtype(16, dtype)]);
        assert!(graph.outside().is_some(), "{dtype}");
    }
}

#[test]
fn every_dtype_is_found_by_its_names() {
    for dtype in Dtype::ALL {
        assert_eq!(Dtype::from_name(dtype.name()), Some(*dtype));
        if let Some(class) = dtype.storage_class() {
            assert_eq!(Dtype::from_storage_class(class), Some(*dtype));
        }
    }
    assert_eq!(Dtype::from_name("float"), None);
    assert_eq!(Dtype::from_storage_class("UntypedStorage"), None);
}
