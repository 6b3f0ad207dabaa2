//! The elements of tensors as numbers: every dtype that has an arithmetic, decoded to float64 and
//! encoded again, rounded once.
//!
//! A complex number is a pair of components: what is said of elements here is said of components.
//! Bytes are in the order of the machine, as torch saves them.

use fastckpt_format::pickle::Dtype;

pub(crate) mod mean;
mod small;

use small::Table;

/// What can be done with the elements of a dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Floating or complex: averages have a meaning.
    Floating,
    /// Integers and bool: exact, and not to be averaged (they count things).
    Integer,
    /// Bits without a number that anybody agrees on, packed or quantized elements.
    Opaque,
}

/// What can be done with the elements of `dtype`.
#[must_use]
pub fn arithmetic(dtype: Dtype) -> Arithmetic {
    use Dtype as D;
    match dtype {
        D::Float64
        | D::Float32
        | D::Float16
        | D::BFloat16
        | D::Complex128
        | D::Complex64
        | D::Complex32
        | D::BComplex32
        | D::Float8E4M3Fn
        | D::Float8E4M3Fnuz
        | D::Float8E5M2
        | D::Float8E5M2Fnuz
        | D::Float8E8M0Fnu => Arithmetic::Floating,
        D::Int64
        | D::Int32
        | D::Int16
        | D::Int8
        | D::UInt64
        | D::UInt32
        | D::UInt16
        | D::UInt8
        | D::Bool => Arithmetic::Integer,
        _ => Arithmetic::Opaque,
    }
}

/// Whether each element is a pair of components.
#[must_use]
pub fn is_complex(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::Complex128 | Dtype::Complex64 | Dtype::Complex32 | Dtype::BComplex32
    )
}

/// Bytes of one component.
#[must_use]
pub fn component_nbytes(dtype: Dtype) -> usize {
    let itemsize = usize::try_from(dtype.itemsize()).unwrap_or(usize::MAX);
    if is_complex(dtype) {
        itemsize / 2
    } else {
        itemsize
    }
}

/// Decodes the components in `bytes` to `values`, as many as there are of both. 64-bit integers are
/// rounded to the nearest float64.
///
/// # Panics
/// Where the dtype is [`Arithmetic::Opaque`].
pub fn decode(dtype: Dtype, bytes: &[u8], values: &mut [f64]) {
    use Dtype as D;
    match dtype {
        D::Float64 | D::Complex128 => each(bytes, values, f64::from_ne_bytes),
        D::Float32 | D::Complex64 => {
            each(bytes, values, |bytes| f64::from(f32::from_ne_bytes(bytes)));
        }
        D::Float16 | D::Complex32 => each(bytes, values, |bytes| {
            small::decode_f16(u16::from_ne_bytes(bytes))
        }),
        D::BFloat16 | D::BComplex32 => each(bytes, values, |bytes| {
            small::decode_bf16(u16::from_ne_bytes(bytes))
        }),
        #[allow(clippy::cast_precision_loss, reason = "rounded: see above")]
        D::Int64 => each(bytes, values, |bytes| i64::from_ne_bytes(bytes) as f64),
        #[allow(clippy::cast_precision_loss, reason = "rounded: see above")]
        D::UInt64 => each(bytes, values, |bytes| u64::from_ne_bytes(bytes) as f64),
        D::Int32 => each(bytes, values, |bytes| f64::from(i32::from_ne_bytes(bytes))),
        D::UInt32 => each(bytes, values, |bytes| f64::from(u32::from_ne_bytes(bytes))),
        D::Int16 => each(bytes, values, |bytes| f64::from(i16::from_ne_bytes(bytes))),
        D::UInt16 => each(bytes, values, |bytes| f64::from(u16::from_ne_bytes(bytes))),
        D::Int8 => each(bytes, values, |bytes| f64::from(i8::from_ne_bytes(bytes))),
        D::UInt8 => each(bytes, values, |[byte]| f64::from(byte)),
        D::Bool => each(bytes, values, |[byte]| f64::from(u8::from(byte != 0))),
        _ => {
            let table = table(dtype);
            each(bytes, values, |[byte]| table.decode(byte));
        }
    }
}

