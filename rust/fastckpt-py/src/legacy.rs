//! Loading: a file of torch before 1.6.

use std::path::PathBuf;
use std::sync::Arc;

use fastckpt_core::files::RealFiles;
use fastckpt_core::read::LegacyFile;
use fastckpt_core::{Error, Phase};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::archive::PyArchive;
use crate::buffers::borrow_fd;
use crate::detach::detached_quietly;
use crate::graph::PyGraph;

/// A file of torch before 1.6 that is open for reading; all but the elements has been checked.
#[pyclass(frozen, name = "LegacyFile", module = "fastckpt._native")]
pub(crate) struct PyLegacyFile {
    #[pyo3(get)]
    archive: Py<PyArchive>,
    #[pyo3(get)]
    graph: Py<PyGraph>,
    #[pyo3(get)]
    end: u64,
}

#[pymethods]
impl PyLegacyFile {
    #[staticmethod]
    fn open_fd(py: Python<'_>, fd: i32, name: PathBuf, start: u64) -> PyResult<Self> {
        let fd = borrow_fd(fd)?;
        let file = detached_quietly(py, || {
            let file = fd
                .try_clone_to_owned()
                .and_then(RealFiles::adopt)
                .map_err(Error::io(Phase::Open, &name))?;
            LegacyFile::from_file(file, name, start)
        })?;
        Self::new(py, file)
    }

    #[staticmethod]
    fn open_bytes(
        py: Python<'_>,
        data: PyBackedBytes,
        name: PathBuf,
        start: u64,
    ) -> PyResult<Self> {
        let file = detached_quietly(py, || LegacyFile::from_bytes(Arc::new(data), name, start))?;
        Self::new(py, file)
    }
}

impl PyLegacyFile {
    fn new(py: Python<'_>, file: LegacyFile) -> PyResult<Self> {
        Ok(Self {
            archive: Py::new(py, PyArchive::new(file.archive))?,
            graph: Py::new(py, PyGraph(file.graph))?,
            end: file.end,
        })
    }
}
