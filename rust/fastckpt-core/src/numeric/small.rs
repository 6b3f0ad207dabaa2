//! Floats of 8 and 16 bits.
//!
//! Those of 16 bits are rounded by way of float32, without branches, since whole models are. All but
//! one of the others are a sign, an exponent and a mantissa, and differ in their widths and in what the
//! largest codes mean. A value is rounded by counting the units of the last place that it has at its
//! exponent: a count that runs over into the next exponent gives the right code by itself.

use std::sync::LazyLock;

/// Exponent bits of float64 and what they are counted from.
const F64_MANTISSA_BITS: i32 = 52;
const F64_BIAS: i32 = 1023;

/// What the codes beyond the finite numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    /// IEEE 754: infinity, then NaNs.
    Infinity,
    /// "fn": one NaN, the largest code, and no infinity.
    Nan,
    /// "fnuz": one NaN, in the place of the negative zero.
    NanAtNegativeZero,
}

/// A float of up to 16 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct SmallFloat {
    mantissa_bits: i32,
    bias: i32,
    /// Bit of the sign.
    sign: u16,
    /// The largest finite number.
    largest: u16,
    /// What a NaN is encoded as; where there is a sign, it is kept.
    nan: u16,
    beyond: Beyond,
}

/// IEEE 754 binary16.
#[cfg(test)]
const FLOAT16: SmallFloat = SmallFloat {
    mantissa_bits: 10,
    bias: 15,
    sign: 1 << 15,
    largest: 0x7bff,
    nan: 0x7e00,
    beyond: Beyond::Infinity,
};

/// The upper half of a float32.
#[cfg(test)]
const BFLOAT16: SmallFloat = SmallFloat {
    mantissa_bits: 7,
    bias: 127,
    sign: 1 << 15,
    largest: 0x7f7f,
    nan: 0x7fc0,
    beyond: Beyond::Infinity,
};

const fn float8(
    mantissa_bits: i32,
    bias: i32,
    largest: u16,
    nan: u16,
    beyond: Beyond,
) -> SmallFloat {
    SmallFloat {
        mantissa_bits,
        bias,
        sign: 1 << 7,
        largest,
        nan,
        beyond,
    }
}

// Widths, biases and special codes: "OCP 8-bit Floating Point Specification" (E4M3 is torch's "fn"),
// and "8-bit Numerical Formats for Deep Neural Networks" for the kinds without a negative zero.
pub(super) static E4M3FN: LazyLock<Table> =
    LazyLock::new(|| Table::of_float(float8(3, 7, 0x7e, 0x7f, Beyond::Nan)));
pub(super) static E5M2: LazyLock<Table> =
    LazyLock::new(|| Table::of_float(float8(2, 15, 0x7b, 0x7f, Beyond::Infinity)));
pub(super) static E4M3FNUZ: LazyLock<Table> =
    LazyLock::new(|| Table::of_float(float8(3, 8, 0x7f, 0x80, Beyond::NanAtNegativeZero)));
pub(super) static E5M2FNUZ: LazyLock<Table> =
    LazyLock::new(|| Table::of_float(float8(2, 16, 0x7f, 0x80, Beyond::NanAtNegativeZero)));
/// Powers of two from 2^-127 on, and NaN: "OCP Microscaling Formats Specification".
pub(super) static E8M0FNU: LazyLock<Table> = LazyLock::new(Table::of_powers);

/// The numbers of an 8-bit float, and how others are rounded to them.
pub(super) struct Table {
    numbers: [f64; 256],
    /// `None` for powers of two.
    float: Option<SmallFloat>,
}

impl Table {
    fn of_float(float: SmallFloat) -> Self {
        let mut numbers = [0.0; 256];
        for (code, number) in (0..).zip(&mut numbers) {
            *number = float.decode(code);
        }
        Self {
            numbers,
            float: Some(float),
        }
    }

