//! Saving: `Commit`.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastckpt_core::commit::{
    Commit, Copied, CopyOptions, FileIdentity, Judged, Place, Publication,
};
use fastckpt_core::files::{RealFiles, or_here};
use fastckpt_core::write::{
    ArchivePlan, NO_STEP, SaveStager, StorageSource, WriteOptions, Written,
};
use fastckpt_format::archive::SaveMark;
use fastckpt_format::layout::Alignment;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;

use crate::archive::PyArchive;
use crate::detach::{Raised, detached, detached_holding, detached_quietly};
use crate::numbers::{Inputs, PyAveraged};
use crate::sources::{Sources, root_of, value_error};
use crate::verify::PyFileReport;

/// Files that are written under temporary names and made visible in the order asked for.
#[pyclass(name = "Commit", module = "fastckpt._native")]
pub(crate) struct PyCommit {
    // None once it has been left.
    commit: Option<Commit>,
}

#[pymethods]
impl PyCommit {
    #[new]
    #[pyo3(signature = (*, sync=true))]
    fn new(sync: bool) -> Self {
        Self {
            commit: Some(Commit::new(Arc::new(RealFiles), sync)),
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &mut self,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) {
        self.abort();
    }

    fn abort(&mut self) {
        self.commit = None;
    }

    #[pyo3(signature = (
        path, pickle, storages, *, nbytes=None, alignment=64, shards=0, save_id=0, stager=None, threads=None,
        progress=None, chunk_nbytes=None, direct=None
    ))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of a Python function"
    )]
    fn write_archive(
        &mut self,
        py: Python<'_>,
        path: PathBuf,
        pickle: Vec<u8>,
        storages: Vec<Bound<'_, PyAny>>,
        nbytes: Option<Vec<u64>>,
        alignment: u64,
        shards: u32,
        save_id: u64,
        stager: Option<&Bound<'_, PyAny>>,
        threads: Option<NonZeroUsize>,
        progress: Option<Py<PyAny>>,
        chunk_nbytes: Option<NonZeroUsize>,
        direct: Option<bool>,
    ) -> PyResult<PyWritten> {
        let root = root_of(&path)?;
        let raised = Raised::default();
        let sources = Sources::new(&storages, nbytes.as_deref(), stager, &raised)?;
        let plan = sources.plan(&root, pickle, alignment, SaveMark { shards, save_id })?;
        let options = WriteOptions {
            threads,
            chunk_nbytes,
            direct,
        };
        let commit = self.open()?;
        let Sources {
            held, mut stager, ..
        } = sources;
        detached_holding(py, held, progress, &raised, |observer| {
            let stager = stager.as_mut().map(|stager| stager as &mut dyn SaveStager);
            commit.write_archive(&path, &plan, &options, observer, stager)
        })
        .map(PyWritten)
    }

    #[pyo3(signature = (path, pickle, archives, weights, tensors, *, threads=None, progress=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of a Python function"
    )]
    fn write_average(
        &mut self,
        py: Python<'_>,
        path: PathBuf,
        pickle: Vec<u8>,
        archives: Vec<Py<PyArchive>>,
        weights: Vec<f64>,
        tensors: Vec<PyAveraged>,
        threads: Option<NonZeroUsize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<PyWritten> {
        let root = root_of(&path)?;
        let inputs = Inputs::new(archives, weights, tensors)?;
        let archives = inputs.archives();
        let average = inputs.plan(py, &archives)?;
        let staged = |nbytes| StorageSource::Staged { nbytes };
        let storages: Vec<_> = average.nbytes().into_iter().map(staged).collect();
        let plan = ArchivePlan::new(&root, pickle, &storages, Alignment::TORCH_DEFAULT, NO_STEP)
            .map_err(|error| value_error(&error))?;
        let options = WriteOptions {
            threads,
            ..WriteOptions::default()
        };
        let commit = self.open()?;
        detached(py, progress, &Raised::default(), |observer| {
            average.run(threads, observer, |maker, observer| {
                commit.write_made_archive(&path, &plan, &options, observer, maker)
            })
        })
        .map(PyWritten)
    }

    fn require_space(&mut self, py: Python<'_>, directory: PathBuf, nbytes: u64) -> PyResult<()> {
        let commit = self.open()?;
        detached_quietly(py, || commit.require_space(&directory, nbytes))
    }

    fn keep(&mut self, py: Python<'_>, path: PathBuf, save_id: u64) -> PyResult<bool> {
        let commit = self.open()?;
        detached_quietly(py, || commit.keep(&path, save_id))
    }

    fn link(&mut self, py: Python<'_>, path: PathBuf, name: OsString) -> PyResult<bool> {
        let commit = self.open()?;
        detached(py, None, &Raised::default(), |observer| {
            commit.link(&path, &name, observer)
        })
    }

    fn sync_directory(&mut self, py: Python<'_>, directory: PathBuf) -> PyResult<()> {
        let commit = self.open()?;
        detached(py, None, &Raised::default(), |observer| {
            commit.sync_directory(&directory, observer)
        })
    }

    #[pyo3(signature = (directory, names, *, after_sync=true))]
    fn discard(
        &mut self,
        py: Python<'_>,
        directory: PathBuf,
        names: Vec<(OsString, u64, u64)>,
        after_sync: bool,
    ) -> PyResult<()> {
        let commit = self.open()?;
        let judged = |(name, device, inode)| Judged {
            name,
            device,
            inode,
        };
        let judged: Vec<_> = names.into_iter().map(judged).collect();
        detached(py, None, &Raised::default(), |observer| {
            commit.discard(&directory, &judged, after_sync, observer)
        })
    }

    fn create_directory(&mut self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let commit = self.open()?;
        detached(py, None, &Raised::default(), |observer| {
            commit.create_directory(&path, observer)
        })
    }

    fn write_bytes(&mut self, py: Python<'_>, path: PathBuf, data: Vec<u8>) -> PyResult<()> {
        let commit = self.open()?;
        detached(py, None, &Raised::default(), |observer| {
            commit.write_bytes(&path, &data, observer)
        })
    }

    #[allow(
        clippy::needless_pass_by_value,
        reason = "what PyO3 extracts from a path-like is owned"
    )]
    fn temporary_path(&mut self, path: PathBuf) -> PyResult<OsString> {
        match self.open()?.temporary_path(&path) {
            Some(temporary) => Ok(temporary.into_os_string()),
            None => Err(PyValueError::new_err(format!(
                "no file is waiting to be published as {}",
                path.display()
            ))),
        }
    }

    fn write_bytes_like(
        &mut self,
        py: Python<'_>,
        path: PathBuf,
        data: Vec<u8>,
        original: PathBuf,
    ) -> PyResult<Option<String>> {
        let commit = self.open()?;
        detached(py, None, &Raised::default(), |observer| {
            commit.write_bytes_like(&path, &data, &original, observer)
        })
    }

    #[pyo3(signature = (path, source, *, verify=true, threads=None, direct=None, progress=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of a Python function"
    )]
    fn copy_file(
        &mut self,
        py: Python<'_>,
        path: PathBuf,
        source: PathBuf,
        verify: bool,
        threads: Option<NonZeroUsize>,
        direct: Option<bool>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<PyCopied> {
        let options = CopyOptions {
            verify,
            threads,
            direct,
        };
        let commit = self.open()?;
        detached(py, progress, &Raised::default(), |observer| {
            commit.copy_file(&path, &source, &options, observer)
        })
        .map(PyCopied)
    }

    #[pyo3(signature = (paths, *, replace=true, unchanged=None))]
    fn publish(
        &mut self,
        py: Python<'_>,
        paths: Vec<PathBuf>,
        replace: bool,
        unchanged: Option<Vec<JudgedFile>>,
    ) -> PyResult<()> {
        let commit = self.open()?;
        let known_unlocked = commit.unlocked().len();
        let unchanged: Vec<_> = unchanged.into_iter().flatten().map(as_identity).collect();
        detached(py, None, &Raised::default(), |observer| {
            let paths: Vec<_> = paths.iter().map(PathBuf::as_path).collect();
            let publication = Publication {
                paths: &paths,
                place: if replace { Place::Any } else { Place::Free },
                unchanged: &unchanged,
            };
            commit.publish_as(&publication, observer)
        })?;
        for directory in commit.unlocked().iter().skip(known_unlocked) {
            warn_of_lock(py, directory)?;
        }
        Ok(())
    }
}