/// Encodes `values` to `bytes`, each rounded once, to nearest and ties to even; what is too large
/// becomes an infinity, or NaN where the dtype has none.
///
/// # Panics
/// Where the dtype is not [`Arithmetic::Floating`].
pub fn encode(dtype: Dtype, values: &[f64], bytes: &mut [u8]) {
    use Dtype as D;
    match dtype {
        D::Float64 | D::Complex128 => put(values, bytes, f64::to_ne_bytes),
        #[allow(clippy::cast_possible_truncation, reason = "rounded: see above")]
        D::Float32 | D::Complex64 => put(values, bytes, |value| (value as f32).to_ne_bytes()),
        D::Float16 | D::Complex32 => {
            put(values, bytes, |value| {
                small::encode_f16(value).to_ne_bytes()
            });
        }
        D::BFloat16 | D::BComplex32 => {
            put(values, bytes, |value| {
                small::encode_bf16(value).to_ne_bytes()
            });
        }
        _ => {
            let table = table(dtype);
            put(values, bytes, |value| [table.encode(value)]);
        }
    }
}

/// The differences `b - a` of 64-bit integers, which float64 does not tell apart above 2^53: exact,
/// then rounded. `false` for other dtypes.
pub(crate) fn exact_differences(dtype: Dtype, a: &[u8], b: &[u8], differences: &mut [f64]) -> bool {
    #[allow(
        clippy::cast_precision_loss,
        reason = "rounded once, after the subtraction"
    )]
    fn each_pair(a: &[u8], b: &[u8], out: &mut [f64], decode: impl Fn([u8; 8]) -> i128) {
        let pairs = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
        for (out, (a, b)) in out.iter_mut().zip(pairs) {
            *out = (decode(*b) - decode(*a)) as f64;
        }
    }
    match dtype {
        Dtype::Int64 => each_pair(a, b, differences, |x| i64::from_ne_bytes(x).into()),
        Dtype::UInt64 => each_pair(a, b, differences, |x| u64::from_ne_bytes(x).into()),
        _ => return false,
    }
    true
}

/// What 64-bit integers are more than the float64 that [`decode`] makes of them; 0 for other dtypes.
pub(crate) fn rests(dtype: Dtype, bytes: &[u8], rests: &mut [f64]) {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a rounded integer of 64 bits is one of 65, and the rest has 11"
    )]
    fn rest(integer: i128) -> f64 {
        (integer - (integer as f64) as i128) as f64
    }
    match dtype {
        Dtype::Int64 => each(bytes, rests, |x| rest(i64::from_ne_bytes(x).into())),
        Dtype::UInt64 => each(bytes, rests, |x| rest(u64::from_ne_bytes(x).into())),
        _ => rests.fill(0.0),
    }
}

fn each<const N: usize>(bytes: &[u8], values: &mut [f64], decode: impl Fn([u8; N]) -> f64) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = decode(*bytes);
    }
}

fn put<const N: usize>(values: &[f64], bytes: &mut [u8], encode: impl Fn(f64) -> [u8; N]) {
    for (bytes, value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = encode(*value);
    }
}

/// The numbers of an 8-bit float.
fn table(dtype: Dtype) -> &'static Table {
    match dtype {
        Dtype::Float8E4M3Fn => &small::E4M3FN,
        Dtype::Float8E4M3Fnuz => &small::E4M3FNUZ,
        Dtype::Float8E5M2 => &small::E5M2,
        Dtype::Float8E5M2Fnuz => &small::E5M2FNUZ,
        Dtype::Float8E8M0Fnu => &small::E8M0FNU,
        _ => unreachable!(
            "callers ask for `arithmetic` first; {} has none",
            dtype.name()
        ),
    }
}
