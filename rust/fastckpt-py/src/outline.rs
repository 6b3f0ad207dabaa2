//! What a pickle holds, for those who want to look at it without torch: plain objects as they are, and a
//! description in the place of everything else.

use fastckpt_format::pickle::{Graph, Node, NodeId, Number, NumpyArray, NumpyScalar, Tensor};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyComplex, PyFloat, PyInt, PyList, PyTuple};

use crate::graph::PyStorageInfo;
use crate::objects::Objects;

/// Builds the object that the graph describes, with a `TensorInfo` for each tensor, an `ArrayInfo` for each
/// array of numpy, a number of Python's for each of numpy's, a `StorageInfo` for each bare storage, and an
/// `Opaque` for each other object that is not Python's own.
pub(crate) fn outline<'py>(py: Python<'py>, graph: &Graph) -> PyResult<Bound<'py, PyAny>> {
    let mut objects = Objects::new(py, graph)?;
    for &id in graph.reachable() {
        let node = graph.node(id);
        let object = match objects.plain(node)? {
            Some(object) => object,
            None => describe(&objects, node)?,
        };
        objects.put(id, object);
        objects.pause_after(0)?;
    }
    for &id in graph.reachable() {
        match graph.node(id) {
            Node::Call { args, .. } | Node::NewObject { args, .. } => add(&objects, id, *args)?,
            Node::Counter(counter) => {
                add(&objects, id, counter.args)?;
                for (key, value) in &counter.items {
                    add(&objects, id, *key)?;
                    add(&objects, id, *value)?;
                }
            }
            _ => {}
        }
    }
    for (id, state) in graph.states() {
        add(&objects, *id, *state)?;
    }
    objects.finish()
}

/// Adds a part to an opaque object. Others show their parts themselves; what the result does not contain has
/// no object.
fn add(objects: &Objects<'_, '_>, id: NodeId, part: NodeId) -> PyResult<()> {
    let (Ok(object), Ok(part)) = (objects.get(id), objects.get(part)) else {
        return Ok(());
    };
    match object.cast::<PyOpaque>() {
        Ok(opaque) => opaque.get().parts.bind(objects.py).append(part),
        Err(_not_opaque) => Ok(()),
    }
}

fn describe<'py>(objects: &Objects<'py, '_>, node: &Node) -> PyResult<Bound<'py, PyAny>> {
    let (py, graph) = (objects.py, objects.graph);
    Ok(match node {
        Node::Tensor(tensor) => Bound::new(py, PyTensorInfo::new(graph, tensor, false))?.into_any(),
        Node::Parameter {
            tensor,
            requires_grad,
        } => match graph.node(*tensor) {
            Node::Tensor(tensor) => {
                let mut info = PyTensorInfo::new(graph, tensor, true);
                info.tensor.requires_grad = *requires_grad;
                Bound::new(py, info)?.into_any()
            }
            _ => opaque(py, "torch.nn.Parameter")?,
        },
        Node::Size(lengths) => PyTuple::new(py, lengths.iter())?.into_any(),
        Node::Dtype(dtype) => opaque(py, &format!("torch.{}", dtype.name()))?,
        Node::Device { kind, index } => {
            let kind: String = objects.text(*kind)?.extract()?;
            let index = index.map_or_else(String::new, |index| format!(":{index}"));
            opaque(py, &format!("{kind}{index}"))?
        }
        Node::NumpyArray(array) => Bound::new(py, PyArrayInfo(*array.clone()))?.into_any(),
        Node::NumpyScalar(scalar) => number(py, **scalar),
        Node::NumpyDtype(dtype) => opaque(py, &format!("numpy.{}", dtype.name()))?,
        Node::Storage(id) => match graph.storages().get(id.index()) {
            Some(storage) => Bound::new(py, PyStorageInfo(storage.clone()))?.into_any(),
            None => opaque(py, "torch.UntypedStorage")?,
        },
        Node::Global(global) => opaque(py, &global.path())?,
        Node::Counter(_) => opaque(py, "collections.Counter")?,
        Node::Call { callable, .. } => opaque(py, &name_of(graph, *callable))?,
        Node::NewObject { class, .. } => opaque(py, &name_of(graph, *class))?,
        _ => opaque(py, "object")?,
    })
}