    fn of_powers() -> Self {
        let mut numbers = [f64::NAN; 256];
        for (exponent, number) in (-127..).zip(&mut numbers[..usize::from(E8M0_NAN)]) {
            *number = power_of_two(exponent);
        }
        Self {
            numbers,
            float: None,
        }
    }

    /// The number of a code.
    pub(super) fn decode(&self, code: u8) -> f64 {
        self.numbers[usize::from(code)]
    }

    /// The code of the nearest number.
    pub(super) fn encode(&self, value: f64) -> u8 {
        let code = match &self.float {
            Some(float) => float.encode(value),
            None => encode_power(value),
        };
        // The codes of these floats have 8 bits.
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

/// The one NaN of the powers of two.
const E8M0_NAN: u8 = 0xff;

/// The nearest power of two; half-way between two, the larger. There is none for a negative number.
fn encode_power(value: f64) -> u16 {
    let nan = u16::from(E8M0_NAN);
    if value.is_nan() || value < 0.0 {
        return nan;
    }
    let exponent = exponent_of(value).clamp(-127, 128);
    let up = i32::from(value >= 1.5 * power_of_two(exponent));
    u16::try_from(exponent + up + 127).map_or(nan, |code| code.min(nan))
}

impl SmallFloat {
    /// The code of the nearest number, of two the one with the even code.
    pub(super) fn encode(&self, value: f64) -> u16 {
        let sign = if value.is_sign_negative() {
            self.sign
        } else {
            0
        };
        if value.is_nan() {
            return self.with_sign(sign, self.nan);
        }
        // Enough to be too large for every kind, and small enough to compute with.
        let magnitude = value.abs().min(power_of_two(self.bias + 2));
        // Below the smallest normal number, the last place is worth the same throughout.
        let exponent = exponent_of(magnitude).max(1 - self.bias);
        let units = round_ties_even(magnitude * power_of_two(self.mantissa_bits - exponent));
        let code = ((exponent + self.bias - 1) << self.mantissa_bits) + units;
        match u16::try_from(code) {
            Ok(code) if code <= self.largest => self.with_sign(sign, code),
            _ if self.beyond == Beyond::Infinity => self.with_sign(sign, self.largest + 1),
            _ => self.with_sign(sign, self.nan),
        }
    }

    /// The number of a code.
    fn decode(&self, code: u16) -> f64 {
        let magnitude = code & !self.sign;
        let sign = if code == magnitude { 1.0 } else { -1.0 };
        if self.beyond == Beyond::NanAtNegativeZero && code == self.nan {
            return f64::NAN;
        }
        if magnitude > self.largest {
            let is_infinity = self.beyond == Beyond::Infinity && magnitude == self.largest + 1;
            return if is_infinity {
                sign * f64::INFINITY
            } else {
                f64::NAN
            };
        }
        let exponent = i32::from(magnitude >> self.mantissa_bits);
        let fraction = magnitude & ((1 << self.mantissa_bits) - 1);
        let hidden = u16::from(exponent > 0) << self.mantissa_bits;
        let scale = exponent.max(1) - self.bias - self.mantissa_bits;
        sign * f64::from(fraction | hidden) * power_of_two(scale)
    }

    fn with_sign(&self, sign: u16, code: u16) -> u16 {
        // One of the kinds has neither a negative zero nor a negative NaN.
        if self.beyond == Beyond::NanAtNegativeZero && (code == 0 || code == self.nan) {
            return code;
        }
        code | sign
    }
}

/// The number of a float16, exactly.
pub(super) fn decode_f16(code: u16) -> f64 {
    const EXPONENT: u16 = 0x7c00;
    const MANTISSA_SHIFT: i32 = F64_MANTISSA_BITS - 10;
    const REBIAS: u64 = ((F64_BIAS - 15) as u64) << F64_MANTISSA_BITS;
    let magnitude = code & 0x7fff;
    let moved = u64::from(magnitude) << MANTISSA_SHIFT;
    let bits = match magnitude & EXPONENT {
        0 => (f64::from(magnitude) * power_of_two(-24)).to_bits(),
        EXPONENT => moved | f64::INFINITY.to_bits(),
        _ => moved + REBIAS,
    };
    f64::from_bits(bits | u64::from(code & 0x8000) << 48)
}

/// The number of a bfloat16, exactly.
pub(super) fn decode_bf16(code: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(code) << 16))
}

