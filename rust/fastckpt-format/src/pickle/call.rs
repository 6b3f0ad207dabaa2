//! The calls that have a meaning without being made.

use std::sync::Arc;

use super::error::PickleError;
use super::global::Known;
use super::graph::{Counter, Node, NodeId};
use super::machine::Decoder;
use super::tensor::Version;

/// The most arguments that any of the known functions takes.
const MAX_ARGS: usize = 8;

/// torch counts devices in 8 bits, with a sign.
const MAX_DEVICE_INDEX: u8 = i8::MAX as u8;

/// Whether `torch.device` takes this of any torch since 2.6.
fn is_device(text: &[u8]) -> bool {
    let kind = text
        .iter()
        .position(|byte| *byte == b':')
        .and_then(|colon| text.split_at_checked(colon));
    let (kind, index) = kind.unwrap_or((text, b":0"));
    let index = index.get(1..).unwrap_or_default();
    let is_index = matches!(index, [b'0'..=b'9'] | [b'1'..=b'9', b'0'..=b'9']);
    let kinds: [&[u8]; 9] = [
        b"cpu", b"cuda", b"meta", b"mps", b"xpu", b"xla", b"hpu", b"mtia", b"ipu",
    ];
    is_index && kinds.contains(&kind)
}

/// The arguments of a call, copied out of their tuple.
pub(super) struct Args {
    ids: [NodeId; MAX_ARGS],
    len: usize,
}

impl Args {
    pub(super) fn get(&self) -> &[NodeId] {
        self.ids.get(..self.len).unwrap_or_default()
    }
}

