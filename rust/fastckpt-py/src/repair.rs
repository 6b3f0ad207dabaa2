//! What can be had of a damaged file.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use fastckpt_core::files::RealFiles;
use fastckpt_core::repair::{self, Lost};
use pyo3::prelude::*;

use crate::archive::PyArchive;
use crate::detach::{Raised, detached};

/// The good records of a damaged file, and what is known of the others.
#[pyclass(frozen, name = "Salvaged", module = "fastckpt._native")]
pub(crate) struct PySalvaged {
    #[pyo3(get)]
    archive: Py<PyArchive>,
    lost: Vec<Lost>,
    #[pyo3(get)]
    is_complete: bool,
}

#[pymethods]
impl PySalvaged {
    #[getter]
    fn lost(&self) -> Vec<PyLost> {
        self.lost.iter().cloned().map(PyLost).collect()
    }
}

/// A record that cannot be had.
#[pyclass(frozen, name = "Lost", module = "fastckpt._native")]
pub(crate) struct PyLost(Lost);

#[pymethods]
impl PyLost {
    #[getter]
    fn record(&self) -> &str {
        &self.0.record
    }

    #[getter]
    fn offset(&self) -> u64 {
        self.0.offset
    }

    #[getter]
    fn nbytes(&self) -> Option<u64> {
        self.0.nbytes
    }

    #[getter]
    fn expected(&self) -> Option<u32> {
        self.0.expected
    }

    #[getter]
    fn found(&self) -> Option<u32> {
        self.0.found
    }

    #[getter]
    fn reason(&self) -> &str {
        &self.0.reason
    }
}

/// Find the records of a damaged file whose bytes have a CRC that the file states for them.
#[pyfunction]
#[pyo3(signature = (path, *, threads=None, progress=None))]
pub(crate) fn salvage(
    py: Python<'_>,
    path: PathBuf,
    threads: Option<NonZeroUsize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<PySalvaged> {
    let salvaged = detached(py, progress, &Raised::default(), |observer| {
        repair::salvage(&RealFiles, &path, threads, observer)
    })?;
    Ok(PySalvaged {
        archive: Py::new(py, PyArchive::new(salvaged.archive))?,
        lost: salvaged.lost,
        is_complete: salvaged.is_complete,
    })
}