/// The code of the nearest float16, of two the even one.
pub(super) fn encode_f16(value: f64) -> u16 {
    /// 2^16 and 2^-14 as float32: from the one on, all is infinite; below the other, subnormal.
    const TOO_LARGE: u32 = (127 + 16) << 23;
    const NORMAL: u32 = (127 - 14) << 23;
    /// The last place of 0.5 in float32 is that of the subnormal numbers of float16.
    const HALF: f32 = 0.5;
    let bits = round_to_odd(value);
    let magnitude = bits & !SIGN;
    let subnormal = (f32::from_bits(magnitude) + HALF)
        .to_bits()
        .wrapping_sub(HALF.to_bits());
    let is_odd = (magnitude >> 13) & 1;
    let normal = (magnitude.wrapping_sub((127 - 15) << 23)).wrapping_add(0xfff + is_odd) >> 13;
    let infinite = if value.is_nan() { 0x7e00 } else { 0x7c00 };
    let finite = if magnitude < NORMAL {
        subnormal
    } else {
        normal
    };
    let code = if magnitude >= TOO_LARGE {
        infinite
    } else {
        finite
    };
    low_half(code | (bits & SIGN) >> 16)
}

/// The code of the nearest bfloat16, of two the even one.
pub(super) fn encode_bf16(value: f64) -> u16 {
    let bits = round_to_odd(value);
    let is_odd = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff + is_odd) >> 16;
    let nan = bits >> 16 | 0x7fc0;
    low_half(if value.is_nan() { nan } else { rounded })
}

/// Sign of a float32.
const SIGN: u32 = 1 << 31;

/// The bits of a number in float32, where what cannot be told makes the last bit 1: to round it once more
/// to fewer bits is then as good as to round the number itself.
fn round_to_odd(value: f64) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "rounded")]
    let nearest = value as f32;
    let back = f64::from(nearest);
    let is_above = u32::from(back.abs() > value.abs());
    #[allow(clippy::float_cmp, reason = "whether nothing was lost")]
    let is_inexact = u32::from(back != value);
    nearest.to_bits().wrapping_sub(is_above) | is_inexact
}

/// The lower half of a number; it has no other.
#[allow(clippy::cast_possible_truncation, reason = "a code of 16 bits")]
fn low_half(code: u32) -> u16 {
    code as u16
}

/// The exponent of a number that is not negative; that of subnormal ones is below all others.
fn exponent_of(magnitude: f64) -> i32 {
    // A shift by 52 leaves 11 bits.
    i32::try_from(magnitude.to_bits() >> F64_MANTISSA_BITS).unwrap_or(i32::MAX) - F64_BIAS
}

/// 2 to the power of a number from -1022 to 1023.
#[allow(clippy::cast_sign_loss, reason = "not negative with the bias")]
const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + F64_BIAS) as u64) << F64_MANTISSA_BITS)
}

