//! `torch._utils._rebuild_tensor_v2` and `_v3`: a tensor is accepted only inside its storage.

use super::dtype::Dtype;
use super::error::{PickleError, TensorProblem};
use super::graph::{Node, NodeId, StorageId, Tensor};
use super::machine::Decoder;

/// Above this torch keeps a tensor but iterates over none of its elements (the limit of its
/// `TensorIterator`), and the fast path leaves it to torch.
const MAX_DIMS: usize = 64;

/// The two functions: version 3 has the dtype as an argument, version 2 takes the storage's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V2,
    V3,
}

/// Where the elements of a tensor lie in its storage.
pub(super) struct Shape {
    pub(super) offset: u64,
    pub(super) size: Box<[u64]>,
    pub(super) stride: Box<[u64]>,
}

impl Decoder<'_> {
    /// The tensor of a rebuild call, `None` where torch itself has to make it.
    pub(super) fn rebuild_tensor(
        &mut self,
        version: Version,
        args: &[NodeId],
    ) -> Result<Option<Node>, PickleError> {
        let Some(([storage, offset, size, stride, requires_grad, hooks], rest)) =
            args.split_first_chunk()
        else {
            return Ok(None);
        };
        let dtype = match (version, rest) {
            (Version::V2, []) => None,
            (Version::V3, [dtype]) => Some(*dtype),
            // One more is the metadata with the conj and neg bits.
            _ => return Ok(None),
        };
        let Node::Storage(storage) = *self.node(*storage) else {
            return Ok(None);
        };
        let Node::Bool(requires_grad) = *self.node(*requires_grad) else {
            return Ok(None);
        };
        let Some(dtype) = self.tensor_dtype(storage, dtype) else {
            return Ok(None);
        };
        if !self.is_without_hooks(*hooks) {
            return Ok(None);
        }
        let Some(Shape {
            offset,
            size,
            stride,
        }) = self.shape(*offset, *size, *stride)?
        else {
            return Ok(None);
        };
        let tensor = Tensor {
            storage,
            dtype,
            offset,
            size,
            stride,
            requires_grad,
        };
        let nbytes = self
            .storages
            .get(storage.index())
            .map_or(0, |storage| storage.nbytes);
        check_extent(&tensor, nbytes).map_err(|problem| self.tensor_error(problem))?;
        Ok(Some(Node::Tensor(Box::new(tensor))))
    }

    /// The parameter of a `_rebuild_parameter` call on a plain tensor.
    pub(super) fn rebuild_parameter(
        &self,
        tensor: NodeId,
        requires_grad: NodeId,
        hooks: NodeId,
    ) -> Option<Node> {
        let (Node::Tensor(_), Node::Bool(requires_grad)) =
            (self.node(tensor), self.node(requires_grad))
        else {
            return None;
        };
        self.is_without_hooks(hooks).then_some(Node::Parameter {
            tensor,
            requires_grad: *requires_grad,
        })
    }

    pub(super) fn shape(
        &mut self,
        offset: NodeId,
        size: NodeId,
        stride: NodeId,
    ) -> Result<Option<Shape>, PickleError> {
        let Some(offset) = self.number("offset", offset)? else {
            return Ok(None);
        };
        let Some(size) = self.numbers("size", size)? else {
            return Ok(None);
        };
        let Some(stride) = self.numbers("stride", stride)? else {
            return Ok(None);
        };
        Ok(Some(Shape {
            offset,
            size,
            stride,
        }))
    }

    /// The element type, `None` for what `torch.save` does not write in this way.
    pub(super) fn tensor_dtype(&self, storage: StorageId, given: Option<NodeId>) -> Option<Dtype> {
        let of_storage = self.storages.get(storage.index())?.dtype;
        let dtype = match (given, of_storage) {
            (Some(given), None) => match self.node(given) {
                Node::Dtype(dtype) => *dtype,
                _ => return None,
            },
            (None, Some(dtype)) => dtype,
            // torch reads an untyped storage as bytes, but a typed one in version 3 is nobody's.
            (None, None) => Dtype::UInt8,
            (Some(_), Some(_)) => return None,
        };
        (!dtype.is_quantized() && !dtype.is_shell()).then_some(dtype)
    }

    pub(super) fn is_without_hooks(&self, hooks: NodeId) -> bool {
        matches!(self.node(hooks), Node::OrderedDict { items, .. } if items.is_empty())
    }

    fn numbers(
        &mut self,
        what: &'static str,
        tuple: NodeId,
    ) -> Result<Option<Box<[u64]>>, PickleError> {
        let count = match self.node(tuple) {
            Node::Tuple(items) => items.len(),
            _ => return Ok(None),
        };
        if count > MAX_DIMS {
            return Ok(None);
        }
        self.charge(count)?;
        let Node::Tuple(items) = self.node(tuple) else {
            return Ok(None);
        };
        let mut numbers = Vec::with_capacity(count);
        for item in items {
            match self.number(what, *item)? {
                Some(number) => numbers.push(number),
                None => return Ok(None),
            }
        }
        Ok(Some(numbers.into_boxed_slice()))
    }

    fn number(&self, what: &'static str, id: NodeId) -> Result<Option<u64>, PickleError> {
        match *self.node(id) {
            Node::Int(value) => match u64::try_from(value) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(self.tensor_error(TensorProblem::Negative { what, value })),
            },
            Node::Long(_) => Err(self.tensor_error(TensorProblem::Huge { what })),
            _ => Ok(None),
        }
    }

    pub(super) fn tensor_error(&self, problem: TensorProblem) -> PickleError {
        PickleError::Tensor {
            offset: self.cursor.offset,
            problem,
        }
    }
}

/// Checks that every element of the tensor lies within `nbytes` of storage.
pub(super) fn check_extent(tensor: &Tensor, nbytes: u64) -> Result<(), TensorProblem> {
    let (size, stride) = (&tensor.size, &tensor.stride);
    if size.len() != stride.len() {
        return Err(TensorProblem::Dimensions {
            sizes: size.len(),
            strides: stride.len(),
        });
    }
    if size.contains(&0) {
        // No element, so none lies outside, wherever the tensor begins.
        return Ok(());
    }
    let needed = needed_nbytes(tensor).ok_or(TensorProblem::Overflow)?;
    if needed > nbytes {
        let found = nbytes;
        return Err(TensorProblem::Extent { needed, found });
    }
    Ok(())
}

/// Bytes up to the end of the last element of a tensor that has some, within 63 bits.
fn needed_nbytes(tensor: &Tensor) -> Option<u64> {
    let in_63_bits = |number: &u64| i64::try_from(*number).is_ok();
    let mut numel = 1_u64;
    let mut last = tensor.offset;
    for (size, stride) in tensor.size.iter().zip(&tensor.stride) {
        numel = numel.checked_mul(*size)?;
        last = last.checked_add(size.checked_sub(1)?.checked_mul(*stride)?)?;
    }
    let itemsize = tensor.dtype.itemsize();
    // An expanded tensor has more elements than its storage; torch counts their bytes, too.
    numel.checked_mul(itemsize).filter(in_63_bits)?;
    last.checked_add(1)?
        .checked_mul(itemsize)
        .filter(in_63_bits)
}
