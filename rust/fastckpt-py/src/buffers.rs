//! Where memory crosses between Python and the core. All of the crate's `unsafe` is here.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};
use std::os::raw::c_int;
use std::sync::Arc;

use fastckpt_core::mapping::Mapping;
use fastckpt_core::memory::Memory;
use fastckpt_core::read::Span;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;

/// Private memory of the core, writable, freed when its last user lets go of it.
#[pyclass(frozen, name = "Memory", module = "fastckpt._native")]
pub(crate) struct PyMemory(Arc<Mapping>);

#[pymethods]
impl PyMemory {
    fn __len__(&self) -> usize {
        self.0.nbytes()
    }

    /// # Safety
    /// `view` is a buffer structure for this call to fill, as Python's buffer protocol has it.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let mapping = &slf.get().0;
        let nbytes = isize::try_from(mapping.nbytes())?;
        // SAFETY: the memory lives as long as this object, which the view keeps alive. It is
        // private to its users, who may write to it.
        let result = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                mapping.address().cast(),
                nbytes,
                0,
                flags,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// The bytes of one record.
#[pyclass(frozen, name = "Span", module = "fastckpt._native")]
pub(crate) struct PySpan {
    #[pyo3(get)]
    memory: Py<PyMemory>,
    #[pyo3(get)]
    offset: usize,
    #[pyo3(get)]
    nbytes: usize,
}

/// Hands spans over to Python: one `Memory` for each piece of memory, however many spans lie in it.
pub(crate) fn spans_to_python(py: Python<'_>, spans: Vec<Span>) -> PyResult<Vec<Py<PySpan>>> {
    let mut last: Option<(Arc<Mapping>, Py<PyMemory>)> = None;
    spans
        .into_iter()
        .map(|span| {
            let memory = match &last {
                Some((mapping, memory)) if Arc::ptr_eq(mapping, &span.memory) => {
                    memory.clone_ref(py)
                }
                _ => {
                    let memory = Py::new(py, PyMemory(Arc::clone(&span.memory)))?;
                    last = Some((Arc::clone(&span.memory), memory.clone_ref(py)));
                    memory
                }
            };
            Py::new(
                py,
                PySpan {
                    memory,
                    offset: span.offset,
                    nbytes: span.nbytes,
                },
            )
        })
        .collect()
}

impl PySpan {
    pub(crate) fn memory(&self) -> &Py<PyMemory> {
        &self.memory
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) fn nbytes(&self) -> usize {
        self.nbytes
    }
}

/// A torch storage in host memory that is held for the length of a job.
pub(crate) struct HeldStorage {
    storage: Py<PyAny>,
    memory: Memory,
    address: usize,
}

impl HeldStorage {
    /// Takes hold of a `torch.UntypedStorage`. The only place where an address of torch's is read.
    pub(crate) fn new(storage: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = storage.py();
        let device: String = storage
            .getattr(intern!(py, "device"))?
            .getattr(intern!(py, "type"))?
            .extract()?;
        if device != "cpu" {
            return Err(PyValueError::new_err(format!(
                "a storage on {device} has no address in host memory"
            )));
        }
        let (address, nbytes) = place_of(storage)?;
        if address == 0 && nbytes > 0 {
            return Err(PyValueError::new_err(format!(
                "a storage of {nbytes} bytes has no memory"
            )));
        }
        // SAFETY: torch says that the storage has `nbytes` bytes there, and keeps them as long as
        // the storage lives, which `storage` sees to. (A storage that somebody resizes during the
        // job breaks this, as it would break torch.save: `held.rs` looks for that.)
        let memory = unsafe { Memory::new(address as *mut u8, nbytes) };
        Ok(Self {
            storage: storage.clone().unbind(),
            memory,
            address,
        })
    }

    pub(crate) fn memory(&self) -> Memory {
        self.memory
    }

    /// Whether it has the size and the place that it had at first.
    pub(crate) fn is_unchanged(&self, py: Python<'_>) -> PyResult<bool> {
        let place = place_of(self.storage.bind(py))?;
        Ok(place == (self.address, self.memory.nbytes()))
    }
}

/// Where torch says that a storage is, and its size in bytes.
fn place_of(storage: &Bound<'_, PyAny>) -> PyResult<(usize, usize)> {
    let py = storage.py();
    let nbytes = storage.call_method0(intern!(py, "nbytes"))?.extract()?;
    let address = storage.call_method0(intern!(py, "data_ptr"))?.extract()?;
    Ok((address, nbytes))
}

/// A descriptor that the caller keeps open during the call.
pub(crate) fn borrow_fd<'a>(fd: RawFd) -> PyResult<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is no file descriptor")));
    }
    // SAFETY: not -1. The caller, `_archive/load.py`, holds the file object that the descriptor belongs to
    // and it is duplicated at once; a closed one gives EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
