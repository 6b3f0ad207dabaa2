//! Arrays, scalars and dtypes of numpy, of what the decoder has checked. Nothing that a file names is
//! called: the dtype comes from a fixed table, the bytes are copied.

use std::collections::HashMap;

use fastckpt_format::pickle::{Graph, Node, NodeId, NumpyArray, NumpyDtype, NumpyScalar};
use pyo3::exceptions::{PyAssertionError, PyImportError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyModule, PyTuple};

/// What is used of numpy, looked up once.
pub(crate) struct Numpy<'py> {
    py: Python<'py>,
    module: Bound<'py, PyModule>,
    array: Bound<'py, PyAny>,
    dtypes: HashMap<NumpyDtype, Bound<'py, PyAny>>,
}

impl<'py> Numpy<'py> {
    /// # Errors
    /// `ImportError`, where numpy is not installed.
    pub(crate) fn import(py: Python<'py>) -> PyResult<Self> {
        let module = PyModule::import(py, "numpy").map_err(|cause| {
            if !cause.is_instance_of::<PyImportError>(py) {
                return cause;
            }
            let error = PyImportError::new_err(
                "the checkpoint holds arrays or numbers of numpy, and numpy cannot be imported; \
                 install numpy to load it",
            );
            error.set_cause(py, Some(cause));
            error
        })?;
        Ok(Self {
            py,
            array: module.getattr("ndarray")?,
            module,
            dtypes: HashMap::new(),
        })
    }

    /// The object of one of numpy's nodes.
    pub(crate) fn object(&mut self, node: &Node) -> PyResult<Bound<'py, PyAny>> {
        match node {
            Node::NumpyArray(array) => self.array(array),
            Node::NumpyScalar(scalar) => self.scalar(scalar),
            Node::NumpyDtype(dtype) => self.dtype(*dtype),
            _ => Err(PyAssertionError::new_err("not an object of numpy")),
        }
    }

    fn dtype(&mut self, dtype: NumpyDtype) -> PyResult<Bound<'py, PyAny>> {
        if let Some(known) = self.dtypes.get(&dtype) {
            return Ok(known.clone());
        }
        let made = self
            .module
            .getattr(intern!(self.py, "dtype"))?
            .call1((dtype.to_string(),))?;
        self.dtypes.insert(dtype, made.clone());
        Ok(made)
    }

    /// An array in the byte order of this machine, as numpy makes one of any other.
    fn array(&mut self, array: &NumpyArray) -> PyResult<Bound<'py, PyAny>> {
        let native = NumpyDtype {
            is_big_endian: cfg!(target_endian = "big") && array.dtype.kind.itemsize() > 1,
            ..array.dtype
        };
        let made = self.array_of(array, native, None)?;
        if !array.data.is_empty() {
            let data = PyBytes::new(self.py, &array.data);
            let source = self.array_of(array, array.dtype, Some(&data))?;
            self.module
                .call_method1(intern!(self.py, "copyto"), (&made, source))?;
        }
        Ok(made)
    }

    /// An array over these bytes, or over memory of its own that is still to be filled.
    fn array_of(
        &mut self,
        array: &NumpyArray,
        dtype: NumpyDtype,
        data: Option<&Bound<'py, PyBytes>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        let arguments = PyDict::new(py);
        arguments.set_item(intern!(py, "dtype"), self.dtype(dtype)?)?;
        arguments.set_item(intern!(py, "buffer"), data)?;
        let order = if array.is_fortran {
            intern!(py, "F")
        } else {
            intern!(py, "C")
        };
        arguments.set_item(intern!(py, "order"), order)?;
        let shape = PyTuple::new(py, array.shape.iter())?;
        self.array.call((shape,), Some(&arguments))
    }

    fn scalar(&mut self, scalar: &NumpyScalar) -> PyResult<Bound<'py, PyAny>> {
        let dtype = self.dtype(NumpyDtype {
            kind: scalar.kind(),
            is_big_endian: false,
        })?;
        let data = PyBytes::new(self.py, scalar.data());
        self.module
            .call_method1(intern!(self.py, "frombuffer"), (data, dtype))?
            .get_item(0)
    }
}

/// The objects that torch's unpickler asks for, see `Graph::for_torch`.
pub(crate) fn objects<'py>(
    py: Python<'py>,
    graph: &Graph,
    ids: &[NodeId],
) -> PyResult<Bound<'py, PyList>> {
    let objects = PyList::empty(py);
    let mut numpy = None;
    for id in ids {
        let node = graph.node(*id);
        if let Node::Bytes(bytes) = node {
            objects.append(PyBytes::new(py, bytes))?;
        } else {
            let numpy = match &mut numpy {
                Some(numpy) => numpy,
                None => numpy.insert(Numpy::import(py)?),
            };
            objects.append(numpy.object(node)?)?;
        }
    }
    Ok(objects)
}