/// The number of Python's that a scalar of numpy is equal to.
fn number(py: Python<'_>, scalar: NumpyScalar) -> Bound<'_, PyAny> {
    match scalar.number() {
        Number::Bool(value) => PyBool::new(py, value).to_owned().into_any(),
        Number::Int(value) => PyInt::new(py, value).into_any(),
        Number::UInt(value) => PyInt::new(py, value).into_any(),
        Number::Float(value) => PyFloat::new(py, value).into_any(),
        Number::Complex(real, imaginary) => PyComplex::from_doubles(py, real, imaginary).into_any(),
    }
}

fn name_of(graph: &Graph, global: NodeId) -> String {
    match graph.node(global) {
        Node::Global(global) => global.path(),
        _ => "object".to_owned(),
    }
}

fn opaque<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let name = name.to_owned();
    let parts = PyList::empty(py).unbind();
    Ok(Bound::new(py, PyOpaque { name, parts })?.into_any())
}

/// An object that is neither Python's own nor a tensor: its type, or the call that makes it.
#[pyclass(frozen, name = "Opaque", module = "fastckpt._native")]
pub(crate) struct PyOpaque {
    name: String,
    parts: Py<PyList>,
}

#[pymethods]
impl PyOpaque {
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn parts(&self, py: Python<'_>) -> Py<PyList> {
        self.parts.clone_ref(py)
    }

    fn __repr__(&self) -> String {
        format!("<{}>", self.name)
    }
}

/// An array of numpy, as data.pkl describes it.
#[pyclass(frozen, name = "ArrayInfo", module = "fastckpt._native")]
pub(crate) struct PyArrayInfo(NumpyArray);

#[pymethods]
impl PyArrayInfo {
    #[getter]
    fn dtype(&self) -> String {
        self.0.dtype.name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.shape.iter())
    }

    #[getter]
    fn order(&self) -> &'static str {
        if self.0.is_fortran { "F" } else { "C" }
    }

    #[getter]
    fn numel(&self) -> u64 {
        self.0.numel()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.data.len()
    }

    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.data)
    }

    /// The one element as a number of Python's, `None` where there is another number of them.
    fn item<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        Some(number(py, self.0.only_element()?))
    }

    fn __repr__(&self) -> String {
        format!("ArrayInfo({}, {:?})", self.0.dtype.name(), self.0.shape)
    }
}

/// A tensor, as data.pkl describes it.
#[pyclass(frozen, name = "TensorInfo", module = "fastckpt._native")]
pub(crate) struct PyTensorInfo {
    tensor: Tensor,
    key: String,
    location: String,
    storage_nbytes: u64,
    is_parameter: bool,
}

impl PyTensorInfo {
    fn new(graph: &Graph, tensor: &Tensor, is_parameter: bool) -> Self {
        let storage = graph.storages().get(tensor.storage.index());
        Self {
            tensor: tensor.clone(),
            key: storage.map_or_else(String::new, |storage| storage.key.clone()),
            location: storage.map_or_else(String::new, |storage| storage.location.clone()),
            storage_nbytes: storage.map_or(0, |storage| storage.nbytes),
            is_parameter,
        }
    }
}

#[pymethods]
impl PyTensorInfo {
    #[getter]
    fn key(&self) -> &str {
        &self.key
    }

    #[getter]
    fn location(&self) -> &str {
        &self.location
    }

    #[getter]
    fn storage_nbytes(&self) -> u64 {
        self.storage_nbytes
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.tensor.dtype.name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.tensor.size.iter())
    }

    #[getter]
    fn stride<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.tensor.stride.iter())
    }

    #[getter]
    fn storage_offset(&self) -> u64 {
        self.tensor.offset
    }

    #[getter]
    fn itemsize(&self) -> u64 {
        self.tensor.dtype.itemsize()
    }

    #[getter]
    fn numel(&self) -> u64 {
        let product = |so_far: u64, length: &u64| so_far.saturating_mul(*length);
        self.tensor.size.iter().fold(1, product)
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.numel().saturating_mul(self.itemsize())
    }

    #[getter]
    fn requires_grad(&self) -> bool {
        self.tensor.requires_grad
    }

    #[getter]
    fn is_parameter(&self) -> bool {
        self.is_parameter
    }

    fn __repr__(&self) -> String {
        let size = &self.tensor.size;
        format!("TensorInfo({}, {size:?}, data/{})", self.dtype(), self.key)
    }
}
