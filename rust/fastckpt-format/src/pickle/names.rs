//! Names for tensors: the keys on the way from the root, as a reader of messages wants them.

use std::collections::HashMap;
use std::fmt::Write;

use super::graph::{Graph, Node, NodeId, StorageId};
use super::reach;

/// Longer names lose their front. Without a bound a pickle could make one long key, or a deep
/// nest, part of a million names.
const MAX_NAME_CHARS: usize = 512;

/// What stands before a name that lost its front.
const CUT: char = '…';

/// One step of a path, linked to the step before.
struct Step {
    parent: Option<u32>,
    key: Key,
}

#[derive(Clone, Copy)]
enum Key {
    /// The key of a dict item.
    Node(NodeId),
    /// The position in a list or tuple.
    Index(usize),
    /// The attribute of an `OrderedDict`.
    Metadata,
}

/// An object to visit, and the last step of its path.
#[derive(Clone, Copy)]
struct Visit {
    node: NodeId,
    path: Option<u32>,
    /// In the arguments of an opaque call: tuples are no steps of their own there.
    is_argument: bool,
}

/// Where a tensor stands in the saved object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The storage that it is a view of.
    pub storage: StorageId,
    /// The path of keys that leads to it, as in [`Graph::tensor_names`].
    pub name: String,
    /// Whether it is an item of a dict, which can go without it; else it is at a position of a list or
    /// tuple, or the object itself.
    pub is_item: bool,
}

/// Places that are listed; a pickle can put one tensor into a list a million times, two bytes each.
pub(super) const MAX_PLACES: usize = 1 << 17;

/// Every tensor and storage below the root, depth first, each object once.
pub(super) fn tensor_names(graph: &Graph) -> Vec<(StorageId, String)> {
    let mut names = Vec::new();
    Walk::new(graph).run(true, |walk, storage, visit| {
        names.push((storage, walk.name(visit.path)));
        true
    });
    names
}

/// Every place of the tensors over some storages.
pub(super) fn places(graph: &Graph, is_wanted: impl Fn(StorageId) -> bool) -> Vec<Place> {
    let mut places = Vec::new();
    Walk::new(graph).run(false, |walk, storage, visit| {
        if is_wanted(storage) {
            let name = walk.name(visit.path);
            let step = visit.path.and_then(|path| walk.steps.get(path as usize));
            let is_item = step.is_some_and(|step| matches!(step.key, Key::Node(_)));
            places.push(Place {
                storage,
                name,
                is_item,
            });
        }
        places.len() < MAX_PLACES
    });
    places
}

/// The path of keys that leads to an object, if one does.
pub(super) fn place_of(graph: &Graph, wanted: NodeId) -> Option<String> {
    let mut walk = Walk::new(graph);
    let mut seen = vec![false; graph.nodes.len()];
    while let Some(visit) = walk.visits.pop() {
        if visit.node == wanted {
            return Some(walk.name(visit.path));
        }
        if reach::mark(&mut seen, visit.node) {
            walk.descend(graph.node(visit.node), visit);
        }
    }
    None
}

