//! How far tensors of two files are from each other.
//!
//! Records with the same size and CRC hold the same bytes, and are not read if their dtypes are the same. All others are decoded to
//! float64 and compared piece by piece; the figures of the pieces are put together in their order, so
//! that they do not depend on the number of threads.

mod converted;

use std::num::NonZeroUsize;
use std::sync::Mutex;

use fastckpt_format::pickle::Dtype;

use crate::elements::{Elements, Tensors, buffer_for};
use crate::error::Result;
use crate::job::{Job, Observer, default_threads, lock};
use crate::mapping::Mapping;
use crate::numeric::{self, Arithmetic};
use crate::read::{Archive, Inspection, PlainFile, Selection};
use crate::source::CHUNK_NBYTES;
use crate::views::View;

/// Components that are compared at a time: three arrays of float64 of this length fit the first-level
/// cache (32 KiB).
const TILE: usize = 1024;

/// Sums that are kept apart: additions need not wait for each other, and the compiler may do some at
/// once.
const LANES: usize = 8;

/// One of the two files.
#[derive(Debug, Clone, Copy)]
pub enum Side<'a> {
    /// Tensors are views of its records.
    Archive(&'a Archive),
    /// Tensors lie anywhere in it.
    Plain(&'a PlainFile),
}

/// Where a tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the record `data/<key>` of an archive.
    Record(String, View),
    /// In a plain file, from this byte on, which the caller has found to be in it with all that follow.
    At(u64),
}

/// Two tensors of one shape. Where their dtypes differ, both have an arithmetic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Their dtypes.
    pub dtypes: [Dtype; 2],
    /// Elements that each has.
    pub numel: u64,
    /// Where the one is that changes are counted from.
    pub a: Place,
    /// Where the other is.
    pub b: Place,
}

/// What comparing two tensors gave.
///
/// The figures are those of elements that are finite on both sides; of complex ones the modulus.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Comparison {
    /// Elements whose bytes differ; of two dtypes, whose numbers do.
    pub differing: u64,
    /// Elements that differ, and of which one at least is infinite or NaN.
    pub non_finite: u64,
    /// Elements that are finite on both sides.
    pub finite: u64,
    /// The largest absolute change.
    pub max_abs: f64,
    /// The sum of all absolute changes.
    pub sum_abs: f64,
    /// The sum of their squares.
    pub sum_squares: f64,
    /// The sum of the squares of the elements of the first tensor.
    pub reference_squares: f64,
    /// Whether the elements were read at all: not where size and CRC are the same.
    pub was_read: bool,
    /// Whether each side's bytes were compared with a CRC.
    pub was_checked: [bool; 2],
}

/// Compares pairs of tensors; the result has their order.
///
/// # Errors
/// Where a tensor cannot be read or, as far as its record is read as a whole, is not what was written.
///
/// # Panics
/// Where a place is not one of its file's kind, the tensors of a pair have other sizes than it says, or
/// have two dtypes of which one has no arithmetic.
pub fn compare(
    a: Side<'_>,
    b: Side<'_>,
    pairs: &[Pair],
    threads: Option<NonZeroUsize>,
    observer: &mut dyn Observer,
) -> Result<Vec<Comparison>> {
    let (mut sides, mut results) = (Vec::new(), Vec::new());
    let mut files = [File::new(a), File::new(b)];
    for pair in pairs {
        let [dtype_a, dtype_b] = pair.dtypes;
        let both = [
            files[0].locate(&pair.a, pair.numel, dtype_a)?,
            files[1].locate(&pair.b, pair.numel, dtype_b)?,
        ];
        for (elements, dtype) in both.iter().zip(pair.dtypes) {
            let expected = pair.numel.saturating_mul(dtype.itemsize());
            assert_eq!(elements.nbytes, expected, "tensors of one size");
        }
        results.push(Comparison {
            was_read: dtype_a != dtype_b || !are_same_record([a, b], &both),
            was_checked: [true, true],
            ..Comparison::default()
        });
        sides.push(both);
    }
    let selections = [0, 1].map(|side| inspected([a, b][side], side, &mut sides, &mut results));
    let inspections = [(a, &selections[0]), (b, &selections[1])].map(|(side, selection)| {
        selection.as_ref().and_then(|selection| match side {
            Side::Archive(archive) => Some(Inspection::new(archive.index(), selection, true)),
            Side::Plain(_) => None,
        })
    });
    let work = Work {
        pairs,
        sides: &sides,
        inspections: &inspections,
    };
    work.run(&mut results, threads, observer)?;
    for (side, inspection) in [a, b].into_iter().zip(inspections) {
        if let (Side::Archive(archive), Some(inspection)) = (side, inspection) {
            archive.conclude(inspection.finish())?;
        }
    }
    Ok(results)
}

