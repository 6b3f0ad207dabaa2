//! Temporary files that dead processes left behind, on request; and where their locks are seen.

use std::ffi::OsString;
use std::path::PathBuf;

use fastckpt_core::files::{Files, RealFiles};
use fastckpt_core::{Error, Phase, stale};
use pyo3::prelude::*;

use crate::detach::detached_quietly;

/// Remove the temporary files of dead processes from a directory; return their names.
#[pyfunction]
#[pyo3(signature = (directory, *, dry_run=false))]
pub(crate) fn remove_stale(
    py: Python<'_>,
    directory: PathBuf,
    dry_run: bool,
) -> PyResult<Vec<OsString>> {
    detached_quietly(py, || {
        let opened = RealFiles
            .open_directory(&directory)
            .map_err(|source| Error::Io {
                phase: Phase::OpenDirectory,
                path: directory.clone(),
                source,
            })?;
        let act = if dry_run {
            stale::list_stale
        } else {
            stale::remove_stale
        };
        act(&RealFiles, &directory, &*opened)
    })
}

/// Say whether only this machine reaches the file system of a directory.
#[pyfunction]
pub(crate) fn is_local(py: Python<'_>, directory: PathBuf) -> PyResult<bool> {
    detached_quietly(py, || {
        RealFiles
            .open_directory(&directory)
            .and_then(|opened| opened.is_local())
            .map_err(Error::io(Phase::OpenDirectory, directory))
    })
}
