//! Python objects from a decoded pickle: what torch's unpickler would build, without unpickling.

use std::collections::HashMap;

use fastckpt_format::pickle::{Dtype, Graph, Node, Tensor};
use pyo3::exceptions::{PyAssertionError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyModule, PyTuple};

use crate::buffers::PySpan;
use crate::numpy::Numpy;
use crate::objects::Objects;

/// Builds the object that the graph describes, over the memory of `storages`, one for each of
/// `graph.storages()`: `Span`s of the core or `torch.UntypedStorage`s.
pub(crate) fn build<'py>(
    py: Python<'py>,
    graph: &Graph,
    storages: &Bound<'py, PyList>,
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(outside) = graph.outside() {
        return Err(PyValueError::new_err(format!(
            "only torch's unpickler can build this object: {outside}"
        )));
    }
    if storages.len() != graph.storages().len() {
        let (given, wanted) = (storages.len(), graph.storages().len());
        return Err(PyValueError::new_err(format!(
            "{given} storages given, the pickle has {wanted}"
        )));
    }
    let mut builder = Builder::new(py, graph, storages)?;
    for &id in graph.reachable() {
        let object = builder.create(graph.node(id))?;
        builder.objects.put(id, object);
        builder.objects.pause_after(effort(graph.node(id)))?;
    }
    builder.objects.finish()
}

/// How many numbers could be made in the time that the object takes.
fn effort(node: &Node) -> usize {
    const BYTES_COPIED: usize = 1 << 9;
    match node {
        Node::Tensor(_) | Node::Parameter { .. } => 256,
        Node::NumpyArray(array) => 64 + array.data.len() / BYTES_COPIED,
        Node::NumpyScalar(_) => 16,
        _ => 0,
    }
}

struct Builder<'py, 'g> {
    objects: Objects<'py, 'g>,
    torch: Torch<'py>,
    /// Only where there is something of numpy's.
    numpy: Option<Numpy<'py>>,
    storages: Vec<Storage<'py>>,
}

/// What is used of torch, looked up once.
struct Torch<'py> {
    module: Bound<'py, PyModule>,
    frombuffer: Bound<'py, PyAny>,
    frombuffer_arguments: Bound<'py, PyDict>,
    parameter: Bound<'py, PyAny>,
    dtypes: HashMap<&'static str, Bound<'py, PyAny>>,
}

/// The memory of one storage, and the torch storage over it once a tensor has made one.
struct Storage<'py> {
    memory: Bound<'py, PyAny>,
    /// What the pickle says: a record may be a little longer.
    nbytes: usize,
    made: Option<Bound<'py, PyAny>>,
}

impl<'py, 'g> Builder<'py, 'g> {
    fn new(py: Python<'py>, graph: &'g Graph, storages: &Bound<'py, PyList>) -> PyResult<Self> {
        let storages = storages
            .iter()
            .zip(graph.storages())
            .map(|(memory, described)| {
                let made = (!memory.is_instance_of::<PySpan>()).then(|| memory.clone());
                let nbytes = usize::try_from(described.nbytes)?;
                Ok(Storage {
                    memory,
                    nbytes,
                    made,
                })
            })
            .collect::<PyResult<Vec<_>>>()?;
        Ok(Self {
            objects: Objects::new(py, graph)?,
            torch: Torch::new(py)?,
            numpy: None,
            storages,
        })
    }

    fn create(&mut self, node: &Node) -> PyResult<Bound<'py, PyAny>> {
        if let Some(object) = self.objects.plain(node)? {
            return Ok(object);
        }
        let py = self.objects.py;
        Ok(match node {
            Node::Size(lengths) => self
                .torch
                .module
                .getattr(intern!(py, "Size"))?
                .call1((PyTuple::new(py, lengths.iter())?,))?,
            Node::Dtype(dtype) => self.torch.dtype(*dtype)?,
            Node::Device { kind, index } => {
                let kind = self.objects.text(*kind)?;
                let device = self.torch.module.getattr(intern!(py, "device"))?;
                match index {
                    Some(index) => device.call1((kind, *index))?,
                    None => device.call1((kind,))?,
                }
            }
            Node::Tensor(tensor) => self.tensor(tensor)?,
            Node::Parameter {
                tensor,
                requires_grad,
            } => self
                .torch
                .parameter
                .call1((self.objects.get(*tensor)?, *requires_grad))?,
            Node::NumpyArray(_) | Node::NumpyScalar(_) | Node::NumpyDtype(_) => {
                let numpy = match &mut self.numpy {
                    Some(numpy) => numpy,
                    None => self.numpy.insert(Numpy::import(py)?),
                };
                numpy.object(node)?
            }
            _ => {
                return Err(PyAssertionError::new_err(
                    "a node that only torch's unpickler can build",
                ));
            }
        })
    }

    fn tensor(&mut self, tensor: &Tensor) -> PyResult<Bound<'py, PyAny>> {
        let index = tensor.storage.index();
        let built = if let Some(storage) = &self.storages[index].made {
            self.torch.over_storage(self.objects.py, storage, tensor)?
        } else {
            let Storage { memory, nbytes, .. } = &self.storages[index];
            let span = memory.cast::<PySpan>()?.get();
            if span.nbytes() < *nbytes {
                let message = format!("a record of {} bytes, not {nbytes}", span.nbytes());
                return Err(PyValueError::new_err(message));
            }
            let (built, storage) = self
                .torch
                .over_span(self.objects.py, span, *nbytes, tensor)?;
            self.storages[index].made = Some(storage);
            built
        };
        if tensor.requires_grad {
            built.setattr(intern!(self.objects.py, "requires_grad"), true)?;
        }
        Ok(built)
    }
}