struct Walk<'a> {
    graph: &'a Graph,
    states: HashMap<NodeId, Vec<NodeId>>,
    steps: Vec<Step>,
    visits: Vec<Visit>,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a Graph) -> Self {
        let root = Visit {
            node: graph.root,
            path: None,
            is_argument: false,
        };
        Self {
            graph,
            states: reach::states_of(graph),
            steps: Vec::new(),
            visits: vec![root],
        }
    }

    /// Visits all objects, and shows tensors and storages to `leaf` until it returns false: each of
    /// them once, or wherever it stands.
    fn run(mut self, once: bool, mut leaf: impl FnMut(&Self, StorageId, Visit) -> bool) {
        let mut seen = vec![false; self.graph.nodes.len()];
        while let Some(visit) = self.visits.pop() {
            let node = self.graph.node(visit.node);
            let is_leaf = matches!(
                node,
                Node::Tensor(_) | Node::Storage(_) | Node::Parameter { .. }
            );
            let is_new = reach::mark(&mut seen, visit.node);
            if !is_new && (once || !is_leaf) {
                continue;
            }
            let storage = match node {
                Node::Tensor(tensor) => tensor.storage,
                Node::Storage(storage) => *storage,
                node => {
                    self.descend(node, visit);
                    continue;
                }
            };
            if !leaf(&self, storage, visit) {
                return;
            }
        }
    }

    /// Pushes the children of a node so that the first comes off the stack first.
    fn descend(&mut self, node: &Node, visit: Visit) {
        let first_child = self.visits.len();
        match node {
            Node::Tuple(items) if visit.is_argument => {
                items.iter().for_each(|item| self.stay(*item, visit));
            }
            Node::Tuple(items) | Node::Set(items) => self.sequence(items, visit),
            Node::List(items) => self.sequence(items, visit),
            Node::Dict(items) => self.items(items, visit),
            Node::OrderedDict { items, metadata } => {
                self.items(items, visit);
                if let Some(metadata) = metadata {
                    self.go(*metadata, visit, Key::Metadata);
                }
            }
            Node::Counter(counter) => {
                self.stay(counter.args, visit);
                self.items(&counter.items, visit);
            }
            Node::Parameter { tensor, .. } => self.stay(*tensor, visit),
            Node::Call { args, .. } | Node::NewObject { args, .. } => self.stay(*args, visit),
            _ => {}
        }
        for state in self.states.get(&visit.node).cloned().into_iter().flatten() {
            self.stay(state, visit);
        }
        if let Some(children) = self.visits.get_mut(first_child..) {
            children.reverse();
        }
    }

    fn sequence(&mut self, items: &[NodeId], visit: Visit) {
        for (index, item) in items.iter().enumerate() {
            self.go(*item, visit, Key::Index(index));
        }
    }

    fn items(&mut self, items: &[(NodeId, NodeId)], visit: Visit) {
        for (key, value) in items {
            // A tensor may be a key; it is then named like the item.
            self.go(*key, visit, Key::Node(*key));
            self.go(*value, visit, Key::Node(*key));
        }
    }

    /// Visits a child that is one step further.
    fn go(&mut self, node: NodeId, from: Visit, key: Key) {
        if !self.holds_tensors(node) {
            return;
        }
        let path = u32::try_from(self.steps.len()).ok();
        let parent = from.path;
        self.steps.push(Step { parent, key });
        self.visits.push(Visit {
            node,
            path,
            is_argument: false,
        });
    }

    /// Visits a child that is known by its parent's name.
    fn stay(&mut self, node: NodeId, from: Visit) {
        self.visits.push(Visit {
            node,
            path: from.path,
            is_argument: true,
        });
    }

    /// Whether there can be a tensor in an object; saves a step for each number and text.
    fn holds_tensors(&self, node: NodeId) -> bool {
        !matches!(
            self.graph.node(node),
            Node::None
                | Node::Bool(_)
                | Node::Int(_)
                | Node::Float(_)
                | Node::Text(_)
                | Node::NumpyScalar(_)
        )
    }

    /// The name of a path, put together from its end, as that is what a long one keeps.
    fn name(&self, path: Option<u32>) -> String {
        if path.is_none() {
            return "<root>".to_owned();
        }
        let mut parts = Vec::new();
        let mut chars = 0_usize;
        let mut at = path;
        while let Some(step) = at.and_then(|index| self.steps.get(index as usize)) {
            let part = self.part(step.key);
            chars = chars.saturating_add(part.chars().count()).saturating_add(1);
            parts.push(part);
            at = step.parent;
            if chars > MAX_NAME_CHARS {
                break;
            }
        }
        parts.reverse();
        shorten(parts.join("."), at.is_some())
    }

    fn part(&self, key: Key) -> String {
        match key {
            Key::Index(index) => index.to_string(),
            Key::Metadata => "_metadata".to_owned(),
            Key::Node(node) => match self.graph.node(node) {
                Node::Text(text) => printable(self.graph.text(*text)),
                Node::Int(number) => number.to_string(),
                Node::Bool(true) => "True".to_owned(),
                Node::Bool(false) => "False".to_owned(),
                Node::None => "None".to_owned(),
                Node::Float(number) => format!("{number:?}"),
                Node::NumpyScalar(scalar) => scalar.number().to_string(),
                other => format!("<{}>", other.kind()),
            },
        }
    }
}

/// The end of a text, with control characters escaped: a name may be printed on a terminal.
fn printable(text: &[u8]) -> String {
    // A character has up to four bytes.
    let start = text
        .len()
        .saturating_sub(MAX_NAME_CHARS.saturating_add(1).saturating_mul(4));
    let text = String::from_utf8_lossy(text.get(start..).unwrap_or_default());
    let mut printable = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            // Writing to a string cannot fail.
            let _ = write!(printable, "{}", char.escape_default());
        } else {
            printable.push(char);
        }
    }
    printable
}

fn shorten(name: String, has_more: bool) -> String {
    let chars = name.chars().count();
    if chars <= MAX_NAME_CHARS && !has_more {
        return name;
    }
    let dropped = chars.saturating_sub(MAX_NAME_CHARS);
    std::iter::once(CUT)
        .chain(name.chars().skip(dropped))
        .collect()
}
