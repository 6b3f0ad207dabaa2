//! The pickle that torch's unpickler gets, where it has to build the object: in it, what torch would
//! not make is asked for by a persistent id, as storages are.
//!
//! torch refuses all of numpy, and bytes of protocol 3. The calls that the decoder has understood are
//! replaced, opcode by opcode, by others that leave the same stack and memo:
//!
//! | opcode | in its place | the stack after it |
//! |---|---|---|
//! | a function of numpy is pushed | `'storage'`, twice where a state follows | `... 'storage'` |
//! | numpy's class of arrays is pushed | `'storage'` | `... 'storage'` |
//! | `REDUCE` | the id `('storage', arguments)` | `... object`, below it a `'storage'` if a state follows |
//! | `BUILD` | the id `('storage', object, state)` | `... object` |
//! | bytes are pushed | the id `('storage', None)` | `... bytes` |
//!
//! Whoever answers the ids gives, for one with two parts, the next of [`ForTorch::objects`], and for
//! one with three the second part. No pickle that was decoded has ids of that length of its own.
//!
//! The second `'storage'` is sound only where a function is pushed for nothing but to be called, and
//! where an object stays where it is until it has its state. That is how Python pickles; where it is
//! not so, nothing is replaced, and torch refuses the pickle.

use super::error::PickleError;
use super::global::Known;
use super::graph::{Graph, Node, NodeId};
use super::machine::Decoder;

const WORD: &[u8] = b"X\x07\0\0\0storage";
/// A tuple of two, and `BINPERSID`.
const ASK: &[u8] = b"\x86Q";
/// A tuple of three, and `BINPERSID`.
const ASK_WITH_STATE: &[u8] = b"\x87Q";
const NONE: &[u8] = b"N";

/// A pickle and the objects that it asks for, see [`Graph::for_torch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForTorch {
    /// The pickle.
    pub pickle: Vec<u8>,
    /// The objects, in the order in which they are asked for: numpy's, and bytes.
    pub objects: Vec<NodeId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Word,
    TwoWords,
    Call,
    State,
    Literal,
}

impl Place {
    fn opcodes(self) -> [&'static [u8]; 3] {
        match self {
            Self::Word => [WORD, b"", b""],
            Self::TwoWords => [WORD, WORD, b""],
            Self::Call => [ASK, b"", b""],
            Self::State => [ASK_WITH_STATE, b"", b""],
            Self::Literal => [WORD, NONE, ASK],
        }
    }
}

/// An opcode that is replaced.
#[derive(Debug, Clone, Copy)]
struct Replaced {
    start: u32,
    end: u32,
    by: Place,
}

/// An object without its state.
#[derive(Debug, Clone, Copy)]
struct Begun {
    object: NodeId,
    /// Of the stack, the object included.
    height: usize,
}

/// What is to be replaced.
#[derive(Debug, Clone, Default)]
pub(super) struct Replacements {
    replaced: Vec<Replaced>,
    objects: Vec<NodeId>,
    begun: Vec<Begun>,
    /// Functions on the stack.
    uncalled: usize,
    /// Whether there is a function or class in the memo that is replaced.
    pub(super) has_globals: bool,
    /// Whether something is not as Python pickles it.
    is_broken: bool,
}

