//! Python objects for the nodes of a decoded pickle that need no torch.
//!
//! The graph lists its nodes so that immutable objects refer only to nodes before them. So every
//! object is created in one pass, containers empty, and a second pass fills the containers: no
//! recursion, and what was one object stays one object.

use fastckpt_format::pickle::{Graph, Node, NodeId, Text};
use pyo3::exceptions::{PyAssertionError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyComplex, PyDict, PyFloat, PyInt, PyList, PyModule, PySet,
    PyString, PyTuple,
};

/// Objects that are made before signal handlers get a turn: a few milliseconds.
const OBJECTS_PER_PAUSE: usize = 1 << 14;

/// The objects that have been made of the nodes of a graph.
pub(crate) struct Objects<'py, 'g> {
    pub(crate) py: Python<'py>,
    pub(crate) graph: &'g Graph,
    made: Vec<Option<Bound<'py, PyAny>>>,
    since_pause: usize,
    ordered_dict: Bound<'py, PyAny>,
}

impl<'py, 'g> Objects<'py, 'g> {
    pub(crate) fn new(py: Python<'py>, graph: &'g Graph) -> PyResult<Self> {
        Ok(Self {
            py,
            graph,
            made: vec![None; graph.nodes().len()],
            since_pause: 0,
            ordered_dict: PyModule::import(py, "collections")?.getattr("OrderedDict")?,
        })
    }

    /// Lets signal handlers and other threads run every now and then; `count` is what was made since.
    pub(crate) fn pause_after(&mut self, count: usize) -> PyResult<()> {
        self.since_pause += count + 1;
        if self.since_pause < OBJECTS_PER_PAUSE {
            return Ok(());
        }
        self.since_pause = 0;
        self.py.check_signals()?;
        self.py.detach(|| ());
        Ok(())
    }

    /// Takes the object of a node.
    pub(crate) fn put(&mut self, id: NodeId, object: Bound<'py, PyAny>) {
        self.made[id.index()] = Some(object);
    }

    /// Fills all containers, and returns the object that was saved.
    pub(crate) fn finish(&mut self) -> PyResult<Bound<'py, PyAny>> {
        for &id in self.graph.reachable() {
            let items = self.fill(id)?;
            self.pause_after(items)?;
        }
        self.get(self.graph.root()).cloned()
    }

    pub(crate) fn get(&self, id: NodeId) -> PyResult<&Bound<'py, PyAny>> {
        let object = self.made.get(id.index()).and_then(Option::as_ref);
        object.ok_or_else(|| PyAssertionError::new_err("a node is used before it is made"))
    }

    fn all(&self, ids: &[NodeId]) -> PyResult<Vec<&Bound<'py, PyAny>>> {
        ids.iter().map(|id| self.get(*id)).collect()
    }

    /// The object of a node, containers still empty; `None` where it takes more than Python itself.
    pub(crate) fn plain(&self, node: &Node) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = self.py;
        Ok(Some(match node {
            Node::None => py.None().into_bound(py),
            Node::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
            Node::Int(value) => PyInt::new(py, *value).into_any(),
            Node::Long(bytes) => long(py, bytes)?,
            Node::Float(value) => PyFloat::new(py, *value).into_any(),
            Node::Text(text) => self.text(*text)?,
            Node::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
            Node::ByteArray(bytes) => PyByteArray::new(py, bytes).into_any(),
            Node::Complex(real, imaginary) => {
                PyComplex::from_doubles(py, *real, *imaginary).into_any()
            }
            Node::Tuple(items) => PyTuple::new(py, self.all(items)?)?.into_any(),
            Node::List(_) => PyList::empty(py).into_any(),
            Node::Dict(_) => PyDict::new(py).into_any(),
            Node::OrderedDict { .. } => self.ordered_dict.call0()?,
            Node::Set(items) => PySet::new(py, self.all(items)?)?.into_any(),
            _ => return Ok(None),
        }))
    }

    /// Fills a container; says how many items it has.
    fn fill(&self, id: NodeId) -> PyResult<usize> {
        Ok(match self.graph.node(id) {
            Node::List(items) => {
                let list = self.get(id)?.cast::<PyList>()?;
                for item in items {
                    list.append(self.get(*item)?)?;
                }
                items.len()
            }
            Node::Dict(items) => {
                let dict = self.get(id)?.cast::<PyDict>()?;
                for (key, value) in items {
                    dict.set_item(self.get(*key)?, self.get(*value)?)?;
                }
                items.len()
            }
            Node::OrderedDict { items, metadata } => {
                let dict = self.get(id)?;
                for (key, value) in items {
                    dict.set_item(self.get(*key)?, self.get(*value)?)?;
                }
                if let Some(metadata) = metadata {
                    dict.setattr(intern!(self.py, "_metadata"), self.get(*metadata)?)?;
                }
                items.len()
            }
            _ => 0,
        })
    }

    pub(crate) fn text(&self, text: Text) -> PyResult<Bound<'py, PyAny>> {
        let bytes = self.graph.text(text);
        if text.has_surrogates() {
            let arguments = (intern!(self.py, "utf-8"), intern!(self.py, "surrogatepass"));
            return PyBytes::new(self.py, bytes)
                .call_method1(intern!(self.py, "decode"), arguments);
        }
        let text =
            std::str::from_utf8(bytes).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(PyString::new(self.py, text).into_any())
    }
}

/// An int from little-endian two's complement.
fn long<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let arguments = PyDict::new(py);
    arguments.set_item("signed", true)?;
    py.get_type::<PyInt>().call_method(
        "from_bytes",
        (PyBytes::new(py, bytes), "little"),
        Some(&arguments),
    )
}