impl Decoder<'_> {
    /// `REDUCE`: the call of a global, understood where it can be and opaque where not.
    #[inline(never)]
    pub(super) fn reduce(&mut self) -> Result<(), PickleError> {
        let args = self.pop()?;
        let callable = self.pop()?;
        let known = self.callee(callable, args)?;
        if let Some(known) = known
            && known.is_made_here()
        {
            return self.reduce_here(known, callable, args);
        }
        let node = match (known, self.args(args)) {
            (Some(known), Some(values)) => self.call(known, args, values.get())?,
            _ => None,
        };
        let node = if let Some(node) = node {
            node
        } else {
            self.check_opaque_call(callable, args)?;
            self.opaque(callable, args)
        };
        self.push(node);
        Ok(())
    }

    /// The same for a global that torch's unpickler would refuse.
    fn reduce_here(
        &mut self,
        known: Known,
        callable: NodeId,
        args: NodeId,
    ) -> Result<(), PickleError> {
        if let Some(node) = self.numpy_call(known, args, callable) {
            let object = self.push(node);
            self.note_call(object);
        } else {
            self.check_opaque_call(callable, args)?;
            let node = self.opaque(callable, args);
            self.push(node);
            self.break_off();
        }
        Ok(())
    }

    /// `NEWOBJ`: always opaque, `torch.save` writes nothing of its own with it.
    #[inline(never)]
    pub(super) fn new_object(&mut self) -> Result<(), PickleError> {
        let args = self.pop()?;
        let class = self.pop()?;
        self.callee(class, args)?;
        let begins_tensor = self.begins_tensor(class, args);
        if !begins_tensor {
            self.check_new_object(class, args)?;
        }
        if let Node::Global(global) = self.node(class) {
            let path = global.path();
            self.leave(|| format!("object of class {path}"));
        }
        let object = self.push(Node::NewObject { class, args });
        if begins_tensor {
            self.begun_tensor = Some(object);
        }
        Ok(())
    }

    /// Checks that a global is called with a tuple.
    fn callee(&self, callable: NodeId, args: NodeId) -> Result<Option<Known>, PickleError> {
        let (offset, opcode) = (self.cursor.offset, self.cursor.opcode);
        let Node::Global(global) = self.node(callable) else {
            let found = self.node(callable).kind();
            return Err(PickleError::Callable {
                offset,
                opcode,
                found,
            });
        };
        let Node::Tuple(_) = self.node(args) else {
            let found = self.node(args).kind();
            return Err(PickleError::Arguments {
                offset,
                opcode,
                found,
            });
        };
        Ok(global.known)
    }

    fn args(&self, args: NodeId) -> Option<Args> {
        let Node::Tuple(items) = self.node(args) else {
            return None;
        };
        let mut ids = [args; MAX_ARGS];
        ids.get_mut(..items.len())?.copy_from_slice(items);
        let len = items.len();
        Some(Args { ids, len })
    }

    fn opaque(&mut self, callable: NodeId, args: NodeId) -> Node {
        if let Node::Global(global) = self.node(callable) {
            let path = global.path();
            self.leave(|| format!("a call of {path} of a rare form"));
        }
        Node::Call { callable, args }
    }

    /// The result of a known call, `None` where its arguments are not the usual ones.
    fn call(
        &mut self,
        known: Known,
        tuple: NodeId,
        args: &[NodeId],
    ) -> Result<Option<Node>, PickleError> {
        match (known, args) {
            (Known::RebuildTensorV2, _) => self.rebuild_tensor(Version::V2, args),
            (Known::RebuildTensorV3, _) => self.rebuild_tensor(Version::V3, args),
            (Known::RebuildParameter, [tensor, requires_grad, hooks]) => {
                Ok(self.rebuild_parameter(*tensor, *requires_grad, *hooks))
            }
            (Known::OrderedDict, []) => Ok(Some(Node::OrderedDict {
                items: Vec::new(),
                metadata: None,
            })),
            (Known::Counter, counts) if self.are_counts(counts) => {
                Ok(Some(Node::Counter(Box::new(Counter {
                    args: tuple,
                    items: Vec::new(),
                }))))
            }
            (Known::Size, [sizes]) => self.size(*sizes),
            (Known::Device, [kind]) => Ok(self.device(*kind, None)),
            (Known::Device, [kind, index]) => Ok(self.device(*kind, Some(*index))),
            (Known::Encode, [text, encoding]) => Ok(self
                .latin1(*text, *encoding)?
                .map(|bytes| Node::Bytes(Arc::from(bytes)))),
            (Known::ByteArray, []) => Ok(Some(Node::ByteArray(Box::default()))),
            (Known::ByteArray, [bytes]) => self.byte_array(*bytes),
            (Known::ByteArray, [text, encoding]) => {
                Ok(self.latin1(*text, *encoding)?.map(Node::ByteArray))
            }
            (Known::Set, [list]) => self.set(*list),
            (Known::Complex, [real, imaginary]) => Ok(self.complex(*real, *imaginary)),
            _ => Ok(None),
        }
    }

    /// Whether `Counter` is called as it pickles itself: with a dict, or with nothing.
    fn are_counts(&self, args: &[NodeId]) -> bool {
        match args {
            [] => true,
            [counts] => matches!(self.node(*counts), Node::Dict(_)),
            _ => false,
        }
    }

    fn size(&mut self, sizes: NodeId) -> Result<Option<Node>, PickleError> {
        let Node::Tuple(items) = self.node(sizes) else {
            return Ok(None);
        };
        let count = items.len();
        self.charge(count)?;
        let Node::Tuple(items) = self.node(sizes) else {
            return Ok(None);
        };
        let of_item = |item: &NodeId| match self.node(*item) {
            Node::Int(size) => Some(*size),
            _ => None,
        };
        let sizes: Option<Box<[i64]>> = items.iter().map(of_item).collect();
        Ok(sizes.map(Node::Size))
    }

    fn device(&self, kind: NodeId, index: Option<NodeId>) -> Option<Node> {
        let name = self.text_of(kind)?;
        let Node::Text(kind) = *self.node(kind) else {
            return None;
        };
        let index = match index.map(|index| self.node(index)) {
            None => None,
            Some(Node::Int(index)) => Some(u8::try_from(*index).ok()?),
            Some(_) => return None,
        };
        // Others may be known to this torch or not: it will say.
        (is_device(name) && index <= Some(MAX_DEVICE_INDEX)).then_some(())?;
        Some(Node::Device { kind, index })
    }

    /// The bytes of a text of characters up to U+00FF, which is how protocol 2 writes bytes.
    fn latin1(&mut self, text: NodeId, encoding: NodeId) -> Result<Option<Box<[u8]>>, PickleError> {
        // `bytes` are written with the one spelling, `bytearray` with the other.
        let Some(b"latin1" | b"latin-1") = self.text_of(encoding) else {
            return Ok(None);
        };
        let Some(text) = self.text_of(text) else {
            return Ok(None);
        };
        self.charge(text.len())?;
        let Ok(text) = std::str::from_utf8(text) else {
            return Ok(None);
        };
        let bytes = text.chars().map(|char| u8::try_from(char).ok()).collect();
        Ok(bytes)
    }

    fn byte_array(&mut self, bytes: NodeId) -> Result<Option<Node>, PickleError> {
        let Node::Bytes(bytes) = self.node(bytes) else {
            return Ok(None);
        };
        let bytes: Box<[u8]> = Box::from(&**bytes);
        self.charge(bytes.len())?;
        Ok(Some(Node::ByteArray(bytes)))
    }

    fn set(&mut self, list: NodeId) -> Result<Option<Node>, PickleError> {
        let Node::List(items) = self.node(list) else {
            return Ok(None);
        };
        let count = items.len();
        self.charge(count)?;
        let Node::List(items) = self.node(list) else {
            return Ok(None);
        };
        let items: Box<[NodeId]> = items.as_slice().into();
        for item in &items {
            self.check_key(*item)?;
        }
        Ok(Some(Node::Set(items)))
    }

    fn complex(&self, real: NodeId, imaginary: NodeId) -> Option<Node> {
        match (self.node(real), self.node(imaginary)) {
            (Node::Float(real), Node::Float(imaginary)) => Some(Node::Complex(*real, *imaginary)),
            _ => None,
        }
    }
}