impl Decoder<'_> {
    fn replace(&mut self, by: Place) {
        // The pickle is shorter than 4 GiB.
        let start = u32::try_from(self.cursor.offset).unwrap_or(u32::MAX);
        let end = u32::try_from(self.cursor.position()).unwrap_or(u32::MAX);
        self.for_torch.replaced.push(Replaced { start, end, by });
    }

    /// Notes that a global was pushed, of which the decoder makes the objects itself.
    pub(super) fn note_global(&mut self, known: Known) {
        let by = match known {
            Known::NumpyReconstruct | Known::NumpyDtype => Place::TwoWords,
            Known::NumpyScalar | Known::NumpyArray | Known::Bytes => Place::Word,
            _ => return,
        };
        self.for_torch.has_globals = true;
        if known != Known::NumpyArray {
            self.for_torch.uncalled = self.for_torch.uncalled.saturating_add(1);
        }
        self.replace(by);
    }

    /// Notes that an object was pushed out of the memo.
    #[inline(never)]
    pub(super) fn note_recalled(&mut self, id: NodeId) {
        match self.node(id) {
            Node::Global(global) => {
                if let Some(known) = global.known {
                    self.note_global(known);
                }
            }
            // One that has its state is no call any more.
            Node::Call { callable, .. } if self.is_made_here(*callable) => self.break_off(),
            _ => {}
        }
    }

    /// Notes that a call was understood.
    pub(super) fn note_call(&mut self, object: NodeId) {
        self.replace(Place::Call);
        let height = self.stack.len();
        let has_state = matches!(self.node(object), Node::Call { .. });
        let noted = &mut self.for_torch;
        noted.uncalled = noted.uncalled.saturating_sub(1);
        noted.objects.push(object);
        if has_state {
            noted.begun.push(Begun { object, height });
        }
    }

    /// Notes bytes that stand in the pickle.
    pub(super) fn note_bytes(&mut self, object: NodeId) {
        self.replace(Place::Literal);
        self.for_torch.objects.push(object);
    }

    /// `BUILD` of one of numpy's objects; `false` where this is something else.
    pub(super) fn set_numpy_state(
        &mut self,
        target: NodeId,
        state: NodeId,
    ) -> Result<bool, PickleError> {
        let Some(begun) = self.for_torch.begun.last() else {
            return Ok(false);
        };
        let is_in_place = begun.object == target && begun.height == self.stack.len();
        let Some(made) = self.numpy_object(target, state)?.filter(|_| is_in_place) else {
            self.break_off();
            return Ok(false);
        };
        self.for_torch.begun.pop();
        self.complete(target, made);
        self.replace(Place::State);
        Ok(true)
    }

    /// Whether the objects of a function are made by the decoder's own rules.
    pub(super) fn is_made_here(&self, callable: NodeId) -> bool {
        let Node::Global(global) = self.node(callable) else {
            return false;
        };
        global.known.is_some_and(Known::is_made_here)
    }

    /// Leaves everything as it is in the pickle.
    pub(super) fn break_off(&mut self) {
        self.for_torch.is_broken = true;
        self.leave(|| "an object of numpy that is not pickled as numbers are".to_owned());
    }

    /// Looks at what is left when the pickle has ended.
    pub(super) fn end_numpy(&mut self) {
        if self.for_torch.uncalled > 0 || !self.for_torch.begun.is_empty() {
            self.break_off();
        }
    }
}

impl Replacements {
    /// The pickle for torch, `None` where it is the one that was decoded.
    pub(super) fn apply(&self, graph: &Graph) -> Option<ForTorch> {
        if self.is_broken || self.replaced.is_empty() || self.is_class_in_result(graph) {
            return None;
        }
        let original = graph.pickle();
        let mut pickle = Vec::with_capacity(original.len());
        let mut copied = 0;
        for replaced in &self.replaced {
            pickle.extend_from_slice(original.get(copied..replaced.start as usize)?);
            for opcodes in replaced.by.opcodes() {
                pickle.extend_from_slice(opcodes);
            }
            copied = replaced.end as usize;
        }
        pickle.extend_from_slice(original.get(copied..)?);
        let objects = self.objects.clone();
        Some(ForTorch { pickle, objects })
    }

    /// Whether numpy's class of arrays is part of the result itself: what was put in its place is not.
    fn is_class_in_result(&self, graph: &Graph) -> bool {
        let is_replaced = |id: &NodeId| match graph.node(*id) {
            Node::Global(global) => global.known == Some(Known::NumpyArray),
            _ => false,
        };
        self.has_globals && graph.reachable().iter().any(is_replaced)
    }
}
