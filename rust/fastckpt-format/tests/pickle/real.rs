//! Pickles that `torch.save` of torch 2.15 wrote, and two made from them by hand.

use super::*;

fn decoded(name: &str) -> Graph {
    decode(file(name), Limits::default()).unwrap()
}

fn names(graph: &Graph) -> Vec<(usize, String)> {
    let names = graph.tensor_names().into_iter();
    names
        .map(|(storage, name)| (storage.index(), name))
        .collect()
}

fn item(graph: &Graph, key: &str) -> NodeId {
    let (Node::Dict(items) | Node::OrderedDict { items, .. }) = root(graph) else {
        panic!("no dict");
    };
    let is_key = |id: NodeId| matches!(graph.node(id), Node::Text(_)) && text(graph, id) == key;
    items.iter().find(|(id, _)| is_key(*id)).unwrap().1
}

#[test]
fn a_state_dict_is_inside_with_its_metadata() {
    let graph = decoded("state_dict");
    assert_eq!(graph.outside(), None);
    let expected = [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|name| (*name).to_owned())
        .enumerate()
        .collect();
    assert_eq!(names(&graph), expected);
    let Node::OrderedDict { metadata, .. } = root(&graph) else {
        panic!("no OrderedDict");
    };
    let Node::OrderedDict { items, .. } = graph.node(metadata.unwrap()) else {
        panic!("no metadata");
    };
    let modules: Vec<_> = items.iter().map(|(key, _)| text(&graph, *key)).collect();
    assert_eq!(modules, ["", "0", "1"]);
}

#[test]
fn an_optimizer_is_named_by_parameter_and_slot() {
    let graph = decoded("adamw");
    assert_eq!(graph.outside(), None);
    let names = names(&graph);
    assert_eq!(names.len(), 12);
    assert_eq!(names[4], (4, "state.1.exp_avg".to_owned()));
    assert_eq!(graph.storages()[0].dtype, Some(Dtype::Float32));
}

#[test]
fn tied_weights_share_a_storage() {
    let graph = decoded("tied");
    assert_eq!(
        names(&graph),
        [
            (0, "wte.weight".to_owned()),
            (0, "lm_head.weight".to_owned())
        ]
    );
    assert_eq!(graph.storages().len(), 1);
    assert_eq!(item(&graph, "same object"), item(&graph, "wte.weight"));
    assert_ne!(item(&graph, "lm_head.weight"), item(&graph, "wte.weight"));
}

#[test]
fn views_keep_offset_and_stride() {
    let graph = decoded("views");
    assert_eq!(graph.outside(), None);
    let shape = |key| match graph.node(item(&graph, key)) {
        Node::Tensor(tensor) => (
            tensor.offset,
            tensor.size.to_vec(),
            tensor.stride.to_vec(),
            tensor.requires_grad,
        ),
        other => panic!("{other:?}"),
    };
    assert_eq!(shape("base"), (0, vec![3, 4], vec![4, 1], false));
    assert_eq!(shape("transposed"), (0, vec![4, 3], vec![1, 4], false));
    assert_eq!(shape("row"), (4, vec![4], vec![1], false));
    assert_eq!(shape("column"), (2, vec![3], vec![4], false));
    assert_eq!(shape("scalar"), (11, vec![], vec![], false));
    assert_eq!(shape("expanded"), (0, vec![5, 4], vec![0, 1], false));
    assert_eq!(shape("empty view"), (12, vec![0, 4], vec![4, 1], false));
    assert_eq!(shape("grad"), (0, vec![2], vec![1], true));
}

#[test]
fn plain_values_survive() {
    let graph = decoded("nested");
    assert_eq!(graph.outside(), None);
    let node = |key| graph.node(item(&graph, key));
    assert_eq!(node("bytes"), &Node::Bytes([0x00, 0xe9, 0xff].into()));
    assert_eq!(
        node("bytearray"),
        &Node::ByteArray([b'a', b'b', 0xff].into())
    );
    assert_eq!(node("empty_bytearray"), &Node::ByteArray(Box::default()));
    assert_eq!(node("complex"), &Node::Complex(1.5, -0.0));
    assert_eq!(node("size"), &Node::Size([2, 3].into()));
    assert_eq!(node("dtype"), &Node::Dtype(Dtype::BFloat16));
    assert!(matches!(node("surrogate"), Node::Text(text) if text.has_surrogates()));
    assert!(matches!(
        node("device"),
        Node::Device { index: Some(1), .. }
    ));
    assert!(matches!(node("set"), Node::Set(items) if items.len() == 2));
    let Node::List(ints) = node("ints") else {
        panic!("no list");
    };
    assert_eq!(graph.node(ints[8]), &Node::Int(i64::MAX));
    assert_eq!(graph.node(ints[9]), &Node::Int(i64::MIN));
    assert_eq!(
        graph.node(ints[12]),
        &Node::Long([0, 0, 0, 0, 0, 0, 0, 0, 64].into())
    );
    let Node::List(shared) = node("shared") else {
        panic!("no list");
    };
    assert_eq!(shared[0], shared[1]);
    assert_eq!(node("loop"), &Node::List(vec![item(&graph, "loop")]));
}

