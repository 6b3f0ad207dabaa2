//! Calls that torch's restricted unpickler would make, and that no checkpoint needs.
//!
//! It lets a pickle call a few classes with any arguments. Some of them give memory that nobody has
//! filled, or take as much memory or time as a number in the pickle says: a hundred bytes are enough
//! for a `bytearray` of 8 GiB, a `set` of the elements of a tensor that is expanded 2^40 times, or a
//! codec that is quadratic. `torch.save` calls them in one way each, which is decoded; all others
//! are refused.

use super::error::PickleError;
use super::global::{Global, Known};
use super::graph::{Node, NodeId, StorageId};
use super::machine::Decoder;

const TYPE_REBUILDER: &str = "torch._tensor._rebuild_from_type_v2";
pub(super) const PARAMETER: &str = "torch.nn.parameter.Parameter";
/// They copy the tensors that they are given, or go through all of their elements.
const COPYING: [&str; 3] = [
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
];
/// How many elements more than its storage has a tensor may show to a function that copies it.
const EXPANDED_ELEMENTS: u64 = 1 << 22;

/// The classes of tensors and storages: an instance comes with memory of its own.
fn is_memory(path: &str) -> bool {
    if matches!(
        path,
        "torch.Tensor" | "torch.storage.UntypedStorage" | "torch.storage.TypedStorage"
    ) {
        return true;
    }
    let name = path
        .strip_prefix("torch.")
        .map(|name| name.strip_prefix("cuda.").unwrap_or(name))
        .map(|name| name.strip_prefix("sparse.").unwrap_or(name));
    name.is_some_and(is_tensor_kind)
}

/// The classes that strided tensors had before torch 0.4.
pub(super) fn is_tensor_class(path: &str) -> bool {
    let name = path
        .strip_prefix("torch.")
        .map(|name| name.strip_prefix("cuda.").unwrap_or(name));
    name.is_some_and(is_tensor_kind)
}

fn is_tensor_kind(name: &str) -> bool {
    name.strip_suffix("Tensor").is_some_and(|kind| {
        matches!(
            kind,
            "BFloat16"
                | "Bool"
                | "Byte"
                | "Char"
                | "Double"
                | "Float"
                | "Half"
                | "Int"
                | "Long"
                | "Short"
        )
    })
}

impl Known {
    /// Whether it may be called in the one way only that is decoded.
    fn has_one_form(self) -> bool {
        match self {
            Self::Dtype(_)
            | Self::StorageClass(_)
            | Self::Device
            | Self::RebuildTensorV2
            | Self::RebuildTensorV3
            | Self::RebuildParameter
            // torch refuses them, unless somebody has allowed them for numpy's other objects.
            | Self::NumpyArray
            | Self::NumpyDtype
            | Self::NumpyReconstruct
            | Self::NumpyScalar => false,
            Self::UntypedStorage
            | Self::OrderedDict
            | Self::Counter
            | Self::Size
            | Self::Encode
            | Self::ByteArray
            | Self::Set
            | Self::Complex
            | Self::Bytes => true,
        }
    }
}

fn must_not_be_called(global: &Global) -> bool {
    global.known.is_some_and(Known::has_one_form) || is_memory(&global.path())
}

