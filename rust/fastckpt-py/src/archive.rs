//! Loading: one open archive.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use fastckpt_core::files::RealFiles;
use fastckpt_core::read::{Archive, LoadStager, ReadOptions};
use fastckpt_core::repair;
use fastckpt_core::{Error, Phase};
use fastckpt_format::archive::SaveMark;
use fastckpt_format::index::{Checksums, Kind};
use fastckpt_format::pickle::Graph;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::buffers::{PySpan, borrow_fd, spans_to_python};
use crate::detach::{Raised, detached, detached_quietly};
use crate::graph::PyGraph;
use crate::stagers::PyStager;

/// The record that says who wrote the file: 20 digits that torch leaves to its hash of the names,
/// and the 20 of its hash of the contents.
const SERIALIZATION_ID: &str = ".data/serialization_id";
const SERIALIZATION_ID_NBYTES: u64 = 40;

/// One .pt file that is open for reading; its directory has been checked.
#[pyclass(frozen, name = "Archive", module = "fastckpt._native")]
pub(crate) struct PyArchive(Archive);

#[pymethods]
impl PyArchive {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached_quietly(py, || Archive::open(&RealFiles, &path)).map(Self)
    }

    #[staticmethod]
    fn open_fd(py: Python<'_>, fd: i32, name: PathBuf) -> PyResult<Self> {
        let fd = borrow_fd(fd)?;
        detached_quietly(py, || {
            let file = fd
                .try_clone_to_owned()
                .and_then(RealFiles::adopt)
                .map_err(Error::io(Phase::Open, &name))?;
            Archive::from_file(file, name)
        })
        .map(Self)
    }

    #[staticmethod]
    fn open_bytes(py: Python<'_>, data: PyBackedBytes, name: PathBuf) -> PyResult<Self> {
        detached_quietly(py, || Archive::from_bytes(Arc::new(data), name)).map(Self)
    }

    #[getter]
    fn path(&self) -> OsString {
        // A str in Python, where a PathBuf would be a pathlib.Path.
        self.0.path().as_os_str().to_owned()
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes()
    }

    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.index().kind() {
            Kind::Checkpoint => "torch",
            Kind::TorchScript => "torchscript",
            _ => "other",
        }
    }

    #[getter]
    fn checksums(&self) -> &'static str {
        checksums(self.0.index().checksums())
    }

    #[getter]
    fn save_mark(&self, py: Python<'_>) -> PyResult<Option<PySaveMark>> {
        let id = self.serialization_id(py)?;
        Ok(id.and_then(|id| SaveMark::parse(&id)).map(PySaveMark))
    }

    #[getter]
    fn content_hash(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let hash = self
            .serialization_id(py)?
            .map(|id| id[id.len() / 2..].to_vec())
            .filter(|hash| hash.iter().all(u8::is_ascii_digit));
        Ok(hash.and_then(|hash| String::from_utf8(hash).ok()))
    }

    fn names(&self) -> Vec<&str> {
        self.0
            .index()
            .entries()
            .iter()
            .map(|entry| entry.name.as_str())
            .collect()
    }

    fn record_offset(&self, name: &str) -> PyResult<u64> {
        self.entry(name).map(|entry| entry.payload_offset)
    }

    fn record_nbytes(&self, name: &str) -> PyResult<u64> {
        self.entry(name).map(|entry| entry.nbytes)
    }

    #[pyo3(signature = (name, *, verify=true))]
    fn read_record<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        verify: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        self.entry(name)?;
        let bytes = detached_quietly(py, || self.0.read_record(name, verify))?;
        Ok(PyBytes::new(py, &bytes))
    }

    #[pyo3(signature = (*, verify=true))]
    fn decode(&self, py: Python<'_>, verify: bool) -> PyResult<PyGraph> {
        self.decoded(py, verify, None).map(PyGraph)
    }

    #[pyo3(signature = (*, list_items_max, verify=true, progress=None))]
    fn decode_plain_values(
        &self,
        py: Python<'_>,
        list_items_max: usize,
        verify: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<PyGraph> {
        let graph = self.decoded(py, verify, progress)?;
        Ok(PyGraph(
            py.detach(|| graph.for_plain_values(list_items_max)),
        ))
    }

    fn decode_pickle(&self, py: Python<'_>) -> PyResult<PyGraph> {
        detached(py, None, &Raised::default(), |observer| {
            repair::decode(&self.0, observer)
        })
        .map(PyGraph)
    }

    #[pyo3(signature = (keys, *, mmap=false, verify=true, threads=None, progress=None))]
    #[allow(
        clippy::fn_params_excessive_bools,
        reason = "keyword arguments of a Python function"
    )]
    fn read(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        mmap: bool,
        verify: bool,
        threads: Option<NonZeroUsize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Py<PySpan>>> {
        let options = ReadOptions { threads, verify };
        let spans = detached(py, progress, &Raised::default(), |observer| {
            if mmap {
                self.0.map(&keys, &options, observer)
            } else {
                self.0.read(&keys, &options, observer)
            }
        })?;
        spans_to_python(py, spans)
    }

    #[pyo3(signature = (keys, stager, *, verify=true, threads=None, progress=None))]
    fn read_staged(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        stager: &Bound<'_, PyAny>,
        verify: bool,
        threads: Option<NonZeroUsize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let options = ReadOptions { threads, verify };
        let raised = Raised::default();
        let mut stager = PyStager::new(stager, &raised)?;
        detached(py, progress, &raised, |observer| {
            self.0.read_staged(
                &keys,
                &options,
                observer,
                &mut stager as &mut dyn LoadStager,
            )
        })
    }

    #[pyo3(signature = (keys, *, threads=None, progress=None))]
    fn check(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        threads: Option<NonZeroUsize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let options = ReadOptions {
            threads,
            verify: true,
        };
        detached(py, progress, &Raised::default(), |observer| {
            self.0.check(&keys, &options, observer)
        })
    }
}

