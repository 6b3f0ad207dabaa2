//! Averages and comparisons of tensors.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use fastckpt_core::average::{Average, Averaged};
use fastckpt_core::compare::{self, Comparison, Pair, Place, Side};
use fastckpt_core::files::RealFiles;
use fastckpt_core::numeric::{self, Arithmetic};
use fastckpt_core::read::{Archive, PlainFile};
use fastckpt_core::views::View;
use fastckpt_format::pickle::Dtype;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::archive::PyArchive;
use crate::buffers::{PySpan, spans_to_python};
use crate::detach::{Raised, detached, detached_quietly};

/// (key of the storage, offset, shape, strides), all in elements.
type PyPlace = (String, u64, Vec<u64>, Vec<u64>);
/// (dtype, one place for each archive).
pub(crate) type PyAveraged = (String, Vec<PyPlace>);

/// Say what can be done with the elements of a dtype.
#[pyfunction]
pub(crate) fn arithmetic(dtype: &str) -> PyResult<&'static str> {
    Ok(match numeric::arithmetic(dtype_of(dtype)?) {
        Arithmetic::Floating => "floating",
        Arithmetic::Integer => "integer",
        Arithmetic::Opaque => "opaque",
    })
}

/// Round numbers to a floating dtype, once; return the bytes.
#[pyfunction]
pub(crate) fn encode_numbers<'py>(
    py: Python<'py>,
    dtype: &str,
    numbers: Vec<f64>,
) -> PyResult<Bound<'py, PyBytes>> {
    let dtype = dtype_of(dtype)?;
    if numeric::arithmetic(dtype) != Arithmetic::Floating {
        let message = format!("{} is no floating dtype", dtype.name());
        return Err(PyValueError::new_err(message));
    }
    let mut bytes = vec![0; numbers.len() * numeric::component_nbytes(dtype)];
    numeric::encode(dtype, &numbers, &mut bytes);
    Ok(PyBytes::new(py, &bytes))
}

/// Read the components of elements as numbers.
#[pyfunction]
pub(crate) fn decode_numbers(dtype: &str, data: &[u8]) -> PyResult<Vec<f64>> {
    let dtype = dtype_of(dtype)?;
    if numeric::arithmetic(dtype) == Arithmetic::Opaque {
        let message = format!("the elements of {} are no numbers", dtype.name());
        return Err(PyValueError::new_err(message));
    }
    let mut numbers = vec![0.0; data.len() / numeric::component_nbytes(dtype)];
    numeric::decode(dtype, data, &mut numbers);
    Ok(numbers)
}

/// The archives of an average and what is asked of them, as the core has it.
pub(crate) struct Inputs {
    archives: Vec<Py<PyArchive>>,
    weights: Vec<f64>,
    averaged: Vec<Averaged>,
}

impl Inputs {
    pub(crate) fn new(
        archives: Vec<Py<PyArchive>>,
        weights: Vec<f64>,
        averaged: Vec<PyAveraged>,
    ) -> PyResult<Self> {
        let total: f64 = weights.iter().sum();
        if weights.len() != archives.len() || !total.is_finite() || total == 0.0 {
            let message = "there is a weight for each archive, and their sum is finite and not 0";
            return Err(PyValueError::new_err(message));
        }
        let averaged: Vec<_> = averaged
            .into_iter()
            .map(averaged_of)
            .collect::<PyResult<_>>()?;
        let same_size = |averaged: &Averaged| {
            let sizes: Vec<_> = averaged
                .places
                .iter()
                .map(|(_, view)| view.numel())
                .collect();
            sizes.len() == archives.len() && sizes.iter().all(|size| *size == sizes[0])
        };
        if !averaged.iter().all(same_size) {
            let message = "there is a place in each archive, and all have as many elements";
            return Err(PyValueError::new_err(message));
        }
        Ok(Self {
            archives,
            weights,
            averaged,
        })
    }

    pub(crate) fn archives(&self) -> Vec<&Archive> {
        self.archives
            .iter()
            .map(|archive| archive.get().core())
            .collect()
    }

    pub(crate) fn plan<'a>(
        &self,
        py: Python<'_>,
        archives: &[&'a Archive],
    ) -> PyResult<Average<'a>> {
        detached_quietly(py, || Average::new(archives, &self.weights, &self.averaged))
    }
}

/// Average tensors into private memory.
#[pyfunction]
#[pyo3(signature = (archives, weights, tensors, *, threads=None, progress=None))]
pub(crate) fn average(
    py: Python<'_>,
    archives: Vec<Py<PyArchive>>,
    weights: Vec<f64>,
    tensors: Vec<PyAveraged>,
    threads: Option<NonZeroUsize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Py<PySpan>>> {
    let inputs = Inputs::new(archives, weights, tensors)?;
    let archives = inputs.archives();
    let average = inputs.plan(py, &archives)?;
    let spans = detached(py, progress, &Raised::default(), |observer| {
        average.to_memory(threads, observer)
    })?;
    spans_to_python(py, spans)
}

/// A file of another format, of which the caller knows what lies where.
#[pyclass(frozen, name = "PlainFile", module = "fastckpt._native")]
pub(crate) struct PyPlainFile(PlainFile);

#[pymethods]
impl PyPlainFile {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached_quietly(py, || PlainFile::open(&RealFiles, &path)).map(Self)
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes()
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        nbytes: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = detached_quietly(py, || self.0.read(offset, nbytes))?;
        Ok(PyBytes::new(py, &bytes))
    }
}

