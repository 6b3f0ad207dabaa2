//! What a pickle describes: one node for each Python object, in the order of their creation.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::decode::Decoded;
use super::dtype::Dtype;
use super::error::PickleError;
use super::for_torch::{ForTorch, Replacements};
use super::global::Global;
use super::names::{self, Place};
use super::numpy::{NumpyArray, NumpyDtype, NumpyScalar};
use super::{Limits, probes, reach, values};

/// The position of a node in its graph. The same id twice is the same Python object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) u32);

impl NodeId {
    /// The position in [`Graph::nodes`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The position of a storage in [`Graph::storages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageId(pub(super) u32);

impl StorageId {
    /// The position in [`Graph::storages`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A string of the pickle: where its bytes stand, see [`Graph::text`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    start: u32,
    nbytes: u32,
    has_surrogates: bool,
}

impl Text {
    pub(super) fn new(start: u32, nbytes: u32, has_surrogates: bool) -> Self {
        Self {
            start,
            nbytes,
            has_surrogates,
        }
    }

    /// Whether the bytes are UTF-8 only with Python's `surrogatepass`.
    #[must_use]
    pub fn has_surrogates(self) -> bool {
        self.has_surrogates
    }

    pub(super) fn range(self) -> Range<usize> {
        let start = self.start as usize;
        start..start.saturating_add(self.nbytes as usize)
    }
}

/// A strided tensor that lies within its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The storage that the tensor is a view of.
    pub storage: StorageId,
    /// Element type; the storage's own may be another one, or untyped.
    pub dtype: Dtype,
    /// First element, counted in elements of `dtype` from the start of the storage.
    pub offset: u64,
    /// Length of each dimension.
    pub size: Box<[u64]>,
    /// Elements from one position to the next, for each dimension.
    pub stride: Box<[u64]>,
    /// torch's `requires_grad`.
    pub requires_grad: bool,
}

/// A `collections.Counter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// The tuple of arguments it was made with.
    pub args: NodeId,
    /// What was assigned later.
    pub items: Vec<(NodeId, NodeId)>,
}

/// One Python object.
///
/// Immutable objects refer only to nodes with a smaller id. A `List`, `Dict`, `OrderedDict` or
/// `Counter` stands where it was created, its items may have larger ids, and may be itself.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Node {
    /// `None`, a single node.
    None,
    /// `True` or `False`, a single node each.
    Bool(bool),
    /// An int of up to 64 bits.
    Int(i64),
    /// A longer int: little-endian two's complement of up to 255 bytes.
    Long(Box<[u8]>),
    /// A float.
    Float(f64),
    /// A str.
    Text(Text),
    /// A bytes object.
    Bytes(Arc<[u8]>),
    /// A bytearray.
    ByteArray(Box<[u8]>),
    /// Real and imaginary part.
    Complex(f64, f64),
    /// A tuple; the empty one is a single node.
    Tuple(Box<[NodeId]>),
    /// A list.
    List(Vec<NodeId>),
    /// A dict. A key may occur twice, the later value counts.
    Dict(Vec<(NodeId, NodeId)>),
    /// A `collections.OrderedDict`.
    OrderedDict {
        /// As in a dict.
        items: Vec<(NodeId, NodeId)>,
        /// The attribute `_metadata` that `Module.state_dict()` sets.
        metadata: Option<NodeId>,
    },
    /// A set.
    Set(Box<[NodeId]>),
    /// A `torch.Size`.
    Size(Box<[i64]>),
    /// A `torch.dtype`.
    Dtype(Dtype),
    /// A `torch.device`.
    Device {
        /// `cpu`, `cuda` ...
        kind: Text,
        /// The number behind the colon.
        index: Option<u8>,
    },
    /// A tensor.
    Tensor(Box<Tensor>),
    /// A `torch.nn.Parameter` without hooks or attributes.
    Parameter {
        /// A `Tensor` node.
        tensor: NodeId,
        /// torch's `requires_grad`.
        requires_grad: bool,
    },
    /// An array of numpy.
    NumpyArray(Box<NumpyArray>),
    /// A scalar of numpy.
    NumpyScalar(Box<NumpyScalar>),
    /// A `numpy.dtype`.
    NumpyDtype(NumpyDtype),
    /// A bare storage. As part of the result, not of a tensor, it closes the fast path.
    Storage(StorageId),
    /// A class or function. As part of the result, it closes the fast path.
    Global(Box<Global>),
    /// A `collections.Counter`; only outside the fast path.
    Counter(Box<Counter>),
    /// Any other call of a global; only outside the fast path.
    Call {
        /// A `Global` node.
        callable: NodeId,
        /// A `Tuple` node.
        args: NodeId,
    },
    /// An object made by `cls.__new__`; only outside the fast path.
    NewObject {
        /// A `Global` node.
        class: NodeId,
        /// A `Tuple` node.
        args: NodeId,
    },
}