impl PyArchive {
    pub(crate) fn new(archive: Archive) -> Self {
        Self(archive)
    }

    pub(crate) fn core(&self) -> &Archive {
        &self.0
    }

    fn decoded(
        &self,
        py: Python<'_>,
        verify: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Graph> {
        detached(py, progress, &Raised::default(), |observer| {
            self.0.decode_observed(verify, observer)
        })
    }

    /// The 40 bytes that say who wrote the file and what is in it; `None` where there is no such
    /// record of this size.
    fn serialization_id(&self, py: Python<'_>) -> PyResult<Option<Vec<u8>>> {
        let found = self.0.index().find(SERIALIZATION_ID);
        if found.is_none_or(|(_, entry)| entry.nbytes != SERIALIZATION_ID_NBYTES) {
            return Ok(None);
        }
        detached_quietly(py, || self.0.read_record(SERIALIZATION_ID, true)).map(Some)
    }

    fn entry(&self, name: &str) -> PyResult<&fastckpt_format::index::Entry> {
        let found = self.0.index().find(name);
        found
            .map(|(_, entry)| entry)
            .ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }
}

/// Which save made a file.
#[pyclass(frozen, name = "SaveMark", module = "fastckpt._native")]
pub(crate) struct PySaveMark(SaveMark);

#[pymethods]
impl PySaveMark {
    #[getter]
    fn shards(&self) -> u32 {
        self.0.shards
    }

    #[getter]
    fn save_id(&self) -> u64 {
        self.0.save_id
    }
}

/// Which records have a checksum, in the words of the Python side.
pub(crate) fn checksums(checksums: Checksums) -> &'static str {
    match checksums {
        Checksums::All => "all",
        Checksums::MetadataOnly => "metadata",
        Checksums::None => "none",
    }
}
