//! The weighted mean of components, in float64, rounded once to their dtype.
//!
//! Products and sums are those of float64, in the order of the inputs. Where one of them leaves the range
//! of float64 though the mean may lie in it (three times 1.7e308), or where the weights are so large or
//! small that one might, the same operations are done with exponents of any size ([`Wide`]): the result is
//! what float64 would give if its range had no end.

use std::ops::RangeInclusive;

use fastckpt_format::pickle::Dtype;

use super::{component_nbytes, decode, encode};

/// Components that are summed at a time: two arrays of float64 of this length fit the first-level
/// cache (32 KiB) with room for what is summed.
pub(crate) const TILE: usize = 1024;

/// Weights whose products with any component of 32 bits or fewer are normal numbers, 2^-100 to 2^100.
const PLAIN_WEIGHTS: RangeInclusive<f64> = 7.888_609_052_210_118e-31..=1.267_650_600_228_229_4e30;

/// Averages components of one dtype: `weighted` has the weight, which is not 0, and the bytes of each
/// input. `sums` and `values`, of [`TILE`] numbers each, are there to compute in.
pub(crate) fn average(
    dtype: Dtype,
    weighted: &[(f64, &[u8])],
    total_weight: f64,
    (sums, values): (&mut [f64], &mut [f64]),
    out: &mut [u8],
) {
    let has_plain_weights = weighted
        .iter()
        .all(|(weight, _)| PLAIN_WEIGHTS.contains(&weight.abs()));
    let tile_nbytes = TILE * component_nbytes(dtype);
    let mut at = 0;
    for out in out.chunks_mut(tile_nbytes) {
        let components = out.len() / component_nbytes(dtype);
        let sums = &mut sums[..components];
        let values = &mut values[..components];
        for (position, (weight, bytes)) in weighted.iter().enumerate() {
            decode(dtype, &bytes[at..at + out.len()], values);
            // Not added to 0 first: that would take the sign of a negative zero.
            if position == 0 {
                for (sum, value) in sums.iter_mut().zip(&*values) {
                    *sum = weight * value;
                }
            } else {
                for (sum, value) in sums.iter_mut().zip(&*values) {
                    *sum += weight * value;
                }
            }
        }
        for sum in &mut *sums {
            *sum /= total_weight;
        }
        // Without a branch for each of them.
        let are_finite = sums.iter().fold(true, |all, mean| all & mean.is_finite());
        if !(are_finite && has_plain_weights) {
            for (component, mean) in sums.iter_mut().enumerate() {
                if !(mean.is_finite() && has_plain_weights) {
                    let place = at + component * component_nbytes(dtype);
                    *mean = mean_beyond_range(dtype, weighted, place, total_weight, *mean);
                }
            }
        }
        encode(dtype, sums, out);
        at += out.len();
    }
}

/// The mean of one component, at `place` in each input; `mean` is what float64 gives.
fn mean_beyond_range(
    dtype: Dtype,
    weighted: &[(f64, &[u8])],
    place: usize,
    total_weight: f64,
    mean: f64,
) -> f64 {
    let products = weighted.iter().map(|(weight, bytes)| {
        let mut value = [0.0];
        decode(dtype, &bytes[place..], &mut value);
        (*weight, value[0])
    });
    // An infinity decides whatever the finite ones add up to; two that contradict each other are NaN.
    let infinite = products
        .clone()
        .filter(|(_, value)| !value.is_finite())
        .map(|(weight, value)| weight * value)
        .reduce(|sum, product| sum + product);
    match infinite {
        // The NaN that came in, with its bits.
        Some(sum) if sum.is_nan() && mean.is_nan() => mean,
        Some(sum) => sum / total_weight,
        None => {
            let sum = products
                .map(|(weight, value)| Wide::new(weight) * Wide::new(value))
                .reduce(|sum, product| sum + product);
            let mean = sum.map_or(mean, |sum| (sum / Wide::new(total_weight)).rounded());
            let is_between = |(weight, _): &(f64, _)| weight.signum() == total_weight.signum();
            if weighted.iter().all(is_between) {
                // No more than the largest of what it is the mean of, whatever the roundings add up to.
                mean.clamp(-f64::MAX, f64::MAX)
            } else {
                mean
            }
        }
    }
}

/// A finite number `mantissa * 2^exponent` whose exponent does not end where that of float64 does.
#[derive(Debug, Clone, Copy)]
struct Wide {
    /// 0, or 0.5 to 1 without sign.
    mantissa: f64,
    exponent: i32,
}

