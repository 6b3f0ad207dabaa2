//! The opcodes: one pass over the pickle, no recursion, no call.

use std::sync::Arc;

use super::error::PickleError;
use super::for_torch::Replacements;
use super::global::{Global, Known};
use super::graph::{Node, NodeId, StorageRef};
use super::machine::{Decoder, EMPTY_TUPLE, FALSE, NONE, TRUE};
use super::opcode as op;
use super::{Limits, StorageIds};

/// What one pass over the pickle finds.
pub(super) struct Decoded {
    pub(super) nodes: Vec<Node>,
    pub(super) storages: Vec<StorageRef>,
    pub(super) states: Vec<(NodeId, NodeId)>,
    pub(super) root: NodeId,
    pub(super) outside: Option<String>,
    pub(super) for_torch: Replacements,
}

/// Positions in the pickle and node ids are 32 bits wide. A node takes a byte of input, but for
/// the few singletons that every graph begins with.
const MAX_NBYTES: usize = u32::MAX as usize - 16;

/// Opcodes between two looks at whether to go on: a few milliseconds.
const OPCODES_PER_LOOK: usize = 1 << 16;

/// Decodes a pickle up to `STOP`, and insists that it ends there.
pub(super) fn run(
    pickle: &[u8],
    limits: Limits,
    ids: StorageIds,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Decoded, PickleError> {
    let limit = limits.max_nbytes.min(MAX_NBYTES);
    if pickle.len() > limit {
        let nbytes = pickle.len();
        return Err(PickleError::TooLarge { nbytes, limit });
    }
    let mut decoder = Decoder::new(pickle, limits, ids);
    loop {
        for _ in 0..OPCODES_PER_LOOK {
            if decoder.step()? {
                return decoder.finish();
            }
        }
        if !goes_on() {
            return Err(PickleError::Stopped);
        }
    }
}

impl Decoder<'_> {
    /// Runs one opcode, and says whether it was `STOP`.
    ///
    /// What takes more than a few instructions is not inlined: the frame that all of it would need
    /// together costs every opcode, and made decoding a state dict a seventh slower.
    fn step(&mut self) -> Result<bool, PickleError> {
        let opcode = self.cursor.opcode()?;
        match opcode {
            op::BINPUT => self.memoize_byte()?,
            op::BINGET => {
                let index = u32::from(self.cursor.byte()?);
                self.recall(index)?;
            }
            op::LONG_BINPUT => {
                let index = self.cursor.u32()?;
                self.memoize(index)?;
            }
            op::LONG_BINGET => {
                let index = self.cursor.u32()?;
                self.recall(index)?;
            }
            op::MARK => self.mark()?,
            op::TUPLE | op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => self.tuple(opcode)?,
            op::APPEND | op::APPENDS => self.append(opcode)?,
            op::SETITEM | op::SETITEMS => self.set_items(opcode)?,
            op::GLOBAL => self.global()?,
            op::BINPERSID => self.persistent_id()?,
            op::REDUCE => self.reduce()?,
            op::NEWOBJ => self.new_object()?,
            op::BUILD => self.build()?,
            op::PROTO => self.protocol()?,
            op::STOP => return Ok(true),
            _ => self.literal(opcode)?,
        }
        Ok(false)
    }

    /// The opcodes that push a value of their own.
    fn literal(&mut self, opcode: u8) -> Result<(), PickleError> {
        let node = match opcode {
            op::NONE => return self.push_existing(NONE),
            op::NEWFALSE => return self.push_existing(FALSE),
            op::NEWTRUE => return self.push_existing(TRUE),
            op::EMPTY_TUPLE => return self.push_existing(EMPTY_TUPLE),
            op::EMPTY_LIST => Node::List(Vec::new()),
            op::EMPTY_DICT => Node::Dict(Vec::new()),
            op::EMPTY_SET => Node::Set(Box::default()),
            op::BININT => Node::Int(i64::from(i32::from_le_bytes(self.cursor.array()?))),
            op::BININT1 => Node::Int(i64::from(self.cursor.byte()?)),
            op::BININT2 => Node::Int(i64::from(u16::from_le_bytes(self.cursor.array()?))),
            op::BINFLOAT => Node::Float(f64::from_be_bytes(self.cursor.array()?)),
            op::LONG1 => {
                let nbytes = self.cursor.byte()?;
                integer(self.cursor.take(usize::from(nbytes))?)
            }
            op::BINUNICODE => {
                let nbytes = self.cursor.u32()?;
                Node::Text(self.cursor.span(nbytes as usize, true)?)
            }
            op::SHORT_BINSTRING => {
                let nbytes = self.cursor.byte()?;
                Node::Text(self.cursor.span(usize::from(nbytes), false)?)
            }
            op::SHORT_BINBYTES => {
                let nbytes = self.cursor.byte()?;
                return self.bytes(usize::from(nbytes));
            }
            op::BINBYTES => {
                let nbytes = self.cursor.u32()?;
                return self.bytes(nbytes as usize);
            }
            _ => {
                let offset = self.cursor.offset;
                return Err(PickleError::UnsupportedOpcode { offset, opcode });
            }
        };
        self.push(node);
        Ok(())
    }

    /// Bytes as protocol 3 has them, which torch's unpickler has not.
    fn bytes(&mut self, nbytes: usize) -> Result<(), PickleError> {
        let bytes = Arc::from(self.cursor.take(nbytes)?);
        let object = self.push(Node::Bytes(bytes));
        self.note_bytes(object);
        Ok(())
    }

    /// Checks what `STOP` leaves behind.
    fn finish(mut self) -> Result<Decoded, PickleError> {
        let offset = self.cursor.offset;
        if !self.marks.is_empty() || self.stack.len() > 1 {
            return Err(PickleError::Leftover {
                offset,
                objects: self.stack.len().saturating_sub(1),
                marks: self.marks.len(),
            });
        }
        let root = self.pop()?;
        self.end_numpy();
        if self.begun_tensor.is_some() {
            return Err(self.refused("a tensor class".to_owned()));
        }
        if self.cursor.remaining() > 0 {
            return Err(PickleError::Trailing {
                offset: self.cursor.position(),
                nbytes: self.cursor.remaining(),
            });
        }
        Ok(Decoded {
            nodes: self.nodes,
            storages: self.storages,
            states: self.states,
            root,
            outside: self.outside,
            for_torch: self.for_torch,
        })
    }

    fn protocol(&mut self) -> Result<(), PickleError> {
        let version = self.cursor.byte()?;
        let offset = self.cursor.offset;
        if offset != 0 || version > 5 {
            return Err(PickleError::Protocol { offset, version });
        }
        if version != 2 {
            // torch warns, and the warning is its own to give.
            self.leave(|| format!("pickle protocol {version}"));
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<(), PickleError> {
        if self.marks.len() >= self.limits.max_depth {
            return Err(self.too_deep());
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn memoize_byte(&mut self) -> Result<(), PickleError> {
        let index = u32::from(self.cursor.byte()?);
        self.memoize(index)
    }

    #[inline(never)]
    fn tuple(&mut self, opcode: u8) -> Result<(), PickleError> {
        let items = match opcode {
            op::TUPLE1 => self.pop_many(1)?,
            op::TUPLE2 => self.pop_many(2)?,
            op::TUPLE3 => self.pop_many(3)?,
            _ => self.pop_mark()?,
        };
        if items.is_empty() {
            return self.push_existing(EMPTY_TUPLE);
        }
        let facts = self.facts_of_tuple(&items)?;
        self.push(Node::Tuple(items.into_boxed_slice()));
        if let Some(own) = self.facts.last_mut() {
            *own = facts;
        }
        Ok(())
    }

    #[inline(never)]
    fn append(&mut self, opcode: u8) -> Result<(), PickleError> {
        let items = match opcode {
            op::APPEND => self.pop_many(1)?,
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        let offset = self.cursor.offset;
        match self.nodes.get_mut(target.index()) {
            Some(Node::List(list)) if list.is_empty() => *list = items,
            Some(Node::List(list)) => list.extend(items),
            other => {
                return Err(PickleError::AppendTarget {
                    offset,
                    opcode,
                    found: other.map_or("nothing", |node| node.kind()),
                });
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn set_items(&mut self, opcode: u8) -> Result<(), PickleError> {
        let items = match opcode {
            op::SETITEM => self.pop_many(2)?,
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        let offset = self.cursor.offset;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            let count = items.len();
            return Err(PickleError::OddItems { offset, count });
        }
        for [key, _value] in pairs {
            self.check_key(*key)?;
        }
        let pairs = pairs.iter().map(|[key, value]| (*key, *value));
        match self.nodes.get_mut(target.index()) {
            Some(Node::Dict(items) | Node::OrderedDict { items, .. }) => items.extend(pairs),
            Some(Node::Counter(counter)) => counter.items.extend(pairs),
            other => {
                return Err(PickleError::SetItemTarget {
                    offset,
                    opcode,
                    found: other.map_or("nothing", |node| node.kind()),
                });
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn global(&mut self) -> Result<(), PickleError> {
        let module = self.cursor.line()?;
        let name = self.cursor.line()?;
        let global = Global::new(module, name);
        if !global.known.is_some_and(Known::is_inside) {
            self.leave(|| format!("global {}", global.path()));
        }
        if let Some(known) = global.known {
            self.note_global(known);
        }
        self.push(match global.known {
            Some(Known::Dtype(dtype)) => Node::Dtype(dtype),
            _ => Node::Global(Box::new(global)),
        });
        Ok(())
    }

    /// Sets the state of the object on top of the stack. Only the `_metadata` of an
    /// `OrderedDict` has a meaning here.
    #[inline(never)]
    fn build(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        let target = self.top()?;
        let offset = self.cursor.offset;
        if self.set_old_state(target, state)? || self.set_numpy_state(target, state)? {
            return Ok(());
        }
        if self.is_tensor(target) {
            let found = "a tensor";
            return Err(PickleError::BuildTarget { offset, found });
        }
        let value = self.metadata_of(state);
        match self.nodes.get_mut(target.index()) {
            Some(Node::OrderedDict { metadata, .. }) if value.is_some() => *metadata = value,
            Some(
                node @ (Node::OrderedDict { .. }
                | Node::Counter(_)
                | Node::Call { .. }
                | Node::NewObject { .. }),
            ) => {
                let found = node.kind();
                self.states.push((target, state));
                self.leave(|| format!("{found} with a state"));
            }
            other => {
                let found = other.map_or("nothing", |node| node.kind());
                return Err(PickleError::BuildTarget { offset, found });
            }
        }
        Ok(())
    }

    /// The value of a dict whose single key is `_metadata`.
    fn metadata_of(&self, state: NodeId) -> Option<NodeId> {
        let Node::Dict(items) = self.node(state) else {
            return None;
        };
        let [(key, value)] = items.as_slice() else {
            return None;
        };
        (self.text_of(*key) == Some(b"_metadata")).then_some(*value)
    }
}

/// An int from little-endian two's complement, as short as it can be.
fn integer(bytes: &[u8]) -> Node {
    let negative = bytes.last().is_some_and(|last| *last >= 0x80);
    let fill = if negative { 0xff } else { 0 };
    let mut padded = [fill; 8];
    let (low, high) = bytes.split_at(bytes.len().min(8));
    for (target, byte) in padded.iter_mut().zip(low) {
        *target = *byte;
    }
    let short = i64::from_le_bytes(padded);
    if high.iter().all(|byte| *byte == fill) && (short < 0) == negative {
        Node::Int(short)
    } else {
        Node::Long(bytes.into())
    }
}
