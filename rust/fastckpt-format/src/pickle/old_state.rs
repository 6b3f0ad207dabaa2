//! Tensors and parameters as torch before 0.4 pickled them: an object, and then its state.
//!
//! A tensor was an empty object of a class like `torch.FloatTensor`, whose state was set by
//! `Tensor.set_`; a parameter was made of a tensor, and `requires_grad` and hooks were its state.
//! torch still reads both, in files of its old format.

use super::StorageIds;
use super::error::PickleError;
use super::graph::{Node, NodeId, Tensor};
use super::machine::Decoder;
use super::refused::{PARAMETER, is_tensor_class};
use super::tensor::check_extent;

impl Decoder<'_> {
    /// Whether `NEWOBJ` begins a tensor. Until it has its state it is not to be used for anything:
    /// its storage can be made larger, with memory that nobody has filled.
    pub(super) fn begins_tensor(&self, class: NodeId, args: NodeId) -> bool {
        let Node::Global(global) = self.node(class) else {
            return false;
        };
        let is_empty = matches!(self.node(args), Node::Tuple(items) if items.is_empty());
        self.ids == StorageIds::Legacy
            && self.begun_tensor.is_none()
            && is_empty
            && is_tensor_class(&global.path())
    }

    /// `BUILD` of what torch before 0.4 wrote; `false` where this is something else.
    pub(super) fn set_old_state(
        &mut self,
        target: NodeId,
        state: NodeId,
    ) -> Result<bool, PickleError> {
        if self.ids != StorageIds::Legacy {
            return Ok(false);
        }
        let is_set = if self.begun_tensor == Some(target) {
            self.begun_tensor = None;
            self.is_state_of_tensor(state)?
        } else {
            self.is_bare_parameter(target) && self.is_state_of_parameter(state)
        };
        if is_set {
            self.states.push((target, state));
            self.leave(|| "a tensor of torch before 0.4".to_owned());
        }
        Ok(is_set)
    }

    /// Storage, offset, size and stride of a tensor that lies within its storage.
    fn is_state_of_tensor(&mut self, state: NodeId) -> Result<bool, PickleError> {
        let Node::Tuple(items) = self.node(state) else {
            return Ok(false);
        };
        let [storage, offset, size, stride] = **items else {
            return Ok(false);
        };
        let Node::Storage(storage) = *self.node(storage) else {
            return Ok(false);
        };
        let Some(dtype) = self.tensor_dtype(storage, None) else {
            return Ok(false);
        };
        let Some(shape) = self.shape(offset, size, stride)? else {
            return Ok(false);
        };
        let tensor = Tensor {
            storage,
            dtype,
            offset: shape.offset,
            size: shape.size,
            stride: shape.stride,
            requires_grad: false,
        };
        let nbytes = self
            .storages
            .get(storage.index())
            .map_or(0, |storage| storage.nbytes);
        check_extent(&tensor, nbytes).map_err(|problem| self.tensor_error(problem))?;
        Ok(true)
    }

    /// Whether an object is a parameter made of one tensor.
    fn is_bare_parameter(&self, object: NodeId) -> bool {
        let (Node::Call { callable, args }
        | Node::NewObject {
            class: callable,
            args,
        }) = self.node(object)
        else {
            return false;
        };
        let is_class =
            matches!(self.node(*callable), Node::Global(class) if class.path() == PARAMETER);
        let Node::Tuple(args) = self.node(*args) else {
            return false;
        };
        is_class && matches!(**args, [tensor] if self.is_tensor(tensor))
    }

    /// `requires_grad`, `volatile`, and hooks of which there are none.
    fn is_state_of_parameter(&self, state: NodeId) -> bool {
        let Node::Tuple(items) = self.node(state) else {
            return false;
        };
        let [requires_grad, volatile, hooks] = **items else {
            return false;
        };
        let is_bool = |id| matches!(self.node(id), Node::Bool(_));
        let has_hooks = !matches!(self.node(hooks), Node::None) && !self.is_without_hooks(hooks);
        is_bool(requires_grad) && is_bool(volatile) && !has_hooks
    }
}