impl Wide {
    fn new(value: f64) -> Self {
        Self::normalized(value, 0)
    }

    fn normalized(value: f64, exponent: i32) -> Self {
        /// Makes a normal number of every subnormal one.
        const SHIFT: i32 = 64;
        if value == 0.0 {
            return Self {
                mantissa: value,
                exponent: 0,
            };
        }
        let (normal, shifted) = if value.is_normal() {
            (value, 0)
        } else {
            (value * power_of_two(SHIFT), SHIFT)
        };
        // The exponent of 0.5 is in its place.
        let stored = (normal.to_bits() >> 52) & 0x7ff;
        let bits = normal.to_bits() & !(0x7ff << 52) | (1022 << 52);
        Self {
            mantissa: f64::from_bits(bits),
            exponent: exponent + i32::try_from(stored).unwrap_or_default() - 1022 - shifted,
        }
    }

    /// The float64 next to it.
    fn rounded(self) -> f64 {
        // The first factor keeps it normal, so that the second is the only one that rounds.
        let exponent = self.exponent.clamp(-2000, 2000);
        let half = exponent / 2;
        self.mantissa * power_of_two(half) * power_of_two(exponent - half)
    }
}

impl std::ops::Mul for Wide {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self::normalized(
            self.mantissa * other.mantissa,
            self.exponent + other.exponent,
        )
    }
}

impl std::ops::Div for Wide {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        Self::normalized(
            self.mantissa / other.mantissa,
            self.exponent - other.exponent,
        )
    }
}

impl std::ops::Add for Wide {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        // The exponent of a zero says nothing.
        if self.mantissa == 0.0 || other.mantissa == 0.0 {
            let sum = self.mantissa + other.mantissa;
            let exponent = self.exponent + other.exponent;
            return Self::normalized(sum, exponent);
        }
        let (large, small) = if self.exponent >= other.exponent {
            (self, other)
        } else {
            (other, self)
        };
        let distance = (small.exponent - large.exponent).max(-1000);
        Self::normalized(
            large.mantissa + small.mantissa * power_of_two(distance),
            large.exponent,
        )
    }
}

/// 2^exponent, for exponents of -1022 to 1023.
fn power_of_two(exponent: i32) -> f64 {
    let stored = u64::try_from(1023 + exponent).unwrap_or_default();
    f64::from_bits(stored << 52)
}

#[cfg(test)]
#[allow(clippy::float_cmp, clippy::unwrap_used, reason = "bit for bit")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn finite() -> impl Strategy<Value = f64> {
        any::<u64>()
            .prop_map(f64::from_bits)
            .prop_filter("finite", |value| value.is_finite())
    }

    proptest! {
        #[test]
        fn a_wide_number_is_the_one_it_was_made_of(value in finite()) {
            prop_assert_eq!(Wide::new(value).rounded().to_bits(), value.to_bits());
        }

        #[test]
        fn in_range_its_operations_are_those_of_float64(
            a in -1e100..1e100_f64,
            b in -1e100..1e100_f64,
        ) {
            let (x, y) = (Wide::new(a), Wide::new(b));
            prop_assert_eq!((x + y).rounded(), a + b);
            prop_assert_eq!((x * y).rounded(), a * b);
            prop_assert_eq!((x / y).rounded(), a / b);
        }
    }

    #[test]
    fn what_is_too_large_or_too_small_is_rounded_as_float64_is() {
        let (largest, smallest) = (Wide::new(f64::MAX), Wide::new(5e-324));
        assert_eq!((largest + largest).rounded(), f64::INFINITY);
        assert_eq!((largest * largest * largest).rounded(), f64::INFINITY);
        assert_eq!((smallest * smallest * smallest).rounded(), 0.0);
        assert_eq!((smallest * Wide::new(1.5)).rounded(), 1e-323);
        assert_eq!((smallest * Wide::new(0.5)).rounded(), 0.0);
        assert_eq!((smallest * Wide::new(-0.75)).rounded(), -5e-324);
    }

    #[test]
    fn zeros_keep_their_signs() {
        let negative = Wide::new(-0.0);
        assert!((negative + negative).rounded().is_sign_negative());
        assert!((negative + Wide::new(0.0)).rounded().is_sign_positive());
        assert!((negative * Wide::new(3.0)).rounded().is_sign_negative());
        assert_eq!((negative + Wide::new(1e-310)).rounded(), 1e-310);
        assert_eq!((Wide::new(1e305) + negative).rounded(), 1e305);
    }
}