impl Node {
    /// What the object is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) | Self::Long(_) => "an int",
            Self::Float(_) => "a float",
            Self::Text(_) => "a str",
            Self::Bytes(_) => "a bytes object",
            Self::ByteArray(_) => "a bytearray",
            Self::Complex(..) => "a complex",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::OrderedDict { .. } => "an OrderedDict",
            Self::Set(_) => "a set",
            Self::Size(_) => "a torch.Size",
            Self::Dtype(_) => "a torch.dtype",
            Self::Device { .. } => "a torch.device",
            Self::Tensor(_) => "a tensor",
            Self::Parameter { .. } => "a Parameter",
            Self::NumpyArray(_) => "a numpy array",
            Self::NumpyScalar(_) => "a numpy scalar",
            Self::NumpyDtype(_) => "a numpy dtype",
            Self::Storage(_) => "a storage",
            Self::Global(_) => "a global",
            Self::Counter(_) => "a Counter",
            Self::Call { .. } => "the result of a call",
            Self::NewObject { .. } => "a new object",
        }
    }
}

/// A storage that the pickle refers to by a persistent id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageRef {
    /// The storage key, which names its record.
    pub key: String,
    /// torch's location tag: `cpu`, `cuda:0` ...
    pub location: String,
    /// Element type of a legacy storage class, `None` for an untyped storage.
    pub dtype: Option<Dtype>,
    /// Elements, which are bytes in an untyped storage.
    pub numel: u64,
    /// Bytes.
    pub nbytes: u64,
    /// For a part of a storage (a view of torch before 0.4): where it begins in the storage `key`,
    /// counted in elements. Then `numel` and `nbytes` are those of the part.
    pub view_offset: Option<u64>,
}

/// A decoded pickle.
#[derive(Debug, Clone)]
pub struct Graph {
    pickle: Vec<u8>,
    pub(super) nodes: Vec<Node>,
    pub(super) storages: Vec<StorageRef>,
    pub(super) root: NodeId,
    /// State given by `BUILD` to objects that cannot hold it, as (object, state).
    pub(super) states: Vec<(NodeId, NodeId)>,
    outside: Option<String>,
    for_torch: Replacements,
    pub(super) reachable: Vec<NodeId>,
}

impl Graph {
    pub(super) fn new(
        pickle: Vec<u8>,
        decoded: Decoded,
        limits: Limits,
    ) -> Result<Self, PickleError> {
        let mut graph = Self {
            pickle,
            nodes: decoded.nodes,
            storages: decoded.storages,
            root: decoded.root,
            states: decoded.states,
            outside: decoded.outside,
            for_torch: decoded.for_torch,
            reachable: Vec::new(),
        };
        graph.reachable = reach::from_root(&graph, limits.max_depth)?;
        probes::check(&graph)?;
        if graph.outside.is_none() {
            graph.outside = reach::opaque_value(&graph);
        }
        Ok(graph)
    }

    /// The bytes that were decoded.
    #[must_use]
    pub fn pickle(&self) -> &[u8] {
        &self.pickle
    }