impl Decoder<'_> {
    /// Refuses a call that is left to torch, where torch should not make it.
    pub(super) fn check_opaque_call(
        &self,
        callable: NodeId,
        args: NodeId,
    ) -> Result<(), PickleError> {
        let Node::Global(global) = self.node(callable) else {
            return Ok(());
        };
        let Node::Tuple(items) = self.node(args) else {
            return Ok(());
        };
        let path = global.path();
        if must_not_be_called(global) {
            return Err(self.refused(path));
        }
        if let Some(Node::Global(first)) = items.first().map(|id| self.node(*id)) {
            // It calls its first argument.
            let inner = first.path();
            if path == TYPE_REBUILDER && (must_not_be_called(first) || inner == TYPE_REBUILDER) {
                return Err(self.refused(inner));
            }
        }
        if COPYING.contains(&path.as_str()) {
            self.check_copied(items, &path)?;
        }
        Ok(())
    }

    /// The same for `NEWOBJ`: without arguments, a class makes an empty object.
    pub(super) fn check_new_object(&self, class: NodeId, args: NodeId) -> Result<(), PickleError> {
        let Node::Global(global) = self.node(class) else {
            return Ok(());
        };
        let path = global.path();
        let with_arguments = !matches!(self.node(args), Node::Tuple(items) if items.is_empty());
        if is_memory(&path) || (with_arguments && must_not_be_called(global)) {
            return Err(self.refused(path));
        }
        Ok(())
    }

    /// Whether an object is a tensor, whose state torch would set by `Tensor.set_`: over any other
    /// storage, which it makes larger where it can, with memory that nobody has filled.
    pub(super) fn is_tensor(&self, object: NodeId) -> bool {
        let callable = match self.node(object) {
            Node::Tensor(_) | Node::Parameter { .. } => return true,
            Node::Call { callable, .. } => *callable,
            Node::NewObject { class, .. } => *class,
            _ => return false,
        };
        let Node::Global(global) = self.node(callable) else {
            return false;
        };
        let path = global.path();
        path == PARAMETER
            || path == TYPE_REBUILDER
            || path.starts_with("torch._utils.")
            || is_tensor_class(&path)
    }

    /// The tensors that a function copies are whole ones, up to a little.
    fn check_copied(&self, items: &[NodeId], path: &str) -> Result<(), PickleError> {
        for item in items {
            let beyond = match self.node(*item) {
                // The indices and values of a sparse tensor, the scales of a quantized one.
                Node::Tuple(inner) => {
                    self.check_copied(inner, path)?;
                    continue;
                }
                Node::Tensor(tensor) => {
                    self.elements_beyond(tensor.storage, tensor.size.iter().copied())
                }
                Node::Call { args, .. } => self.elements_of_call(*args),
                // Its state has the size; nobody saved such a tensor inside of another.
                Node::NewObject { .. } if self.is_tensor(*item) => u64::MAX,
                _ => continue,
            };
            if beyond > EXPANDED_ELEMENTS {
                return Err(self.refused(path.to_owned()));
            }
        }
        Ok(())
    }

    /// The same for a tensor of a rare form: `_rebuild_tensor*(storage, offset, size, ...)`.
    fn elements_of_call(&self, args: NodeId) -> u64 {
        let Node::Tuple(items) = self.node(args) else {
            return 0;
        };
        let [storage, _offset, size, ..] = &**items else {
            return 0;
        };
        let (Node::Storage(storage), Node::Tuple(size)) = (self.node(*storage), self.node(*size))
        else {
            // Tensors inside other objects: nothing that torch.save writes as an argument.
            return if items.iter().any(|item| self.is_object(*item)) {
                u64::MAX
            } else {
                0
            };
        };
        let of_item = |item: &NodeId| match self.node(*item) {
            Node::Int(size) => u64::try_from(*size).unwrap_or(u64::MAX),
            _ => u64::MAX,
        };
        self.elements_beyond(*storage, size.iter().map(of_item))
    }

    fn is_object(&self, id: NodeId) -> bool {
        matches!(
            self.node(id),
            Node::Tensor(_) | Node::Call { .. } | Node::NewObject { .. }
        )
    }

    /// How many elements a shape has, less those that its storage has.
    fn elements_beyond(&self, storage: StorageId, size: impl Iterator<Item = u64>) -> u64 {
        let has = self
            .storages
            .get(storage.index())
            .map_or(0, |storage| storage.nbytes);
        size.fold(1_u64, u64::saturating_mul).saturating_sub(has)
    }

    pub(super) fn refused(&self, path: String) -> PickleError {
        PickleError::Call {
            offset: self.cursor.offset,
            path,
        }
    }
}