/// What comparing two tensors gave.
#[pyclass(frozen, name = "Comparison", module = "fastckpt._native")]
pub(crate) struct PyComparison(Comparison);

#[pymethods]
impl PyComparison {
    #[getter]
    fn differing(&self) -> u64 {
        self.0.differing
    }

    #[getter]
    fn non_finite(&self) -> u64 {
        self.0.non_finite
    }

    #[getter]
    fn finite(&self) -> u64 {
        self.0.finite
    }

    #[getter]
    fn max_abs(&self) -> f64 {
        self.0.max_abs
    }

    #[getter]
    fn sum_abs(&self) -> f64 {
        self.0.sum_abs
    }

    #[getter]
    fn sum_squares(&self) -> f64 {
        self.0.sum_squares
    }

    #[getter]
    fn reference_squares(&self) -> f64 {
        self.0.reference_squares
    }

    #[getter]
    fn was_read(&self) -> bool {
        self.0.was_read
    }

    #[getter]
    fn was_checked(&self) -> (bool, bool) {
        self.0.was_checked.into()
    }
}

/// Where a tensor lies: in a record, or at a byte of a plain file.
#[derive(FromPyObject)]
pub(crate) enum PyAnyPlace {
    Record(PyPlace),
    At(u64),
}

/// (dtype in the one file and in the other, number of elements, where they are in both).
type PyPair = (String, String, u64, PyAnyPlace, PyAnyPlace);

/// Compare tensors of two files.
#[pyfunction]
#[pyo3(signature = (a, b, pairs, *, threads=None, progress=None))]
pub(crate) fn compare_tensors(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    pairs: Vec<PyPair>,
    threads: Option<NonZeroUsize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<PyComparison>> {
    let (left, right) = (side_of(a)?, side_of(b)?);
    let pairs: Vec<_> = pairs
        .into_iter()
        .map(|pair| pair_of(pair, left, right))
        .collect::<PyResult<_>>()?;
    let results = detached(py, progress, &Raised::default(), |observer| {
        compare::compare(left, right, &pairs, threads, observer)
    })?;
    Ok(results.into_iter().map(PyComparison).collect())
}

fn side_of<'a>(file: &'a Bound<'_, PyAny>) -> PyResult<Side<'a>> {
    if let Ok(archive) = file.cast::<PyArchive>() {
        return Ok(Side::Archive(archive.get().core()));
    }
    match file.cast::<PyPlainFile>() {
        Ok(plain) => Ok(Side::Plain(&plain.get().0)),
        Err(_other) => Err(PyTypeError::new_err("an Archive or a PlainFile")),
    }
}

fn pair_of(
    (dtype_a, dtype_b, numel, a, b): PyPair,
    left: Side<'_>,
    right: Side<'_>,
) -> PyResult<Pair> {
    let dtypes = [dtype_of(&dtype_a)?, dtype_of(&dtype_b)?];
    let is_opaque = |dtype| numeric::arithmetic(dtype) == Arithmetic::Opaque;
    if dtypes[0] != dtypes[1] && dtypes.into_iter().any(is_opaque) {
        return Err(PyValueError::new_err(format!(
            "{dtype_a} and {dtype_b} have no numbers that could be compared"
        )));
    }
    Ok(Pair {
        dtypes,
        numel,
        a: place_in(a, left, numel, dtypes[0])?,
        b: place_in(b, right, numel, dtypes[1])?,
    })
}

fn place_in(place: PyAnyPlace, side: Side<'_>, numel: u64, dtype: Dtype) -> PyResult<Place> {
    match (place, side) {
        (PyAnyPlace::Record(place), Side::Archive(_)) => {
            let (key, view) = place_of(place);
            if view.numel() != Some(numel) {
                return Err(PyValueError::new_err("a tensor of another size"));
            }
            Ok(Place::Record(key, view))
        }
        (PyAnyPlace::At(start), Side::Plain(file)) => {
            let end = numel
                .checked_mul(dtype.itemsize())
                .and_then(|nbytes| nbytes.checked_add(start));
            if end.is_none_or(|end| end > file.nbytes()) {
                return Err(PyValueError::new_err("a tensor beyond the end of the file"));
            }
            Ok(Place::At(start))
        }
        _ => Err(PyTypeError::new_err(
            "archives have records, plain files have offsets",
        )),
    }
}

fn averaged_of((dtype, places): PyAveraged) -> PyResult<Averaged> {
    Ok(Averaged {
        dtype: dtype_of(&dtype)?,
        places: places.into_iter().map(place_of).collect(),
    })
}

fn place_of((key, offset, size, stride): PyPlace) -> (String, View) {
    let view = View {
        offset,
        size,
        stride,
    };
    (key, view)
}

fn dtype_of(name: &str) -> PyResult<Dtype> {
    Dtype::from_name(name).ok_or_else(|| PyValueError::new_err(format!("no dtype torch.{name}")))
}
