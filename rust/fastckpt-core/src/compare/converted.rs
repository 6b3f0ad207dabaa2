//! Tensors of two dtypes: their numbers are compared, since their bytes say nothing.
//!
//! A real number beside a complex one has an imaginary part of 0. A 64-bit integer is taken as the
//! float64 next to it and what is left of it, so that neighbours above 2^53 stay apart.

use fastckpt_format::pickle::Dtype;

use super::{Comparison, TILE, figures, figures_of_pairs};
use crate::numeric;

/// Arrays to compute in, one number for each component of a tile.
pub(super) struct Scratch {
    numbers: [Vec<f64>; 2],
    rests: [Vec<f64>; 2],
    change: Vec<f64>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        let zeros = || vec![0.0; TILE];
        Self {
            numbers: [zeros(), zeros()],
            rests: [zeros(), zeros()],
            change: zeros(),
        }
    }
}

/// Compares as many elements as there are of both; both dtypes have an arithmetic.
pub(super) fn compare(dtypes: [Dtype; 2], bytes: [&[u8]; 2], scratch: &mut Scratch) -> Comparison {
    let mut all = Comparison::default();
    let components = if dtypes.into_iter().any(numeric::is_complex) {
        2
    } else {
        1
    };
    let tile = TILE / components;
    let [a, b] = [0, 1].map(|side| bytes[side].chunks(tile * itemsize(dtypes[side])));
    for (a, b) in a.zip(b) {
        let count = components * (a.len() / itemsize(dtypes[0]));
        for (side, bytes) in [a, b].into_iter().enumerate() {
            let numbers = &mut scratch.numbers[side][..count];
            let rests = &mut scratch.rests[side][..count];
            decode(dtypes[side], bytes, components, numbers, rests);
        }
        let [x, y] = scratch.numbers.each_ref().map(|all| &all[..count]);
        let [x_rest, y_rest] = scratch.rests.each_ref().map(|all| &all[..count]);
        let change = &mut scratch.change[..count];
        for (at, change) in change.iter_mut().enumerate() {
            *change = (y[at] - x[at]) + (y_rest[at] - x_rest[at]);
        }
        let mut found = if components == 2 {
            figures_of_pairs(x, y, change)
        } else {
            figures(x, y, change)
        };
        count_differing(x, y, change, components, &mut found);
        all.add(&found);
    }
    all
}

fn itemsize(dtype: Dtype) -> usize {
    usize::try_from(dtype.itemsize()).unwrap_or(usize::MAX)
}

/// Decodes elements to so many components each, with what 64-bit integers have beyond a float64.
fn decode(dtype: Dtype, bytes: &[u8], components: usize, numbers: &mut [f64], rests: &mut [f64]) {
    let is_widened = components == 2 && !numeric::is_complex(dtype);
    let count = numbers.len() / if is_widened { 2 } else { 1 };
    numeric::decode(dtype, bytes, &mut numbers[..count]);
    numeric::rests(dtype, bytes, &mut rests[..count]);
    if is_widened {
        widen(numbers);
        widen(rests);
    }
}

/// Puts a 0 behind each number of the first half, from the last one on.
fn widen(numbers: &mut [f64]) {
    for at in (0..numbers.len() / 2).rev() {
        numbers[2 * at] = numbers[at];
        numbers[2 * at + 1] = 0.0;
    }
}

/// Counts the elements whose numbers differ; a NaN is a NaN, whatever its bits.
#[allow(
    clippy::float_cmp,
    reason = "whether they are the same numbers is the question"
)]
fn count_differing(
    x: &[f64],
    y: &[f64],
    change: &[f64],
    components: usize,
    found: &mut Comparison,
) {
    let elements = x.chunks(components).zip(y.chunks(components));
    for ((x, y), change) in elements.zip(change.chunks(components)) {
        let (mut differs, mut is_finite) = (false, true);
        for ((x, y), change) in x.iter().zip(y).zip(change) {
            if x.is_finite() && y.is_finite() {
                differs |= *change != 0.0;
            } else {
                is_finite = false;
                differs |= !(x == y || (x.is_nan() && y.is_nan()));
            }
        }
        found.differing += u64::from(differs);
        found.non_finite += u64::from(differs && !is_finite);
    }
}