impl<'py> Torch<'py> {
    fn new(py: Python<'py>) -> PyResult<Self> {
        let module = PyModule::import(py, "torch")?;
        Ok(Self {
            frombuffer: module.getattr("frombuffer")?,
            frombuffer_arguments: PyDict::new(py),
            parameter: module.getattr("nn")?.getattr("Parameter")?,
            dtypes: HashMap::new(),
            module,
        })
    }

    fn dtype(&mut self, dtype: Dtype) -> PyResult<Bound<'py, PyAny>> {
        if let Some(known) = self.dtypes.get(dtype.name()) {
            return Ok(known.clone());
        }
        let found = self.module.getattr(dtype.name()).map_err(|_absent| {
            let message = format!("the installed torch has no dtype {}", dtype.name());
            PyTypeError::new_err(message)
        })?;
        self.dtypes.insert(dtype.name(), found.clone());
        Ok(found)
    }

    /// The first tensor over a storage that the core has read, and that storage. The storage has
    /// the size that the pickle says, not a byte more, as torch.load's has.
    fn over_span(
        &mut self,
        py: Python<'py>,
        span: &PySpan,
        nbytes: usize,
        tensor: &Tensor,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let itemsize = usize::try_from(tensor.dtype.itemsize())?;
        if nbytes == 0 || !nbytes.is_multiple_of(itemsize) {
            let bytes = self.bytes_over(py, span, nbytes)?;
            let storage = bytes.call_method0(intern!(py, "untyped_storage"))?;
            return Ok((self.over_storage(py, &storage, tensor)?, storage));
        }
        let numel = nbytes / itemsize;
        let dtype = self.dtype(tensor.dtype)?;
        let whole = self.frombuffer(py, span, &dtype, numel)?;
        let is_whole =
            tensor.offset == 0 && *tensor.size == [numel as u64] && *tensor.stride == [1];
        if !is_whole {
            let size = PyTuple::new(py, tensor.size.iter())?;
            let stride = PyTuple::new(py, tensor.stride.iter())?;
            whole.call_method1(intern!(py, "as_strided_"), (size, stride, tensor.offset))?;
        }
        let storage = whole.call_method0(intern!(py, "untyped_storage"))?;
        Ok((whole, storage))
    }

    /// A tensor over a storage that exists.
    fn over_storage(
        &mut self,
        py: Python<'py>,
        storage: &Bound<'py, PyAny>,
        tensor: &Tensor,
    ) -> PyResult<Bound<'py, PyAny>> {
        let dtype = self.dtype(tensor.dtype)?;
        let device = storage.getattr(intern!(py, "device"))?;
        let empty = self.empty(py, &dtype, device)?;
        let size = PyTuple::new(py, tensor.size.iter())?;
        let stride = PyTuple::new(py, tensor.stride.iter())?;
        empty.call_method1(intern!(py, "set_"), (storage, tensor.offset, size, stride))
    }

    fn bytes_over(
        &mut self,
        py: Python<'py>,
        span: &PySpan,
        nbytes: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let dtype = self.dtype(Dtype::UInt8)?;
        if nbytes == 0 {
            // frombuffer refuses a length of 0.
            return self.empty(py, &dtype, intern!(py, "cpu").to_owned().into_any());
        }
        self.frombuffer(py, span, &dtype, nbytes)
    }

    /// A tensor of no elements; the device is always said, since the caller may be in a
    /// `with torch.device(...)`.
    fn empty(
        &self,
        py: Python<'py>,
        dtype: &Bound<'py, PyAny>,
        device: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let arguments = PyDict::new(py);
        arguments.set_item(intern!(py, "dtype"), dtype)?;
        arguments.set_item(intern!(py, "device"), device)?;
        self.module
            .getattr(intern!(py, "empty"))?
            .call((0,), Some(&arguments))
    }

    fn frombuffer(
        &self,
        py: Python<'py>,
        span: &PySpan,
        dtype: &Bound<'py, PyAny>,
        numel: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let arguments = &self.frombuffer_arguments;
        arguments.set_item(intern!(py, "dtype"), dtype)?;
        arguments.set_item(intern!(py, "count"), numel)?;
        arguments.set_item(intern!(py, "offset"), span.offset())?;
        self.frombuffer.call((span.memory(),), Some(arguments))
    }
}