/// One of the two files, with what is known of its tensors.
enum File<'a> {
    Archive(Tensors<'a>),
    Plain(&'a PlainFile),
}

impl<'a> File<'a> {
    fn new(side: Side<'a>) -> Self {
        match side {
            Side::Archive(archive) => Self::Archive(Tensors::new(archive)),
            Side::Plain(file) => Self::Plain(file),
        }
    }

    fn locate(&mut self, place: &Place, numel: u64, dtype: Dtype) -> Result<Elements<'a>> {
        let nbytes = numel.saturating_mul(dtype.itemsize());
        match (self, place) {
            (Self::Archive(tensors), Place::Record(key, view)) => {
                tensors.elements(key, view, dtype)
            }
            (Self::Plain(file), Place::At(start)) => {
                Ok(Elements::of_plain_file(file, *start, nbytes))
            }
            _ => unreachable!("archives have records, plain files have offsets"),
        }
    }
}

/// Whether both are whole records of the same size and CRC.
fn are_same_record(sides: [Side<'_>; 2], both: &[Elements<'_>; 2]) -> bool {
    let checksum = |number: usize| match sides[number] {
        Side::Archive(archive) if both[number].is_whole => {
            archive.index().checksum(both[number].record?)
        }
        _ => None,
    };
    checksum(0).is_some_and(|crc32| checksum(1) == Some(crc32))
}

/// Decides which records of one side are checked while they are read, and says so in the results.
fn inspected(
    side: Side<'_>,
    number: usize,
    sides: &mut [[Elements<'_>; 2]],
    results: &mut [Comparison],
) -> Option<Selection> {
    let Side::Archive(archive) = side else {
        for result in results {
            result.was_checked[number] = false;
        }
        return None;
    };
    let index = archive.index();
    let mut uses = vec![0_u32; index.entries().len()];
    let read = || {
        sides
            .iter()
            .zip(&*results)
            .filter(|(_, result)| result.was_read)
    };
    for record in read().filter_map(|(both, _)| both[number].record) {
        uses[record] += 1;
    }
    let mut selected = Vec::new();
    for (both, result) in sides.iter_mut().zip(results) {
        let elements = &mut both[number];
        let Some(record) = elements.record.filter(|_| result.was_read) else {
            continue;
        };
        elements.is_inspected = elements.is_whole && uses[record] == 1;
        if elements.is_inspected {
            selected.push(record);
        }
        let is_compared = elements.is_inspected || elements.is_strided();
        result.was_checked[number] = is_compared && index.checksum(record).is_some();
    }
    Some(archive.select(selected))
}

/// The elements of one pair that one worker compares.
struct Piece {
    pair: usize,
    first: u64,
    count: usize,
}

struct Work<'a> {
    pairs: &'a [Pair],
    sides: &'a [[Elements<'a>; 2]],
    inspections: &'a [Option<Inspection<'a>>; 2],
}

struct Scratch {
    windows: [Mapping; 2],
    a: Vec<f64>,
    b: Vec<f64>,
    change: Vec<f64>,
    converted: converted::Scratch,
}

