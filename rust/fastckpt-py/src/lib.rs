//! `fastckpt._native`: the core, as Python sees it. `python/fastckpt/_native.pyi` describes it.
//!
//! Nothing is decided here. Each core verb has a thin wrapper; [`detach`] lets go of the GIL and
//! lets Ctrl-C through, [`errors`] turns errors into exceptions, [`buffers`] is the one place
//! where memory crosses (and holds all of the crate's `unsafe`).
#![deny(unsafe_code)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "PyO3 hands arguments over by value"
)]

mod archive;
mod buffers;
mod build;
mod commit;
mod detach;
mod errors;
mod graph;
mod held;
mod legacy;
mod numbers;
mod numpy;
mod objects;
mod outline;
mod repair;
mod sources;
mod stagers;
mod stale;
mod verify;

/// The native module. Without `gil_used` it would claim to be safe without the GIL, which nobody has tested:
/// so free-threaded Python switches the GIL on when it imports it.
#[pyo3::pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::archive::{PyArchive, PySaveMark};
    #[pymodule_export]
    use crate::buffers::{PyMemory, PySpan};
    #[pymodule_export]
    use crate::commit::{PyCommit, PyCopied, PyWritten};
    #[pymodule_export]
    use crate::graph::{PyGraph, PyStorageInfo};
    #[pymodule_export]
    use crate::legacy::PyLegacyFile;
    #[pymodule_export]
    use crate::numbers::{
        PyComparison, PyPlainFile, arithmetic, average, compare_tensors, decode_numbers,
        encode_numbers,
    };
    #[pymodule_export]
    use crate::outline::{PyArrayInfo, PyOpaque, PyTensorInfo};
    #[pymodule_export]
    use crate::repair::{PyLost, PySalvaged, salvage};
    #[pymodule_export]
    use crate::sources::{archive_nbytes, write_archive_to};
    #[pymodule_export]
    use crate::stale::{is_local, remove_stale};
    #[pymodule_export]
    use crate::verify::{PyDamage, PyFileReport, verify_file};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
