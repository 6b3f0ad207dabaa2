//! Verifying one file.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use fastckpt_core::files::RealFiles;
use fastckpt_core::verify::{self, Damage, FileReport, VerifyOptions};
use pyo3::prelude::*;

use crate::archive::checksums;
use crate::detach::{Raised, detached};

/// One thing that is wrong with a file.
#[pyclass(frozen, name = "Damage", module = "fastckpt._native")]
pub(crate) struct PyDamage(Damage);

#[pymethods]
impl PyDamage {
    #[getter]
    fn record(&self) -> Option<&str> {
        self.0.record.as_deref()
    }

    #[getter]
    fn tensors(&self) -> Vec<String> {
        self.0.tensors.clone()
    }

    #[getter]
    fn offset(&self) -> u64 {
        self.0.offset
    }

    #[getter]
    fn nbytes(&self) -> u64 {
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
    fn detail(&self) -> &str {
        &self.0.detail
    }
}

/// What verifying one .pt file found.
#[pyclass(frozen, name = "FileReport", module = "fastckpt._native")]
pub(crate) struct PyFileReport(pub(crate) FileReport);

#[pymethods]
impl PyFileReport {
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes
    }

    #[getter]
    fn records(&self) -> usize {
        self.0.records
    }

    #[getter]
    fn checksums(&self) -> &'static str {
        checksums(self.0.checksums)
    }

    #[getter]
    fn headers_covered(&self) -> bool {
        self.0.headers_covered
    }

    #[getter]
    fn damages(&self) -> Vec<PyDamage> {
        self.0.damages.iter().cloned().map(PyDamage).collect()
    }
}

/// Read every byte of a .pt file and compare; with `quick` only the structure.
#[pyfunction]
#[pyo3(signature = (path, *, quick=false, threads=None, progress=None))]
pub(crate) fn verify_file(
    py: Python<'_>,
    path: PathBuf,
    quick: bool,
    threads: Option<NonZeroUsize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<PyFileReport> {
    let options = VerifyOptions { quick, threads };
    detached(py, progress, &Raised::default(), |observer| {
        verify::verify_file(&RealFiles, &path, &options, observer)
    })
    .map(PyFileReport)
}
