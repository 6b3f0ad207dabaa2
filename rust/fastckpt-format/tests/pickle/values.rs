//! What is left of a graph for those who look for plain values.

use super::*;

/// The most items of a list that stays whole.
const ITEMS_MAX: usize = 2;

fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items = items
        .iter()
        .map(|(key, value)| [unicode(key), value.clone()].concat());
    [
        b"}(".as_slice(),
        items.collect::<Vec<_>>().concat().as_slice(),
        b"u",
    ]
    .concat()
}

fn weights() -> Vec<u8> {
    dict(&[("w", tensor(2, 0, &[2], &[1])), ("x_extra_state", int(7))])
}

/// The reduced object, as text: `{}` for a dict, `[]` for a list.
fn reduced(body: &[u8]) -> String {
    let whole = graph(&[body]);
    let part = whole.clone().for_plain_values(ITEMS_MAX);
    assert!(part.reachable().is_sorted());
    show(&part, part.root())
}

fn show(graph: &Graph, id: NodeId) -> String {
    assert!(graph.reachable().contains(&id), "{id:?} is not reachable");
    let all = |ids: &[NodeId]| {
        let shown: Vec<String> = ids.iter().map(|id| show(graph, *id)).collect();
        shown.join(" ")
    };
    match graph.node(id) {
        Node::None => "-".to_owned(),
        Node::Int(value) => value.to_string(),
        Node::Text(_) => text(graph, id).to_owned(),
        Node::Tensor(_) => "tensor".to_owned(),
        Node::List(items) => format!("[{}]", all(items)),
        Node::Tuple(items) => format!("({})", all(items)),
        Node::Dict(items) => {
            let shown = items
                .iter()
                .map(|(key, value)| format!("{}:{}", show(graph, *key), show(graph, *value)));
            format!("{{{}}}", shown.collect::<Vec<_>>().join(" "))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn state_dicts_are_empty() {
    let body = dict(&[("step", int(3)), ("model", weights())]);
    assert_eq!(reduced(&body), "{step:3 model:{}}");
    assert_eq!(reduced(&weights()), "{}");
}

#[test]
fn a_dict_with_anything_but_tensors_is_no_state_dict() {
    let body = dict(&[("w", tensor(2, 0, &[2], &[1])), ("x", int(7))]);
    assert_eq!(reduced(&body), "{w:tensor x:7}");
    assert_eq!(
        reduced(&dict(&[("x_extra_state", int(7))])),
        "{x_extra_state:7}"
    );
    assert_eq!(reduced(b"}"), "{}");
}

#[test]
fn metrics_stay_whole_though_they_be_tensors() {
    let metrics = dict(&[("metrics", weights())]);
    assert_eq!(reduced(&metrics), "{metrics:{w:tensor x_extra_state:7}}");
    // The same dict in two places.
    let memoised = [weights().as_slice(), b"q\x01"].concat();
    let body = dict(&[("model", memoised), ("metrics", b"h\x01".to_vec())]);
    assert_eq!(
        reduced(&body),
        "{model:{w:tensor x_extra_state:7} metrics:{w:tensor x_extra_state:7}}"
    );
}

#[test]
fn of_an_optimizer_the_groups_are_left() {
    let state = dict(&[("0", dict(&[("step", int(5))]))]);
    let groups = [b"](".as_slice(), &dict(&[("lr", int(1))]), b"e"].concat();
    let body = dict(&[("state", state.clone()), ("param_groups", groups)]);
    assert_eq!(reduced(&body), "{state:{} param_groups:[{lr:1}]}");
    assert_eq!(reduced(&dict(&[("state", state)])), "{state:{0:{step:5}}}");
}

#[test]
fn a_long_list_keeps_its_length() {
    let numbers = |count: i32| -> Vec<u8> {
        let items = (1..=count).flat_map(int).collect::<Vec<u8>>();
        [b"](".as_slice(), &items, b"e"].concat()
    };
    assert_eq!(reduced(&numbers(2)), "[1 2]");
    assert_eq!(reduced(&numbers(3)), "[- - -]");
    // A tuple may be a key, and stays what it is.
    assert_eq!(reduced(&tuple(&[1, 2, 3])), "(1 2 3)");
}

#[test]
fn a_list_may_contain_itself() {
    let graph = graph(&[b"]q\x01h\x01a"]).for_plain_values(ITEMS_MAX);
    assert_eq!(root(&graph), &Node::List(vec![graph.root()]));
}