impl Work<'_> {
    fn run(
        &self,
        results: &mut [Comparison],
        threads: Option<NonZeroUsize>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let pieces = self.pieces(results);
        let nbytes_of = |piece: &Piece| {
            let of_side = |dtype: Dtype| dtype.itemsize() * piece.count as u64;
            self.pairs[piece.pair].dtypes.map(of_side).iter().sum()
        };
        let job = Job::new(pieces.iter().map(nbytes_of).sum());
        let found = Mutex::new(Vec::with_capacity(pieces.len()));
        job.run(
            threads.map_or_else(default_threads, NonZeroUsize::get),
            pieces.len(),
            observer,
            None,
            Scratch::new,
            |scratch, item| {
                let piece = &pieces[item];
                let figures = self.compare_piece(piece, scratch)?;
                lock(&found).push((item, figures));
                job.advance(nbytes_of(piece));
                Ok(())
            },
        )?;
        let mut found = std::mem::take(&mut *lock(&found));
        found.sort_unstable_by_key(|(item, _)| *item);
        for (item, figures) in found {
            results[pieces[item].pair].add(&figures);
        }
        Ok(())
    }

    fn pieces(&self, results: &[Comparison]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let read = (0..results.len()).filter(|&pair| results[pair].was_read);
        for pair in read {
            let Pair { dtypes, numel, .. } = self.pairs[pair];
            let itemsize = dtypes.map(Dtype::itemsize).into_iter().max().unwrap_or(1);
            let most = CHUNK_NBYTES / usize::try_from(itemsize).unwrap_or(CHUNK_NBYTES);
            let mut first = 0;
            while first < numel {
                let left = usize::try_from(numel - first).unwrap_or(most);
                let count = left.min(most);
                pieces.push(Piece { pair, first, count });
                first += count as u64;
            }
        }
        pieces
    }

    fn compare_piece(&self, piece: &Piece, scratch: &mut Scratch) -> Result<Comparison> {
        let dtypes = self.pairs[piece.pair].dtypes;
        let itemsizes = dtypes.map(Dtype::itemsize);
        let nbytes = itemsizes.map(|one| piece.count * usize::try_from(one).unwrap_or(usize::MAX));
        let mut starts = [0; 2];
        for (number, elements) in self.sides[piece.pair].iter().enumerate() {
            let inspection = self.inspections[number].as_ref();
            let window = &mut scratch.windows[number];
            let offset = piece.first * itemsizes[number];
            starts[number] = elements.load(offset, nbytes[number], window, inspection)?;
        }
        let [a, b] = [0, 1].map(|number| {
            let start = starts[number];
            &scratch.windows[number].as_slice()[start..start + nbytes[number]]
        });
        let [dtype, other] = dtypes;
        if dtype != other {
            return Ok(converted::compare(dtypes, [a, b], &mut scratch.converted));
        }
        let values = [&mut scratch.a, &mut scratch.b, &mut scratch.change];
        Ok(compare_bytes(dtype, a, b, values.map(Vec::as_mut_slice)))
    }
}

impl Scratch {
    fn new() -> Result<Self> {
        Ok(Self {
            windows: [buffer_for(CHUNK_NBYTES)?, buffer_for(CHUNK_NBYTES)?],
            a: vec![0.0; TILE],
            b: vec![0.0; TILE],
            change: vec![0.0; TILE],
            converted: converted::Scratch::new(),
        })
    }
}

impl Comparison {
    fn add(&mut self, other: &Self) {
        self.differing += other.differing;
        self.non_finite += other.non_finite;
        self.finite += other.finite;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.sum_abs += other.sum_abs;
        self.sum_squares += other.sum_squares;
        self.reference_squares += other.reference_squares;
    }
}

/// Compares elements; the three arrays are there to compute in.
fn compare_bytes(dtype: Dtype, a: &[u8], b: &[u8], values: [&mut [f64]; 3]) -> Comparison {
    let mut all = Comparison::default();
    if numeric::arithmetic(dtype) == Arithmetic::Opaque {
        all.differing = count_differing(dtype, a, b);
        return all;
    }
    let [a_values, b_values, change] = values;
    let tile_nbytes = TILE * numeric::component_nbytes(dtype);
    for (a, b) in a.chunks(tile_nbytes).zip(b.chunks(tile_nbytes)) {
        let components = a.len() / numeric::component_nbytes(dtype);
        let x = &mut a_values[..components];
        let y = &mut b_values[..components];
        let change = &mut change[..components];
        numeric::decode(dtype, a, x);
        numeric::decode(dtype, b, y);
        if !numeric::exact_differences(dtype, a, b, change) {
            for (change, (x, y)) in change.iter_mut().zip(x.iter().zip(&*y)) {
                *change = y - x;
            }
        }
        let mut tile = if numeric::is_complex(dtype) {
            figures_of_pairs(x, y, change)
        } else {
            figures(x, y, change)
        };
        if a != b {
            tile.differing = count_differing(dtype, a, b);
            tile.non_finite = count_non_finite(dtype, a, b, x, y);
        }
        all.add(&tile);
    }
    all
}

