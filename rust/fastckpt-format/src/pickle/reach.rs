//! What the root consists of: the walk that bounds the nesting and finds opaque values.

use std::collections::HashMap;

use super::error::PickleError;
use super::graph::{Graph, Node, NodeId};

/// The nodes that the root consists of, by ascending id.
///
/// Level by level, so that an object that refers back to its parents counts once, at its
/// shortest distance from the root.
pub(super) fn from_root(graph: &Graph, max_depth: usize) -> Result<Vec<NodeId>, PickleError> {
    let states = states_of(graph);
    let mut seen = vec![false; graph.nodes.len()];
    let mut level = vec![graph.root];
    let mut next = Vec::new();
    let mut depth = 0_usize;
    mark(&mut seen, graph.root);
    while !level.is_empty() {
        if depth > max_depth {
            return Err(PickleError::Nesting { limit: max_depth });
        }
        for id in level.drain(..) {
            let mut visit = |child: NodeId| {
                if mark(&mut seen, child) {
                    next.push(child);
                }
            };
            children(graph.node(id), &mut visit);
            for state in states.get(&id).into_iter().flatten() {
                visit(*state);
            }
        }
        std::mem::swap(&mut level, &mut next);
        depth = depth.saturating_add(1);
    }
    let ids = (0_u32..).map(NodeId);
    let reached = seen.iter().zip(ids).filter(|(seen, _)| **seen);
    Ok(reached.map(|(_, id)| id).collect())
}

/// The state of the objects that have one, by object.
pub(super) fn states_of(graph: &Graph) -> HashMap<NodeId, Vec<NodeId>> {
    let mut states: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    for (object, state) in &graph.states {
        states.entry(*object).or_default().push(*state);
    }
    states
}

/// The first part of the root that only torch can give a value to.
pub(super) fn opaque_value(graph: &Graph) -> Option<String> {
    graph
        .reachable()
        .iter()
        .find_map(|id| match graph.node(*id) {
            Node::Global(global) => Some(format!("global {} as a value", global.path())),
            Node::Storage(storage) => {
                let key = &graph.storages.get(storage.index())?.key;
                Some(format!("storage {key:?} without a tensor"))
            }
            _ => None,
        })
}

/// Sets the flag of a node, and says whether that is news.
pub(super) fn mark(seen: &mut [bool], id: NodeId) -> bool {
    match seen.get_mut(id.index()) {
        Some(seen) => !std::mem::replace(seen, true),
        None => false,
    }
}

pub(super) fn children(node: &Node, visit: &mut impl FnMut(NodeId)) {
    match node {
        Node::Tuple(items) | Node::Set(items) => items.iter().copied().for_each(visit),
        Node::List(items) => items.iter().copied().for_each(visit),
        Node::Dict(items) => pairs(items, visit),
        Node::OrderedDict { items, metadata } => {
            pairs(items, visit);
            metadata.iter().copied().for_each(visit);
        }
        Node::Counter(counter) => {
            visit(counter.args);
            pairs(&counter.items, visit);
        }
        Node::Parameter { tensor, .. } => visit(*tensor),
        Node::Call { callable, args } => {
            visit(*callable);
            visit(*args);
        }
        Node::NewObject { class, args } => {
            visit(*class);
            visit(*args);
        }
        _ => {}
    }
}

fn pairs(items: &[(NodeId, NodeId)], visit: &mut impl FnMut(NodeId)) {
    for (key, value) in items {
        visit(*key);
        visit(*value);
    }
}