/// The nearest integer to a number from 0 to 2^31.
fn round_ties_even(value: f64) -> i32 {
    // From here on float64 has no fractions: the addition rounds.
    const NO_FRACTIONS: f64 = power_of_two(F64_MANTISSA_BITS);
    #[allow(clippy::cast_possible_truncation, reason = "an integer below 2^31")]
    let rounded = ((value + NO_FRACTIONS) - NO_FRACTIONS) as i32;
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code of a float of 16 bits, its neighbours, what lies half-way between them, and the float64
    /// just beside that.
    fn hard_cases(float: &SmallFloat) -> Vec<f64> {
        let mut cases = vec![f64::INFINITY, 1e300, 1e-300, f64::MIN_POSITIVE / 4.0, 0.0];
        for code in 0..=float.largest {
            let number = float.decode(code);
            let next = if code == float.largest {
                number + (number - float.decode(code - 1))
            } else {
                float.decode(code + 1)
            };
            let half_way = f64::midpoint(number, next);
            cases.extend([number, half_way, half_way.next_up(), half_way.next_down()]);
            // Where float32 would round to the half-way mark first.
            cases.extend([half_way * (1.0 + 1e-12), half_way * (1.0 - 1e-12)]);
        }
        cases
    }

    #[test]
    fn both_ways_to_round_agree_on_every_hard_case() {
        for value in hard_cases(&FLOAT16) {
            for value in [value, -value] {
                assert_eq!(encode_f16(value), FLOAT16.encode(value), "{value:e}");
            }
        }
        for value in hard_cases(&BFLOAT16) {
            for value in [value, -value] {
                assert_eq!(encode_bf16(value), BFLOAT16.encode(value), "{value:e}");
            }
        }
    }

    #[test]
    fn every_code_of_16_bits_comes_back() {
        for code in 0..=u16::MAX {
            for (float, decoded, encode) in [
                (&FLOAT16, decode_f16(code), encode_f16 as fn(f64) -> u16),
                (&BFLOAT16, decode_bf16(code), encode_bf16),
            ] {
                let expected = float.decode(code);
                assert_eq!(decoded.is_nan(), expected.is_nan());
                if decoded.is_nan() {
                    assert!(float.decode(encode(decoded)).is_nan());
                } else {
                    assert_eq!(decoded.to_bits(), expected.to_bits());
                    assert_eq!(encode(decoded), code);
                }
            }
        }
    }

    #[test]
    fn every_code_of_8_bits_comes_back() {
        for table in [&E4M3FN, &E4M3FNUZ, &E5M2, &E5M2FNUZ, &E8M0FNU] {
            for code in 0..=u8::MAX {
                let number = table.decode(code);
                let back = table.encode(number);
                if number.is_nan() {
                    assert!(table.decode(back).is_nan());
                } else {
                    assert_eq!(back, code);
                }
            }
        }
    }

    #[test]
    fn what_is_half_way_goes_to_the_even_code() {
        for table in [&E4M3FN, &E4M3FNUZ, &E5M2, &E5M2FNUZ] {
            for code in 0..=u8::MAX {
                let (number, next) = (table.decode(code), table.decode(code.wrapping_add(1)));
                if !number.is_finite() || !next.is_finite() || next.signum() != number.signum() {
                    continue;
                }
                let even = code + code % 2;
                let half_way = f64::midpoint(number, next);
                assert_eq!(table.encode(half_way), even);
                let towards_zero = half_way.abs().next_down().copysign(half_way);
                assert_eq!(table.encode(towards_zero), code);
                let away = half_way.abs().next_up().copysign(half_way);
                assert_eq!(table.encode(away), code + 1);
            }
        }
    }

    #[test]
    fn what_is_too_large_is_infinite_or_no_number() {
        for (table, largest, beyond) in [
            (&E4M3FN, 448.0, f64::NAN),
            (&E4M3FNUZ, 240.0, f64::NAN),
            (&E5M2, 57344.0, f64::INFINITY),
            (&E5M2FNUZ, 57344.0, f64::NAN),
            (&E8M0FNU, 2.0_f64.powi(127), f64::NAN),
        ] {
            assert!((table.decode(table.encode(largest)) - largest).abs() < 1.0);
            for value in [largest * 1.6, 1e300, f64::INFINITY] {
                let found = table.decode(table.encode(value));
                assert_eq!(found.to_bits(), beyond.to_bits());
            }
        }
    }
}
