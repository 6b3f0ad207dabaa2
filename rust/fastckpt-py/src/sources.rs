//! What an archive is written from, and archives that are written in sequence.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use fastckpt_core::job::Stop;
use fastckpt_core::write::{
    self, ArchivePlan, NO_STEP, SaveStager, Sink, StorageSource, WriteOptions,
};
use fastckpt_format::FormatError;
use fastckpt_format::archive::{DEFAULT_ROOT, SaveMark, root_folder};
use fastckpt_format::layout::Alignment;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::buffers::HeldStorage;
use crate::detach::{Raised, detached_holding};
use crate::held::{HeldStorages, require_size};
use crate::stagers::PyStager;

/// Say how large the archive would be that `Commit.write_archive` writes for a path.
#[pyfunction]
#[pyo3(signature = (path, pickle_nbytes, storage_nbytes, *, alignment=64))]
pub(crate) fn archive_nbytes(
    path: PathBuf,
    pickle_nbytes: u64,
    storage_nbytes: Vec<u64>,
    alignment: u64,
) -> PyResult<u64> {
    let root = root_of(&path)?;
    Alignment::new(alignment)
        .and_then(|alignment| {
            write::archive_nbytes(&root, pickle_nbytes, &storage_nbytes, alignment)
        })
        .map_err(|error| value_error(&error))
}

/// The root folder of the archive at a path.
pub(crate) fn root_of(path: &Path) -> PyResult<String> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    root_folder(&name, path.as_os_str().is_ascii()).map_err(|error| value_error(&error))
}

/// Write one archive in sequence through a Python callable; return its size.
#[pyfunction]
#[pyo3(signature = (
    write, pickle, storages, *, nbytes=None, alignment=64, stager=None, threads=None, progress=None
))]
#[allow(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
pub(crate) fn write_archive_to(
    py: Python<'_>,
    write: Py<PyAny>,
    pickle: Vec<u8>,
    storages: Vec<Bound<'_, PyAny>>,
    nbytes: Option<Vec<u64>>,
    alignment: u64,
    stager: Option<&Bound<'_, PyAny>>,
    threads: Option<NonZeroUsize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<u64> {
    let raised = Raised::default();
    let sources = Sources::new(&storages, nbytes.as_deref(), stager, &raised)?;
    let plan = sources.plan(DEFAULT_ROOT, pickle, alignment, NO_STEP)?;
    let Sources {
        held, mut stager, ..
    } = sources;
    let options = WriteOptions {
        threads,
        ..WriteOptions::default()
    };
    let mut sink = CallableSink {
        write,
        raised: raised.clone(),
    };
    detached_holding(py, held, progress, &raised, |observer| {
        let stager = stager.as_mut().map(|stager| stager as &mut dyn SaveStager);
        write::write_to_sink(&mut sink, &plan, &options, observer, stager)
    })?;
    Ok(plan.nbytes())
}

/// The storages of one archive, held until it is written.
pub(crate) struct Sources {
    pub(crate) held: HeldStorages,
    storages: Vec<StorageSource>,
    pub(crate) stager: Option<PyStager>,
}

impl Sources {
    pub(crate) fn new(
        storages: &[Bound<'_, PyAny>],
        pickled_nbytes: Option<&[u64]>,
        stager: Option<&Bound<'_, PyAny>>,
        raised: &Raised,
    ) -> PyResult<Self> {
        let positions: Vec<usize> = match stager {
            Some(stager) => stager.getattr(intern!(stager.py(), "staged"))?.extract()?,
            None => Vec::new(),
        };
        let mut held = HeldStorages::default();
        let mut sources = Vec::with_capacity(storages.len());
        let mut is_staged = vec![false; storages.len()];
        for position in positions {
            *is_staged
                .get_mut(position)
                .ok_or_else(|| PyValueError::new_err("no such storage to stage"))? = true;
        }
        for (number, (storage, staged)) in storages.iter().zip(is_staged).enumerate() {
            let source = if staged {
                let nbytes = storage
                    .call_method0(intern!(storage.py(), "nbytes"))?
                    .extract()?;
                held.skip(nbytes);
                StorageSource::Staged { nbytes }
            } else {
                let storage = HeldStorage::new(storage)?;
                let memory = storage.memory();
                held.push(number, storage);
                StorageSource::Memory(memory)
            };
            require_size(number, source.nbytes(), pickled_nbytes)?;
            sources.push(source);
        }
        let stager = stager
            .map(|stager| PyStager::new(stager, raised))
            .transpose()?;
        Ok(Self {
            held,
            storages: sources,
            stager,
        })
    }

    pub(crate) fn plan(
        &self,
        root: &str,
        pickle: Vec<u8>,
        alignment: u64,
        mark: SaveMark,
    ) -> PyResult<ArchivePlan> {
        Alignment::new(alignment)
            .and_then(|alignment| ArchivePlan::new(root, pickle, &self.storages, alignment, mark))
            .map_err(|error| value_error(&error))
    }
}

struct CallableSink {
    write: Py<PyAny>,
    raised: Raised,
}

impl Sink for CallableSink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.raised.catch(|py| {
            let bytes = pyo3::types::PyBytes::new(py, bytes);
            self.write.call1(py, (PyMemoryView::from(&bytes)?,))?;
            Ok(())
        })
    }
}

pub(crate) fn value_error(error: &FormatError) -> PyErr {
    PyValueError::new_err(error.to_string())
}
