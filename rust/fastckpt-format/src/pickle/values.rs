//! What is left of a graph for those who look for its plain values: steps, metrics, settings.
//!
//! Nearly all of a checkpoint is state dicts and what an optimizer keeps for each parameter, in
//! which nobody looks for them. Such containers stay, empty. This is not where it is decided what
//! a plain value is (the Python side does that): whatever is in doubt stays whole.

use std::collections::HashMap;
use std::mem;

use super::graph::{Graph, Node, NodeId};
use super::machine::NONE;
use super::reach::{children, states_of};

/// Under this key a dict of tensors is a dict of metrics on which nobody called `.item()`.
const METRICS: &[u8] = b"metrics";
/// What `torch.nn.Module.get_extra_state` adds to a state dict may be anything at all.
const EXTRA_STATE: &[u8] = b"_extra_state";
/// What `torch.optim.Optimizer.state_dict` returns.
const OPTIMIZER_STATE: &[u8] = b"state";
const OPTIMIZER_GROUPS: &[u8] = b"param_groups";

/// How much of a node is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    /// That it is there.
    Shell,
    Whole,
}

/// Leaves out what holds no plain values; a list of more than `list_items_max` items keeps its
/// length and no more.
pub(super) fn reduce(graph: &mut Graph, list_items_max: usize) {
    let needs = Walk::new(graph, list_items_max).run();
    let mut reachable = mem::take(&mut graph.reachable);
    reachable.retain(|id| need_of(&needs, *id) > Need::Nothing);
    for (node, need) in graph.nodes.iter_mut().zip(&needs) {
        if let Node::OrderedDict { metadata, .. } = node {
            // An attribute of the object, and none of its items.
            *metadata = None;
        }
        match (need, node) {
            (Need::Nothing, node) => *node = Node::None,
            (Need::Shell, Node::Dict(items) | Node::OrderedDict { items, .. }) => {
                *items = Vec::new();
            }
            (Need::Shell, Node::List(items)) => *items = vec![NONE; items.len()],
            _ => {}
        }
    }
    if reachable.first() != Some(&NONE) {
        // What the items of a long list have become.
        reachable.insert(0, NONE);
    }
    graph.reachable = reachable;
}

fn need_of(needs: &[Need], id: NodeId) -> Need {
    needs.get(id.index()).copied().unwrap_or(Need::Nothing)
}

/// The walk from the root, in which each container is looked into once.
struct Walk<'g> {
    graph: &'g Graph,
    list_items_max: usize,
    states: HashMap<NodeId, Vec<NodeId>>,
    needs: Vec<Need>,
    /// Whether a container is a state dict, once somebody has asked: a hostile file may ask often.
    known: Vec<Option<bool>>,
    stack: Vec<NodeId>,
}

impl<'g> Walk<'g> {
    fn new(graph: &'g Graph, list_items_max: usize) -> Self {
        let count = graph.nodes.len();
        Self {
            graph,
            list_items_max,
            states: states_of(graph),
            needs: vec![Need::Nothing; count],
            known: vec![None; count],
            stack: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<Need> {
        let graph = self.graph;
        self.visit(graph.root);
        while let Some(id) = self.stack.pop() {
            match graph.node(id) {
                Node::Dict(items) | Node::OrderedDict { items, .. } => self.items(items),
                node => children(node, &mut |child| self.visit_part(node, child)),
            }
            for state in self.states.remove(&id).into_iter().flatten() {
                self.whole(state);
            }
        }
        self.needs
    }

    fn items(&mut self, items: &[(NodeId, NodeId)]) {
        let has = |name| items.iter().any(|(key, _)| self.is_text(*key, name));
        let is_optimizer = has(OPTIMIZER_STATE) && has(OPTIMIZER_GROUPS);
        for (key, value) in items {
            self.whole(*key);
            if is_optimizer && self.is_text(*key, OPTIMIZER_STATE) && self.can_be_shell(*value) {
                self.need(*value, Need::Shell);
            } else if self.is_text(*key, METRICS) {
                self.whole(*value);
            } else {
                self.visit(*value);
            }
        }
    }

    /// A part of what is neither a dict nor an ordered one. The parts of an object that is not
    /// Python's own go by its name, which may be that of the metrics.
    fn visit_part(&mut self, parent: &Node, part: NodeId) {
        match parent {
            Node::Tuple(_) | Node::List(_) | Node::Set(_) => self.visit(part),
            _ => self.whole(part),
        }
    }

    fn visit(&mut self, id: NodeId) {
        if self.is_state_dict(id) {
            self.need(id, Need::Shell);
        } else {
            self.whole(id);
        }
    }

    fn whole(&mut self, id: NodeId) {
        if matches!(self.graph.node(id), Node::List(items) if items.len() > self.list_items_max) {
            self.need(id, Need::Shell);
        } else if self.need(id, Need::Whole) {
            self.stack.push(id);
        }
    }

    /// Notes a need, and says whether it is more than was noted before.
    fn need(&mut self, id: NodeId, need: Need) -> bool {
        match self.needs.get_mut(id.index()) {
            Some(known) if *known < need => {
                *known = need;
                true
            }
            _ => false,
        }
    }

    fn can_be_shell(&self, id: NodeId) -> bool {
        matches!(
            self.graph.node(id),
            Node::Dict(_) | Node::OrderedDict { .. } | Node::List(_)
        )
    }

    /// Whether a node is a dict of tensors, with one at least, beside extra state.
    fn is_state_dict(&mut self, id: NodeId) -> bool {
        let (Node::Dict(items) | Node::OrderedDict { items, .. }) = self.graph.node(id) else {
            return false;
        };
        if let Some(Some(known)) = self.known.get(id.index()) {
            return *known;
        }
        let is_extra = |key| self.text(key).is_some_and(|key| key.ends_with(EXTRA_STATE));
        let mut parts = items.iter().filter(|(key, _)| !is_extra(*key)).peekable();
        let found = parts.peek().is_some() && parts.all(|(_, value)| self.is_tensor(*value));
        if let Some(known) = self.known.get_mut(id.index()) {
            *known = Some(found);
        }
        found
    }

    fn is_tensor(&self, id: NodeId) -> bool {
        match self.graph.node(id) {
            Node::Tensor(_) => true,
            Node::Parameter { tensor, .. } => matches!(self.graph.node(*tensor), Node::Tensor(_)),
            _ => false,
        }
    }

    fn is_text(&self, id: NodeId, wanted: &[u8]) -> bool {
        self.text(id) == Some(wanted)
    }

    fn text(&self, id: NodeId) -> Option<&'g [u8]> {
        match self.graph.node(id) {
            Node::Text(text) => Some(self.graph.text(*text)),
            _ => None,
        }
    }
}