#[test]
fn every_dtype_that_torch_saves_is_inside() {
    for (name, count) in [("legacy_dtypes", 12), ("newer_dtypes", 16)] {
        let graph = decoded(name);
        assert_eq!(graph.outside(), None);
        assert_eq!(graph.tensor_names().len(), count);
        for (_, name) in graph.tensor_names() {
            let Node::Tensor(tensor) = graph.node(item(&graph, &name)) else {
                panic!("no tensor");
            };
            assert_eq!(tensor.dtype.name(), name);
        }
    }
}

#[test]
fn parameters_wrap_their_tensors() {
    let graph = decoded("parameter");
    assert_eq!(graph.outside(), None);
    for (name, grad) in [("weight", true), ("frozen", false)] {
        let Node::Parameter {
            tensor,
            requires_grad,
        } = *graph.node(item(&graph, name))
        else {
            panic!("no parameter");
        };
        assert!(matches!(graph.node(tensor), Node::Tensor(_)));
        assert_eq!(requires_grad, grad);
    }
    assert_eq!(
        names(&graph),
        [(0, "weight".to_owned()), (1, "frozen".to_owned())]
    );
}

/// What only torch rebuilds is named, and its tensors have names all the same.
#[test]
fn what_needs_torch_says_so() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "attributes",
            "global torch._tensor._rebuild_from_type_v2",
            &["a", "a.note.t"],
        ),
        (
            "bare_storage",
            "storage \"0\" without a tensor",
            &["s", "t"],
        ),
        (
            "conj",
            "a call of torch._utils._rebuild_tensor_v2 of a rare form",
            &["x"],
        ),
        ("counter", "global collections.Counter", &[]),
        ("custom_class", "global __main__.Config", &["w"]),
        ("eval", "global builtins.eval", &[]),
        ("layout", "global torch.serialization._get_layout", &[]),
        (
            "many_dims",
            "a call of torch._utils._rebuild_tensor_v2 of a rare form",
            &["<root>"],
        ),
        (
            "meta",
            "global torch._utils._rebuild_meta_tensor_no_storage",
            &[],
        ),
        (
            "ordered_dict_with_attribute",
            "an OrderedDict with a state",
            &[],
        ),
        ("os_system", "global posix.system", &[]),
        (
            "parameter_with_state",
            "global torch._utils._rebuild_parameter_with_state",
            &["weight"],
        ),
        ("protocol_3", "pickle protocol 3", &["w"]),
        ("quantized", "global torch._utils._rebuild_qtensor", &["q"]),
        (
            "sparse",
            "global torch._utils._rebuild_sparse_tensor",
            &["coo", "coo", "csr", "csr", "csr"],
        ),
    ];
    for (name, reason, tensors) in cases {
        let graph = decoded(name);
        assert_eq!(graph.outside(), Some(*reason), "{name}");
        let found: Vec<_> = names(&graph).into_iter().map(|(_, name)| name).collect();
        assert_eq!(found, *tensors, "{name}");
    }
}

#[test]
fn the_shapes_of_known_attacks_are_refused() {
    for (name, message) in [
        (
            "setitem_on_tensor",
            "data.pkl byte 160: SETITEM on a tensor; only dict, OrderedDict and Counter have items",
        ),
        (
            "setitems_on_tensor",
            "data.pkl byte 158: SETITEMS on a tensor; only dict, OrderedDict and Counter have items",
        ),
        (
            "protocol_4",
            "data.pkl byte 2: unsupported opcode 0x95 (FRAME); \
             torch.load(weights_only=True) takes pickle protocol 2 only",
        ),
    ] {
        let error = decode(file(name), Limits::default()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}
