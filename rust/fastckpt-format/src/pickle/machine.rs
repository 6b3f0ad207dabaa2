//! The state of the decoder: stack, marks, memo, nodes, and what the pickle may still ask for.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::error::PickleError;
use super::for_torch::Replacements;
use super::graph::{Node, NodeId, StorageId, StorageRef};
use super::opcode as op;
use super::{Limits, StorageIds};

/// What is remembered of each node besides itself, for the bounds on tuples as keys.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    /// Levels of tuples in tuples: Python hashes and compares them recursively.
    depth: u32,
    /// How many objects Python visits to hash this one, 0 where it cannot. A tuple that holds
    /// another one twice doubles it, so a short pickle can make a key that never gets hashed.
    weight: u32,
}

/// Elements that may be copied out of memoised objects, for each byte of the pickle. An object
/// that `torch.save` writes stands in the pickle before it is copied, so it stays below 1.
const COPIES_PER_BYTE: u64 = 4;
/// Objects visited to hash the keys of all dicts, for each byte of the pickle. Far above what a
/// tuple can reach that is used as a key a million times, far below what hangs.
const HASHES_PER_BYTE: u64 = 1024;

/// About what a node takes in a state dict's pickle, to make room for all of them at once.
const BYTES_PER_NODE: usize = 8;

/// A memo entry that holds nothing.
const VACANT: u32 = u32::MAX;

pub(super) const NONE: NodeId = NodeId(0);
pub(super) const FALSE: NodeId = NodeId(1);
pub(super) const TRUE: NodeId = NodeId(2);
pub(super) const EMPTY_TUPLE: NodeId = NodeId(3);

