//! Tuples, lists, dicts, and the memo.

use super::*;

#[test]
fn tuples_take_their_items_from_the_stack() {
    for (bytes, len) in [
        (b"K\x01\x85".as_slice(), 1),
        (b"K\x01K\x02\x86", 2),
        (b"K\x01K\x02K\x03\x87", 3),
        (b"(K\x01K\x02K\x03K\x04t", 4),
        (b"(t", 0),
    ] {
        let graph = graph(&[bytes]);
        let Node::Tuple(items) = root(&graph) else {
            panic!("no tuple");
        };
        let values: Vec<_> = items.iter().map(|item| graph.node(*item).clone()).collect();
        let expected: Vec<_> = (1..=len).map(Node::Int).collect();
        assert_eq!(values, expected);
    }
}

#[test]
fn the_same_object_is_the_same_node() {
    let graph = graph(&[
        b"(",
        b"]q\x00",
        b"h\x00",
        b"j\x00\x00\x00\x00",
        b"]",
        b"NNt",
    ]);
    let Node::Tuple(items) = root(&graph) else {
        panic!("no tuple");
    };
    assert_eq!(items[0], items[1]);
    assert_eq!(items[0], items[2]);
    assert_ne!(items[0], items[3]);
    assert_eq!(items[4], items[5]);
}

#[test]
fn a_list_may_contain_itself() {
    let graph = graph(&[b"]r\x00\x00\x00\x00h\x00a"]);
    assert_eq!(root(&graph), &Node::List(vec![graph.root()]));
    assert_eq!(graph.reachable(), [graph.root()]);
    assert_eq!(graph.tensor_names(), []);
}

#[test]
fn appends_and_items_come_in_order() {
    let graph = graph(&[b"}K\x00](K\x05K\x06eK\x07as(K\x01NK\x02\x88u"]);
    let Node::Dict(items) = root(&graph) else {
        panic!("no dict");
    };
    let keys: Vec<_> = items
        .iter()
        .map(|(key, _)| graph.node(*key).clone())
        .collect();
    assert_eq!(keys, [Node::Int(0), Node::Int(1), Node::Int(2)]);
    let Node::List(list) = graph.node(items[0].1) else {
        panic!("no list");
    };
    let values: Vec<_> = list.iter().map(|item| graph.node(*item).clone()).collect();
    assert_eq!(values, [Node::Int(5), Node::Int(6), Node::Int(7)]);
}

#[test]
fn an_ordered_dict_keeps_its_metadata_apart() {
    let graph = graph(&[HOOKS, b"K\x01Ns", b"}", &unicode("_metadata"), b"\x88sb"]);
    assert_eq!(graph.outside(), None);
    let Node::OrderedDict {
        items,
        metadata: Some(metadata),
    } = root(&graph)
    else {
        panic!("no metadata");
    };
    assert_eq!(items.len(), 1);
    assert_eq!(graph.node(*metadata), &Node::Bool(true));
}

#[test]
fn a_counter_takes_items_but_is_outside() {
    let graph = graph(&[b"ccollections\nCounter\n)RK\x01K\x02s"]);
    assert_eq!(graph.outside(), Some("global collections.Counter"));
    let Node::Counter(counter) = root(&graph) else {
        panic!("no counter");
    };
    assert_eq!(counter.items.len(), 1);
}
