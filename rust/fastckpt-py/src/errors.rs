//! Errors of the core as Python exceptions: the one place where that is decided.

use std::io;
use std::path::Path;

use fastckpt_core::error::{ChecksumMismatch, shortage};
use fastckpt_core::{Error, Phase};
use fastckpt_format::FormatError;
use fastckpt_format::index::Kind;
use fastckpt_format::legacy::LegacyError;
use fastckpt_format::pickle::PickleError;
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule};

/// Turns an error of the core into the exception for it.
pub(crate) fn to_python(py: Python<'_>, error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Io {
            phase,
            path,
            source,
        } => os_error(&source, &describe(phase, &source), &path),
        Error::NoSpace {
            phase,
            path,
            needed,
            free,
            source,
        } => {
            let words = system_words(&source);
            let text = format!("{words}: {}, while {phase}", shortage(needed, free));
            os_error(&source, &text, &path)
        }
        Error::CommitUnknown { path, source } => {
            let words = describe(Phase::SyncDirectory, &source);
            let text = format!("{words}: the file has its name, but may lose it in a power cut");
            let arguments = (errno(&source), text, path.as_os_str());
            typed(py, "CommitUnknownError", |class| class.call1(arguments))
        }
        Error::Format { path, source } => with_path(py, format_class(&source), &message, &path),
        Error::Record { path, .. } => with_path(py, "FormatError", &message, &path),
        Error::Legacy { path, source } => with_path(py, legacy_class(&source), &message, &path),
        Error::Pickle { path, source } => with_path(py, pickle_class(&source), &message, &path),
        Error::Checksum(mismatch) => checksum_error(py, &message, &mismatch),
        Error::OutOfMemory { .. } => PyMemoryError::new_err(message),
        Error::StorageChanged { .. } => PyRuntimeError::new_err(message),
        Error::Threads { source } => PyOSError::new_err((errno(&source), message)),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        _ => PyOSError::new_err(message),
    }
}

/// torch.jit.save compresses the code in its archives: no checkpoint, but nothing damaged either.
fn format_class(error: &FormatError) -> &'static str {
    match error {
        FormatError::Compressed {
            kind: Kind::TorchScript,
            ..
        } => "TorchScriptError",
        _ => "FormatError",
    }
}

/// An array that does not go with its bytes is refused by every unpickler, so executing it is no way out.
fn pickle_class(error: &PickleError) -> &'static str {
    match error {
        PickleError::Array { .. } => "FormatError",
        _ => "UnsafePickleError",
    }
}

fn legacy_class(error: &LegacyError) -> &'static str {
    match error {
        LegacyError::Pickle { source, .. } => pickle_class(source),
        LegacyError::NotPlain { .. } => "UnsafePickleError",
        _ => "FormatError",
    }
}

fn checksum_error(py: Python<'_>, message: &str, mismatch: &ChecksumMismatch) -> PyErr {
    typed(py, "ChecksumError", |class| {
        let details = PyDict::new(py);
        details.set_item("path", mismatch.path.as_os_str())?;
        details.set_item("record", &mismatch.record)?;
        details.set_item("tensors", &mismatch.tensors)?;
        details.set_item("offset", mismatch.offset)?;
        details.set_item("nbytes", mismatch.nbytes)?;
        details.set_item("expected", mismatch.expected)?;
        details.set_item("found", mismatch.found)?;
        class.call((message,), Some(&details))
    })
}

fn with_path(py: Python<'_>, class: &str, message: &str, path: &Path) -> PyErr {
    typed(py, class, |class| {
        let details = PyDict::new(py);
        details.set_item("path", path.as_os_str())?;
        class.call((message,), Some(&details))
    })
}

/// Makes an exception of `fastckpt.errors`; if that fails, the failure is what is raised.
fn typed<'py>(
    py: Python<'py>,
    class: &str,
    make: impl FnOnce(Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>>,
) -> PyErr {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    MODULE
        .get_or_try_init(py, || {
            PyModule::import(py, "fastckpt.errors").map(Bound::unbind)
        })
        .and_then(|module| module.bind(py).getattr(class))
        .and_then(make)
        .map_or_else(|failure| failure, PyErr::from_value)
}

/// `OSError(errno, text, filename)`: Python picks the subclass by the errno.
fn os_error(source: &io::Error, text: &str, path: &Path) -> PyErr {
    PyOSError::new_err((errno(source), text.to_owned(), path.as_os_str().to_owned()))
}

/// The system's words for it, and what was being done.
fn describe(phase: Phase, source: &io::Error) -> String {
    let text = match (phase, errno(source)) {
        // What the core says of anything that is no regular file.
        (Phase::Open, libc::EINVAL) => "Not a regular file".to_owned(),
        (Phase::Inspect, libc::EINVAL) => {
            "Not a regular file (to write there, open it and pass the file object)".to_owned()
        }
        _ => system_words(source),
    };
    format!("{text}, while {phase}")
}

/// What the error says, without Rust's "(os error 28)".
fn system_words(source: &io::Error) -> String {
    let text = source.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn errno(error: &io::Error) -> i32 {
    match error.kind() {
        io::ErrorKind::InvalidInput => libc::EINVAL,
        // What the core has found out by itself.
        io::ErrorKind::NotFound => libc::ENOENT,
        // What else went wrong has no number of its own.
        _ => error.raw_os_error().unwrap_or(libc::EIO),
    }
}
