//! The one way into the core for calls that take long: without the GIL, with Ctrl-C.

use std::sync::{Arc, Mutex, PoisonError};

use fastckpt_core::job::{Observer, Stop};
use fastckpt_core::{Error, Result};
use pyo3::prelude::*;

use crate::errors;
use crate::held::HeldStorages;

/// What Python code raised while the core was calling it: the core knows only that it has to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    /// Calls back into Python; what it raises is kept, and stops the job.
    pub(crate) fn catch<T>(
        &self,
        call: impl FnOnce(Python<'_>) -> PyResult<T>,
    ) -> std::result::Result<T, Stop> {
        Python::attach(call).map_err(|error| {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(error);
            Stop
        })
    }

    fn take(&self) -> Option<PyErr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Lets signal handlers run, looks after the storages that are read, and reports progress.
pub(crate) struct Watcher {
    progress: Option<Py<PyAny>>,
    raised: Raised,
    storages: HeldStorages,
}

impl Observer for Watcher {
    fn poll(&mut self, done_nbytes: u64, total_nbytes: u64) -> std::result::Result<(), Stop> {
        self.raised.catch(|py| {
            py.check_signals()?;
            self.storages.check(py, done_nbytes, total_nbytes)?;
            if let Some(progress) = &self.progress {
                progress.call1(py, (done_nbytes, total_nbytes))?;
            }
            Ok(())
        })
    }
}

/// Runs a core verb without the GIL. `progress` is a Python callable of (bytes done, bytes in all).
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    raised: &Raised,
    call: impl FnOnce(&mut dyn Observer) -> Result<T> + Send,
) -> PyResult<T> {
    detached_holding(py, HeldStorages::default(), progress, raised, call)
}

/// The same for a verb that reads storages: they are held until it has ended.
pub(crate) fn detached_holding<T: Send>(
    py: Python<'_>,
    storages: HeldStorages,
    progress: Option<Py<PyAny>>,
    raised: &Raised,
    call: impl FnOnce(&mut dyn Observer) -> Result<T> + Send,
) -> PyResult<T> {
    let mut watcher = Watcher {
        progress,
        raised: raised.clone(),
        storages,
    };
    py.detach(|| call(&mut watcher))
        .map_err(|error| match (error, raised.take()) {
            (Error::Interrupted, Some(raised)) => raised,
            (error, _) => errors::to_python(py, error),
        })
}

/// The same for a verb that has nothing to report and takes no time worth a progress bar.
pub(crate) fn detached_quietly<T: Send>(
    py: Python<'_>,
    call: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    py.detach(call)
        .map_err(|error| errors::to_python(py, error))
}