    /// Every object that the pickle made, also those that the result does not contain.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of an id of this graph.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        // An id of another graph is a mistake of the caller, not a reason to panic.
        self.nodes.get(id.index()).unwrap_or(&Node::None)
    }

    /// The object that was saved.
    #[must_use]
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// The nodes that the saved object consists of, itself included, by ascending id: to create
    /// them in this order, and to fill the containers afterwards, needs no recursion.
    ///
    /// The tuples, numbers and hooks that a tensor was made from are not among them.
    #[must_use]
    pub fn reachable(&self) -> &[NodeId] {
        &self.reachable
    }

    /// The dtypes of the tensors, and those that stand there themselves. A torch may be too old for one.
    #[must_use]
    pub fn dtypes(&self) -> BTreeSet<Dtype> {
        let reachable = self.reachable.iter().map(|&id| self.node(id));
        let dtypes = reachable.filter_map(|node| match node {
            Node::Tensor(tensor) => Some(tensor.dtype),
            Node::Dtype(dtype) => Some(*dtype),
            _ => None,
        });
        dtypes.collect()
    }

    /// The storages, in order of first appearance.
    #[must_use]
    pub fn storages(&self) -> &[StorageRef] {
        &self.storages
    }

    /// The name below the root folder of the record that holds a storage.
    #[must_use]
    pub fn record_name(&self, storage: StorageId) -> Option<String> {
        let storage = self.storages.get(storage.index())?;
        Some(format!("data/{}", storage.key))
    }

    /// `None` where the nodes say all that there is to say. Otherwise the first thing that needs
    /// torch's own restricted unpickler, such as `global __main__.Config`.
    #[must_use]
    pub fn outside(&self) -> Option<&str> {
        self.outside.as_deref()
    }

    /// The pickle for torch's own restricted unpickler, which takes less than the decoder: what it
    /// would refuse (numpy's objects, some bytes) is asked for in it, see [`ForTorch`]. `None` where it
    /// is [`Graph::pickle`].
    #[must_use]
    pub fn for_torch(&self) -> Option<ForTorch> {
        self.for_torch.apply(self)
    }

    /// The bytes of a text: UTF-8, or nearly so if [`Text::has_surrogates`].
    #[must_use]
    pub fn text(&self, text: Text) -> &[u8] {
        self.pickle.get(text.range()).unwrap_or_default()
    }

    /// What `BUILD` did to objects that cannot show it themselves, as (object, state); empty
    /// within the fast path.
    #[must_use]
    pub fn states(&self) -> &[(NodeId, NodeId)] {
        &self.states
    }

    /// Every tensor and bare storage of the saved object, in the order of its containers, under
    /// the path of keys that leads to it: `transformer.h.3.mlp.c_fc.weight`, `state.3.exp_avg`,
    /// `<root>` for the root itself.
    ///
    /// A name is for reading: control characters are escaped, a long one is cut at its front,
    /// and the parts of a sparse tensor share their prefix.
    #[must_use]
    pub fn tensor_names(&self) -> Vec<(StorageId, String)> {
        names::tensor_names(self)
    }

    /// Every place where a tensor over one of these storages stands, in the order of
    /// [`Graph::tensor_names`]; of very many the first.
    #[must_use]
    pub fn places(&self, is_wanted: impl Fn(StorageId) -> bool) -> Vec<Place> {
        names::places(self, is_wanted)
    }

    /// The same object without the tensors over some storages: dicts without the items that they were
    /// in, and `None` where they stood elsewhere.
    #[must_use]
    pub fn without(mut self, is_lost: impl Fn(StorageId) -> bool) -> Self {
        let lost_tensors: Vec<bool> = self
            .nodes
            .iter()
            .map(|node| matches!(node, Node::Tensor(tensor) if is_lost(tensor.storage)))
            .collect();
        let of = |flags: &[bool], id: &NodeId| flags.get(id.index()).copied().unwrap_or(false);
        let lost: Vec<bool> = self
            .nodes
            .iter()
            .zip(&lost_tensors)
            .map(|(node, is_lost)| match node {
                Node::Parameter { tensor, .. } => of(&lost_tensors, tensor),
                _ => *is_lost,
            })
            .collect();
        for (node, is_lost) in self.nodes.iter_mut().zip(&lost) {
            match node {
                _ if *is_lost => *node = Node::None,
                Node::Dict(items) | Node::OrderedDict { items, .. } => {
                    items.retain(|(key, value)| !of(&lost, key) && !of(&lost, value));
                }
                _ => {}
            }
        }
        self
    }

    /// What of the object may hold plain values: state dicts and what an optimizer keeps for each
    /// parameter are empty, and of a list of more than `list_items_max` items the length is left.
    ///
    /// A dict under the key `metrics` and the parts of opaque objects stay whole.
    #[must_use]
    pub fn for_plain_values(mut self, list_items_max: usize) -> Self {
        values::reduce(&mut self, list_items_max);
        self
    }
}
