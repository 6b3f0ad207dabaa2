//! What data.pkl describes.

use std::collections::HashSet;

use fastckpt_format::pickle::{Dtype, Graph, StorageId, StorageRef};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::{build, numpy, outline};

/// What data.pkl describes, decoded without executing any of it.
#[pyclass(frozen, name = "Graph", module = "fastckpt._native")]
pub(crate) struct PyGraph(pub(crate) Graph);

#[pymethods]
impl PyGraph {
    #[getter]
    fn outside(&self) -> Option<&str> {
        self.0.outside()
    }

    #[getter]
    fn pickle<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.pickle())
    }

    #[getter]
    fn storages(&self) -> Vec<PyStorageInfo> {
        self.0
            .storages()
            .iter()
            .cloned()
            .map(PyStorageInfo)
            .collect()
    }

    fn dtypes(&self) -> Vec<&'static str> {
        self.0.dtypes().into_iter().map(Dtype::name).collect()
    }

    fn tensor_names(&self) -> Vec<(String, String)> {
        let storages = self.0.storages();
        let named = self.0.tensor_names().into_iter();
        named
            .filter_map(|(storage, name)| Some((storages.get(storage.index())?.key.clone(), name)))
            .collect()
    }

    /// (storage key, name, whether it is an item of a dict) of each place of the tensors over these
    /// storages.
    fn places(&self, keys: HashSet<String>) -> Vec<(String, String, bool)> {
        let wanted = self.0.places(|storage| self.is_among(&keys, storage));
        let described = wanted.into_iter().filter_map(|place| {
            let key = &self.0.storages().get(place.storage.index())?.key;
            Some((key.clone(), place.name, place.is_item))
        });
        described.collect()
    }

    fn without(&self, keys: HashSet<String>) -> Self {
        let graph = self.0.clone();
        Self(graph.without(|storage| self.is_among(&keys, storage)))
    }

    /// The pickle for torch's unpickler, and what it asks for in it, see
    /// `fastckpt_format::pickle::ForTorch`.
    fn for_torch<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyList>)> {
        match self.0.for_torch() {
            None => Ok((self.pickle(py), PyList::empty(py))),
            Some(for_torch) => Ok((
                PyBytes::new(py, &for_torch.pickle),
                numpy::objects(py, &self.0, &for_torch.objects)?,
            )),
        }
    }

    fn outline<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        outline::outline(py, &self.0)
    }

    fn build<'py>(
        &self,
        py: Python<'py>,
        storages: &Bound<'py, PyList>,
    ) -> PyResult<Bound<'py, PyAny>> {
        build::build(py, &self.0, storages)
    }
}

impl PyGraph {
    fn is_among(&self, keys: &HashSet<String>, storage: StorageId) -> bool {
        let storage = self.0.storages().get(storage.index());
        storage.is_some_and(|storage| keys.contains(&storage.key))
    }
}

/// One storage that data.pkl asks for.
#[pyclass(frozen, name = "StorageInfo", module = "fastckpt._native")]
pub(crate) struct PyStorageInfo(pub(crate) StorageRef);

#[pymethods]
impl PyStorageInfo {
    #[getter]
    fn key(&self) -> &str {
        &self.0.key
    }

    #[getter]
    fn location(&self) -> &str {
        &self.0.location
    }

    #[getter]
    fn dtype(&self) -> Option<&'static str> {
        self.0.dtype.map(Dtype::name)
    }

    #[getter]
    fn numel(&self) -> u64 {
        self.0.numel
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes
    }
}
