//! The restricted decoder of `data.pkl`: untrusted bytes in, a [`Graph`] of plain nodes out.
//!
//! Nothing is executed. The opcodes are those of torch's own `weights_only` unpickler, the calls
//! that have a meaning here are the few that `torch.save` writes for tensors, containers, plain values
//! and numpy's numbers. Anything else that torch may still accept (quantized and sparse tensors,
//! subclasses, safe globals) becomes an opaque node, and [`Graph::outside`] names the first one:
//! such a pickle has to go through torch's unpickler, after it has been walked here and found
//! free of item assignments on anything but dicts (torch before 2.10 corrupts its heap on those,
//! CVE-2026-24747).
//!
//! Memory is linear in the length of the pickle: every node costs at least one byte of input,
//! claimed lengths are compared with the bytes that are there, a memo index is never larger than
//! its own offset, and what is copied out of memoised objects is charged to a budget.

mod call;
mod cursor;
mod decode;
mod dtype;
mod error;
mod for_torch;
mod global;
mod graph;
mod hashes;
mod length;
mod machine;
mod names;
mod numpy;
mod old_state;
mod opcode;
mod probes;
mod reach;
mod refused;
mod storage;
mod tensor;
mod values;

pub use dtype::Dtype;
pub use error::{ArrayProblem, PickleError, TensorProblem};
pub use for_torch::ForTorch;
pub use global::Global;
pub use graph::{Counter, Graph, Node, NodeId, StorageId, StorageRef, Tensor, Text};
pub use length::length;
pub use names::Place;
pub use numpy::{Number, NumberKind, NumpyArray, NumpyDtype, NumpyScalar};

/// What a pickle may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Levels of containers between the root and any object, tuples inside tuples, and open marks.
    pub max_depth: usize,
    /// Length of the pickle in bytes; more than 4 GiB is never accepted (positions are 32 bits).
    pub max_nbytes: usize,
}

impl Default for Limits {
    /// Python's own recursion limit keeps `torch.save` below 1000 levels.
    fn default() -> Self {
        Self {
            max_depth: 1000,
            max_nbytes: usize::MAX,
        }
    }
}

/// Decodes a whole `data.pkl`, of which the `STOP` opcode has to be the last byte.
///
/// ```
/// use fastckpt_format::pickle::{Limits, Node, decode};
///
/// let graph = decode(b"\x80\x02K\x07.".to_vec(), Limits::default())?;
/// assert_eq!(graph.node(graph.root()), &Node::Int(7));
/// assert_eq!(graph.outside(), None);
/// # Ok::<(), fastckpt_format::pickle::PickleError>(())
/// ```
pub fn decode(pickle: Vec<u8>, limits: Limits) -> Result<Graph, PickleError> {
    decode_while(pickle, limits, || true)
}

/// The same, for as long as `goes_on` says so, which is asked every few milliseconds.
///
/// # Errors
/// Also [`PickleError::Stopped`], where it did not.
pub fn decode_while(
    pickle: Vec<u8>,
    limits: Limits,
    mut goes_on: impl FnMut() -> bool,
) -> Result<Graph, PickleError> {
    let decoded = decode::run(&pickle, limits, StorageIds::Archive, &mut goes_on)?;
    Graph::new(pickle, decoded, limits)
}

/// The same for the pickles of a file of torch before 1.6, see [`crate::legacy`].
pub(crate) fn decode_legacy(pickle: Vec<u8>, limits: Limits) -> Result<Graph, PickleError> {
    let decoded = decode::run(&pickle, limits, StorageIds::Legacy, &mut || true)?;
    Graph::new(pickle, decoded, limits)
}

/// What a persistent id has for a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StorageIds {
    /// Five parts: `('storage', class, key, location, numel)`.
    Archive,
    /// A sixth says which part of the storage is meant, `None` for all of it.
    Legacy,
}