/// 0 for a finite number, NaN for all others: `x * 0.0` without a branch.
fn zero_if_finite(x: f64, y: f64) -> f64 {
    x * 0.0 + y * 0.0
}

#[allow(clippy::float_cmp, reason = "exactly 0, or NaN")]
fn figures(x: &[f64], y: &[f64], change: &[f64]) -> Comparison {
    let mut finite = [0_u64; LANES];
    let (mut max, mut sum) = ([0.0_f64; LANES], [0.0; LANES]);
    let (mut squares, mut reference) = ([0.0; LANES], [0.0; LANES]);
    let lanes = x
        .chunks(LANES)
        .zip(y.chunks(LANES))
        .zip(change.chunks(LANES));
    for ((x, y), change) in lanes {
        for lane in 0..x.len() {
            let is_finite = zero_if_finite(x[lane], y[lane]) == 0.0;
            let absolute = if is_finite { change[lane].abs() } else { 0.0 };
            let before = if is_finite { x[lane] } else { 0.0 };
            finite[lane] += u64::from(is_finite);
            max[lane] = if absolute > max[lane] {
                absolute
            } else {
                max[lane]
            };
            sum[lane] += absolute;
            squares[lane] += absolute * absolute;
            reference[lane] += before * before;
        }
    }
    Comparison {
        finite: finite.iter().sum(),
        max_abs: max.into_iter().fold(0.0, f64::max),
        sum_abs: sum.iter().sum(),
        sum_squares: squares.iter().sum(),
        reference_squares: reference.iter().sum(),
        ..Comparison::default()
    }
}

/// The same for complex numbers, of which the modulus counts.
#[allow(clippy::float_cmp, reason = "exactly 0, or NaN")]
fn figures_of_pairs(x: &[f64], y: &[f64], change: &[f64]) -> Comparison {
    let mut all = Comparison::default();
    let pairs = x.as_chunks::<2>().0.iter().zip(y.as_chunks::<2>().0);
    for ((x, y), change) in pairs.zip(change.as_chunks::<2>().0) {
        if zero_if_finite(x[0], x[1]) + zero_if_finite(y[0], y[1]) == 0.0 {
            let modulus = change[0].hypot(change[1]);
            all.finite += 1;
            all.max_abs = all.max_abs.max(modulus);
            all.sum_abs += modulus;
            all.sum_squares += change[0] * change[0] + change[1] * change[1];
            all.reference_squares += x[0] * x[0] + x[1] * x[1];
        }
    }
    all
}

fn count_differing(dtype: Dtype, a: &[u8], b: &[u8]) -> u64 {
    fn of<const N: usize>(a: &[u8], b: &[u8]) -> u64 {
        let pairs = a.as_chunks::<N>().0.iter().zip(b.as_chunks::<N>().0);
        pairs.map(|(a, b)| u64::from(a != b)).sum()
    }
    match dtype.itemsize() {
        1 => of::<1>(a, b),
        2 => of::<2>(a, b),
        4 => of::<4>(a, b),
        8 => of::<8>(a, b),
        _ => of::<16>(a, b),
    }
}

/// Counts the elements that differ and are not finite on both sides.
#[allow(clippy::float_cmp, reason = "exactly 0, or NaN")]
fn count_non_finite(dtype: Dtype, a: &[u8], b: &[u8], x: &[f64], y: &[f64]) -> u64 {
    let itemsize = usize::try_from(dtype.itemsize()).unwrap_or(usize::MAX);
    let components = itemsize / numeric::component_nbytes(dtype);
    let bytes = a.chunks_exact(itemsize).zip(b.chunks_exact(itemsize));
    let numbers = x.chunks_exact(components).zip(y.chunks_exact(components));
    let counts = bytes.zip(numbers).filter(|((a, b), (x, y))| {
        let zeros = x.iter().zip(*y).map(|(x, y)| zero_if_finite(*x, *y));
        a != b && zeros.sum::<f64>() != 0.0
    });
    counts.count() as u64
}