impl PyCommit {
    fn open(&mut self) -> PyResult<&mut Commit> {
        self.commit
            .as_mut()
            .ok_or_else(|| PyRuntimeError::new_err("this commit has ended"))
    }
}

/// A file with device, inode, size in bytes and time of its last change in nanoseconds.
type JudgedFile = (PathBuf, (u64, u64, u64, i64));

fn as_identity(
    (path, (device, inode, nbytes, modified_ns)): JudgedFile,
) -> (PathBuf, FileIdentity) {
    let identity = FileIdentity {
        device,
        inode,
        nbytes,
        modified_ns,
    };
    (path, identity)
}

/// A save never fails because of a lock; that it did without is told where it is not lost.
fn warn_of_lock(py: Python<'_>, directory: &Path) -> PyResult<()> {
    let logger = PyModule::import(py, intern!(py, "logging"))?
        .call_method1(intern!(py, "getLogger"), ("fastckpt",))?;
    let message = "Saved in %s without its lock, which another process that deletes checkpoints there \
                   (gc, prune, copy) did not give up: look whether it is stopped";
    logger.call_method1(intern!(py, "warning"), (message, or_here(directory)))?;
    Ok(())
}

/// What became of a copy.
#[pyclass(frozen, name = "Copied", module = "fastckpt._native")]
pub(crate) struct PyCopied(Copied);

#[pymethods]
impl PyCopied {
    #[getter]
    fn report(&self) -> PyFileReport {
        PyFileReport(self.0.report.clone())
    }

    #[getter]
    fn unkept(&self) -> Option<&str> {
        self.0.unkept.as_deref()
    }
}

/// What is known of an archive once it is written.
#[pyclass(frozen, name = "Written", module = "fastckpt._native")]
pub(crate) struct PyWritten(Written);

#[pymethods]
impl PyWritten {
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes
    }

    #[getter]
    fn content_hash(&self) -> &str {
        &self.0.content_hash
    }
}