pub(super) struct Decoder<'a> {
    pub(super) cursor: Cursor<'a>,
    pub(super) limits: Limits,
    pub(super) ids: StorageIds,
    pub(super) nodes: Vec<Node>,
    pub(super) facts: Vec<Facts>,
    pub(super) stack: Vec<NodeId>,
    /// Heights of the stack where marks stand.
    pub(super) marks: Vec<usize>,
    memo: Vec<u32>,
    pub(super) storages: Vec<StorageRef>,
    pub(super) storage_ids: HashMap<&'a [u8], (StorageId, NodeId)>,
    /// The views of storages, by their own keys.
    pub(super) view_ids: HashMap<&'a [u8], (StorageId, NodeId)>,
    pub(super) states: Vec<(NodeId, NodeId)>,
    /// A tensor without its state, see `old_state`.
    pub(super) begun_tensor: Option<NodeId>,
    pub(super) outside: Option<String>,
    pub(super) for_torch: Replacements,
    copies_left: u64,
    hashes_left: u64,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(pickle: &'a [u8], limits: Limits, ids: StorageIds) -> Self {
        let nbytes = pickle.len() as u64;
        let mut decoder = Self {
            cursor: Cursor::new(pickle),
            limits,
            ids,
            nodes: Vec::with_capacity(pickle.len() / BYTES_PER_NODE),
            facts: Vec::with_capacity(pickle.len() / BYTES_PER_NODE),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            storages: Vec::new(),
            storage_ids: HashMap::new(),
            view_ids: HashMap::new(),
            states: Vec::new(),
            begun_tensor: None,
            outside: None,
            for_torch: Replacements::default(),
            copies_left: nbytes.saturating_mul(COPIES_PER_BYTE),
            hashes_left: nbytes.saturating_mul(HASHES_PER_BYTE),
        };
        // Python has one object for each of these, and so does the graph.
        decoder.add(Node::None);
        decoder.add(Node::Bool(false));
        decoder.add(Node::Bool(true));
        decoder.add(Node::Tuple(Box::default()));
        if pickle.first() != Some(&op::PROTO) {
            decoder.leave(|| "a pickle without a protocol".to_owned());
        }
        decoder
    }

    pub(super) fn memoize(&mut self, index: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        let offset = self.cursor.offset;
        let position = index as usize;
        // A pickler counts its memo entries from 0, and an object takes a byte at least.
        if position >= offset {
            return Err(PickleError::MemoIndex { offset, index });
        }
        if position >= self.memo.len() {
            self.memo.resize(position.saturating_add(1), VACANT);
        }
        if let Some(entry) = self.memo.get_mut(position) {
            *entry = top.0;
        }
        Ok(())
    }

    pub(super) fn recall(&mut self, index: u32) -> Result<(), PickleError> {
        match self.memo.get(index as usize) {
            Some(&node) if node != VACANT => {
                if self.for_torch.has_globals {
                    self.note_recalled(NodeId(node));
                }
                self.push_existing(NodeId(node))
            }
            _ => Err(PickleError::MemoMissing {
                offset: self.cursor.offset,
                index,
            }),
        }
    }

    pub(super) fn facts_of_tuple(&self, items: &[NodeId]) -> Result<Facts, PickleError> {
        let mut depth = 0;
        let mut weight = 1_u32;
        let mut hashable = true;
        for item in items {
            let of_item = self.facts_of(*item);
            depth = depth.max(of_item.depth);
            hashable &= of_item.weight > 0;
            weight = weight.saturating_add(of_item.weight);
        }
        let depth = depth.saturating_add(1);
        if depth as usize > self.limits.max_depth {
            return Err(self.too_deep());
        }
        let weight = if hashable { weight } else { 0 };
        Ok(Facts { depth, weight })
    }

    /// Refuses what Python cannot hash, or could not hash in a lifetime.
    pub(super) fn check_key(&mut self, key: NodeId) -> Result<(), PickleError> {
        let weight = self.facts_of(key).weight;
        if weight == 0 {
            return Err(PickleError::Unhashable {
                offset: self.cursor.offset,
                found: match self.node(key) {
                    Node::Tuple(_) => "a tuple with a mutable object in it",
                    other => other.kind(),
                },
            });
        }
        let left = self.hashes_left.checked_sub(u64::from(weight));
        self.hashes_left = left.ok_or_else(|| self.expansion(HASHES_PER_BYTE))?;
        Ok(())
    }

    /// Charges the copy of so many elements out of an object that the memo may repeat.
    pub(super) fn charge(&mut self, elements: usize) -> Result<(), PickleError> {
        let left = self.copies_left.checked_sub(elements as u64);
        self.copies_left = left.ok_or_else(|| self.expansion(COPIES_PER_BYTE))?;
        Ok(())
    }

    /// Notes the first thing that is outside the fast path.
    pub(super) fn leave(&mut self, reason: impl FnOnce() -> String) {
        if self.outside.is_none() {
            self.outside = Some(reason());
        }
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(id.index()).unwrap_or(&Node::None)
    }

    /// The bytes of a str.
    pub(super) fn text_of(&self, id: NodeId) -> Option<&'a [u8]> {
        match self.node(id) {
            Node::Text(text) => Some(self.cursor.text(*text)),
            _ => None,
        }
    }

    fn facts_of(&self, id: NodeId) -> Facts {
        const NO_KEY: Facts = Facts {
            depth: 0,
            weight: 0,
        };
        self.facts.get(id.index()).copied().unwrap_or(NO_KEY)
    }

    pub(super) fn add(&mut self, node: Node) -> NodeId {
        let weight = u32::from(is_hashable(&node));
        // Never more nodes than bytes and singletons, see `run`.
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(VACANT));
        self.nodes.push(node);
        self.facts.push(Facts { depth: 0, weight });
        id
    }

    /// Gives an object that has been begun its value.
    pub(super) fn complete(&mut self, id: NodeId, node: Node) {
        let weight = u32::from(is_hashable(&node));
        if let Some(facts) = self.facts.get_mut(id.index()) {
            *facts = Facts { depth: 0, weight };
        }
        if let Some(begun) = self.nodes.get_mut(id.index()) {
            *begun = node;
        }
    }

    pub(super) fn push(&mut self, node: Node) -> NodeId {
        let id = self.add(node);
        self.stack.push(id);
        id
    }

    /// Never fails; in this shape it ends the opcodes that push an object that there is already.
    #[allow(clippy::unnecessary_wraps)]
    pub(super) fn push_existing(&mut self, id: NodeId) -> Result<(), PickleError> {
        self.stack.push(id);
        Ok(())
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn top(&self) -> Result<NodeId, PickleError> {
        let above = self.stack.get(self.floor()..).unwrap_or_default();
        above.last().copied().ok_or_else(|| self.underflow())
    }

    pub(super) fn pop(&mut self) -> Result<NodeId, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    pub(super) fn pop_many(&mut self, count: usize) -> Result<Vec<NodeId>, PickleError> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => Err(self.underflow()),
        }
    }

    pub(super) fn pop_mark(&mut self) -> Result<Vec<NodeId>, PickleError> {
        let start = self.marks.pop().ok_or(PickleError::NoMark {
            offset: self.cursor.offset,
            opcode: self.cursor.opcode,
        })?;
        // Nothing pops below the last mark, so the stack is never shorter than that.
        Ok(self.stack.split_off(start.min(self.stack.len())))
    }

    fn underflow(&self) -> PickleError {
        PickleError::StackUnderflow {
            offset: self.cursor.offset,
            opcode: self.cursor.opcode,
        }
    }

    pub(super) fn too_deep(&self) -> PickleError {
        PickleError::Depth {
            offset: self.cursor.offset,
            opcode: self.cursor.opcode,
            limit: self.limits.max_depth,
        }
    }

    fn expansion(&self, per_byte: u64) -> PickleError {
        let nbytes = self
            .cursor
            .position()
            .saturating_add(self.cursor.remaining());
        PickleError::Expansion {
            offset: self.cursor.offset,
            limit: (nbytes as u64).saturating_mul(per_byte),
        }
    }
}

/// Whether an object can be a key, as far as it says itself: a tuple goes by its items.
fn is_hashable(node: &Node) -> bool {
    !matches!(
        node,
        Node::List(_)
            | Node::Dict(_)
            | Node::OrderedDict { .. }
            | Node::Counter(_)
            | Node::Set(_)
            | Node::ByteArray(_)
            | Node::NumpyArray(_)
    )
}
