//! Floats of 8 and 16 bits.
//!
//! All but one are a sign, an exponent and a mantissa, and differ in their widths and in what the
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
pub(super) const FLOAT16: SmallFloat = SmallFloat {
    mantissa_bits: 10,
    bias: 15,
    sign: 1 << 15,
    largest: 0x7bff,
    nan: 0x7e00,
    beyond: Beyond::Infinity,
};

/// The upper half of a float32.
pub(super) const BFLOAT16: SmallFloat = SmallFloat {
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
