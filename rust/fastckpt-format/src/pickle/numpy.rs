//! numpy's arrays, scalars and dtypes of numbers and bools: known by the calls that make them, and made
//! without these calls.
//!
//! numpy pickles an array as a call of `_reconstruct`, which makes an empty one, and a state with
//! shape, dtype, order and bytes; a dtype as a call of `dtype` with a code like `f8`, and a state
//! with the byte order; a scalar as a call of `scalar` with dtype and bytes. Only what numpy writes
//! for numbers and bools is understood. Everything else of numpy (objects, texts, dates, records,
//! subclasses) stays an opaque call, which torch's unpickler refuses.

use std::fmt;
use std::sync::Arc;

use super::error::{ArrayProblem, PickleError};
use super::global::Known;
use super::graph::{Node, NodeId};
use super::machine::Decoder;

/// numpy 2 has no more dimensions than that (`NPY_MAXDIMS`).
const MAX_DIMS: usize = 64;
/// Of the state of an array, since numpy 1.0.
const ARRAY_VERSION: i64 = 1;
/// Of the state of a dtype that has no metadata, since numpy 1.0.
const DTYPE_VERSION: i64 = 3;

macro_rules! number_kinds {
    ($($variant:ident $name:literal $code:literal $itemsize:literal;)*) => {
        /// A kind of number of numpy, named as numpy names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum NumberKind {
            $(#[doc = concat!("`numpy.", $name, "`")] $variant,)*
        }

        impl NumberKind {
            /// Every kind, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The attribute of the numpy module: `float64`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// numpy's code: `f8`.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// Bytes of one element.
            #[must_use]
            pub fn itemsize(self) -> u8 {
                match self { $(Self::$variant => $itemsize,)* }
            }

            fn from_code(code: &[u8]) -> Option<Self> {
                Self::ALL.iter().find(|kind| kind.code().as_bytes() == code).copied()
            }
        }
    };
}

number_kinds! {
    Bool "bool" "b1" 1;
    Int8 "int8" "i1" 1;
    Int16 "int16" "i2" 2;
    Int32 "int32" "i4" 4;
    Int64 "int64" "i8" 8;
    UInt8 "uint8" "u1" 1;
    UInt16 "uint16" "u2" 2;
    UInt32 "uint32" "u4" 4;
    UInt64 "uint64" "u8" 8;
    Float16 "float16" "f2" 2;
    Float32 "float32" "f4" 4;
    Float64 "float64" "f8" 8;
    Complex64 "complex64" "c8" 8;
    Complex128 "complex128" "c16" 16;
}

/// The dtype of an array, or one that stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NumpyDtype {
    /// What the elements are.
    pub kind: NumberKind,
    /// Whether their first byte is the highest; `false` where they have one byte.
    pub is_big_endian: bool,
}

impl NumpyDtype {
    /// numpy's name: `float64`, or `>f8` where the byte order is not the usual one.
    #[must_use]
    pub fn name(self) -> String {
        if self.is_big_endian {
            self.to_string()
        } else {
            self.kind.name().to_owned()
        }
    }
}

impl fmt::Display for NumpyDtype {
    /// The code with the byte order, as `numpy.dtype` takes it: `<f8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match (self.kind.itemsize(), self.is_big_endian) {
            (1, _) => '|',
            (_, false) => '<',
            (_, true) => '>',
        };
        write!(f, "{order}{}", self.kind.code())
    }
}

/// An array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumpyArray {
    /// Kind and byte order of the elements in `data`.
    pub dtype: NumpyDtype,
    /// Length of each dimension.
    pub shape: Box<[u64]>,
    /// Whether the first dimension is the one without gaps; else it is the last.
    pub is_fortran: bool,
    /// The elements, no byte more or less.
    pub data: Arc<[u8]>,
}

impl NumpyArray {
    /// How many elements there are.
    #[must_use]
    pub fn numel(&self) -> u64 {
        let nbytes = self.data.len() as u64;
        let itemsize = u64::from(self.dtype.kind.itemsize());
        nbytes.checked_div(itemsize).unwrap_or(0)
    }

    /// The one element of an array that has one.
    #[must_use]
    pub fn only_element(&self) -> Option<NumpyScalar> {
        NumpyScalar::new(self.dtype, &self.data)
    }
}

/// A scalar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumpyScalar {
    kind: NumberKind,
    /// Little-endian, and zeros behind.
    bytes: [u8; 16],
}

/// What a scalar is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A bool.
    Bool(bool),
    /// A signed int.
    Int(i64),
    /// An unsigned int.
    UInt(u64),
    /// A float.
    Float(f64),
    /// Real and imaginary part.
    Complex(f64, f64),
}

impl fmt::Display for Number {
    /// As Python writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(value) => write!(f, "{value}"),
            Self::UInt(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Complex(real, imaginary) => write!(f, "({real:?}{imaginary:+?}j)"),
        }
    }
}

impl NumpyScalar {
    /// `None` where these are not the bytes of one element.
    fn new(dtype: NumpyDtype, data: &[u8]) -> Option<Self> {
        let kind = dtype.kind;
        let itemsize = usize::from(kind.itemsize());
        if data.len() != itemsize {
            return None;
        }
        let mut bytes = [0; 16];
        let target = bytes.get_mut(..itemsize)?;
        target.copy_from_slice(data);
        if dtype.is_big_endian {
            // Real and imaginary part keep their places.
            let part_nbytes = match kind {
                NumberKind::Complex64 => 4,
                NumberKind::Complex128 => 8,
                _ => itemsize,
            };
            target
                .chunks_exact_mut(part_nbytes)
                .for_each(<[u8]>::reverse);
        }
        Some(Self { kind, bytes })
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> NumberKind {
        self.kind
    }

    /// Its bytes, little-endian.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        let itemsize = usize::from(self.kind.itemsize());
        self.bytes.get(..itemsize).unwrap_or_default()
    }

    /// What it is worth. Of a NaN no more is kept than that it is one.
    #[must_use]
    pub fn number(&self) -> Number {
        match self.kind {
            NumberKind::Bool => Number::Bool(self.bytes != [0; 16]),
            NumberKind::Int8 => Number::Int(i8::from_le_bytes(self.first()).into()),
            NumberKind::Int16 => Number::Int(i16::from_le_bytes(self.first()).into()),
            NumberKind::Int32 => Number::Int(i32::from_le_bytes(self.first()).into()),
            NumberKind::Int64 => Number::Int(i64::from_le_bytes(self.first())),
            NumberKind::UInt8 | NumberKind::UInt16 | NumberKind::UInt32 | NumberKind::UInt64 => {
                Number::UInt(u64::from_le_bytes(self.first()))
            }
            NumberKind::Float16 => Number::Float(half(u16::from_le_bytes(self.first()))),
            NumberKind::Float32 => Number::Float(f32::from_le_bytes(self.first()).into()),
            NumberKind::Float64 => Number::Float(f64::from_le_bytes(self.first())),
            NumberKind::Complex64 => {
                let (real, imaginary) = split(u64::from_le_bytes(self.first()));
                Number::Complex(
                    f32::from_bits(real).into(),
                    f32::from_bits(imaginary).into(),
                )
            }
            NumberKind::Complex128 => {
                let bits = u128::from_le_bytes(self.bytes);
                // The real part stands in the lower half.
                let real = u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0);
                let imaginary = u64::try_from(bits >> u64::BITS).unwrap_or(0);
                Number::Complex(f64::from_bits(real), f64::from_bits(imaginary))
            }
        }
    }

    fn first<const N: usize>(&self) -> [u8; N] {
        self.bytes.first_chunk().copied().unwrap_or([0; N])
    }
}

/// The lower and the upper half.
fn split(bits: u64) -> (u32, u32) {
    let low = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    let high = u32::try_from(bits >> u32::BITS).unwrap_or(0);
    (low, high)
}

/// A float of 16 bits (IEEE 754 binary16).
fn half(bits: u16) -> f64 {
    const MANTISSA_BITS: u16 = 10;
    const EXPONENT_MAX: i32 = 31;
    let mantissa = f64::from(bits & ((1 << MANTISSA_BITS) - 1));
    let exponent = i32::from((bits >> MANTISSA_BITS) & 0x1f);
    let magnitude = match exponent {
        EXPONENT_MAX if mantissa == 0.0 => f64::INFINITY,
        EXPONENT_MAX => f64::NAN,
        0 => mantissa * 2.0_f64.powi(-24),
        _ => (mantissa + 1024.0) * 2.0_f64.powi(exponent.saturating_sub(25)),
    };
    if bits >> 15 == 1 {
        -magnitude
    } else {
        magnitude
    }
}

impl Decoder<'_> {
    /// A call of a function of numpy, as it pickles itself.
    pub(super) fn numpy_call(
        &mut self,
        known: Known,
        tuple: NodeId,
        callable: NodeId,
    ) -> Option<Node> {
        let Node::Tuple(args) = self.node(tuple) else {
            return None;
        };
        let begun = Node::Call {
            callable,
            args: tuple,
        };
        match (known, &**args) {
            (Known::NumpyReconstruct, [class, shape, code]) => {
                self.is_array_class(*class).then_some(())?;
                let Node::Tuple(shape) = self.node(*shape) else {
                    return None;
                };
                let is_empty = matches!(**shape, [size] if self.is_int(size, 0));
                let is_bytes = matches!(self.node(*code), Node::Bytes(code) if **code == *b"b");
                (is_empty && is_bytes).then_some(begun)
            }
            (Known::NumpyDtype, [code, align, copy]) => {
                NumberKind::from_code(self.text_of(*code)?)?;
                (self.is_flag(*align, false) && self.is_flag(*copy, true)).then_some(begun)
            }
            (Known::NumpyScalar, [dtype, data]) => {
                let Node::NumpyDtype(dtype) = self.node(*dtype) else {
                    return None;
                };
                let Node::Bytes(data) = self.node(*data) else {
                    return None;
                };
                NumpyScalar::new(*dtype, data).map(|scalar| Node::NumpyScalar(Box::new(scalar)))
            }
            (Known::Bytes, []) => Some(Node::Bytes(Arc::default())),
            _ => None,
        }
    }

    /// The object that a begun one is with this state, `None` where it is none of numbers.
    pub(super) fn numpy_object(
        &mut self,
        target: NodeId,
        state: NodeId,
    ) -> Result<Option<Node>, PickleError> {
        let Node::Call { callable, args } = *self.node(target) else {
            return Ok(None);
        };
        let Node::Global(global) = self.node(callable) else {
            return Ok(None);
        };
        match global.known {
            Some(Known::NumpyDtype) => Ok(self.numpy_dtype(args, state).map(Node::NumpyDtype)),
            Some(Known::NumpyReconstruct) => {
                let array = self.numpy_array(state)?;
                Ok(array.map(|array| Node::NumpyArray(Box::new(array))))
            }
            _ => Ok(None),
        }
    }

    fn numpy_dtype(&self, args: NodeId, state: NodeId) -> Option<NumpyDtype> {
        let (Node::Tuple(args), Node::Tuple(state)) = (self.node(args), self.node(state)) else {
            return None;
        };
        let kind = NumberKind::from_code(self.text_of(*args.first()?)?)?;
        let [
            version,
            order,
            parts,
            names,
            fields,
            itemsize,
            alignment,
            flags,
        ] = **state
        else {
            return None;
        };
        let has_no_parts = [parts, names, fields]
            .iter()
            .all(|id| matches!(self.node(*id), Node::None));
        let is_plain = self.is_int(version, DTYPE_VERSION)
            && has_no_parts
            && self.is_int(itemsize, -1)
            && self.is_int(alignment, -1)
            && self.is_int(flags, 0);
        let is_big_endian = match (kind.itemsize(), self.text_of(order)?) {
            (1, b"|") | (2.., b"<") => false,
            (2.., b">") => true,
            _ => return None,
        };
        is_plain.then_some(NumpyDtype {
            kind,
            is_big_endian,
        })
    }

    fn numpy_array(&mut self, state: NodeId) -> Result<Option<NumpyArray>, PickleError> {
        let Node::Tuple(state) = self.node(state) else {
            return Ok(None);
        };
        let [version, shape, dtype, is_fortran, data] = **state else {
            return Ok(None);
        };
        let (Node::NumpyDtype(dtype), Node::Bool(is_fortran), Node::Bytes(data)) =
            (self.node(dtype), self.node(is_fortran), self.node(data))
        else {
            return Ok(None);
        };
        let (dtype, is_fortran, data) = (*dtype, *is_fortran, Arc::clone(data));
        if !self.is_int(version, ARRAY_VERSION) {
            return Ok(None);
        }
        let Some(shape) = self.array_shape(shape)? else {
            return Ok(None);
        };
        let itemsize = dtype.kind.itemsize();
        let needed = array_nbytes(&shape, itemsize);
        let needed = needed.ok_or_else(|| self.array_error(ArrayProblem::Overflow))?;
        if needed != data.len() as u64 {
            return Err(self.array_error(ArrayProblem::Length {
                needed,
                found: data.len(),
            }));
        }
        Ok(Some(NumpyArray {
            dtype,
            shape,
            is_fortran,
            data,
        }))
    }

    fn array_shape(&mut self, shape: NodeId) -> Result<Option<Box<[u64]>>, PickleError> {
        let count = match self.node(shape) {
            Node::Tuple(items) => items.len(),
            _ => return Ok(None),
        };
        if count > MAX_DIMS {
            return Ok(None);
        }
        self.charge(count)?;
        let Node::Tuple(items) = self.node(shape) else {
            return Ok(None);
        };
        let mut lengths = Vec::with_capacity(count);
        for item in items {
            match *self.node(*item) {
                Node::Int(length) => match u64::try_from(length) {
                    Ok(length) => lengths.push(length),
                    Err(_) => return Err(self.array_error(ArrayProblem::Negative { length })),
                },
                Node::Long(_) => return Err(self.array_error(ArrayProblem::Overflow)),
                _ => return Ok(None),
            }
        }
        Ok(Some(lengths.into_boxed_slice()))
    }

    fn is_array_class(&self, id: NodeId) -> bool {
        matches!(self.node(id), Node::Global(class) if class.known == Some(Known::NumpyArray))
    }

    fn is_int(&self, id: NodeId, wanted: i64) -> bool {
        *self.node(id) == Node::Int(wanted)
    }

    /// A bool, or the int that numpy wrote for it up to 1.19.
    fn is_flag(&self, id: NodeId, wanted: bool) -> bool {
        match self.node(id) {
            Node::Bool(value) => *value == wanted,
            Node::Int(value) => *value == i64::from(wanted),
            _ => false,
        }
    }

    fn array_error(&self, problem: ArrayProblem) -> PickleError {
        PickleError::Array {
            offset: self.cursor.offset,
            problem,
        }
    }
}

/// Bytes of an array, `None` beyond 63 bits. As numpy counts, which leaves out the lengths that are
/// zero where it looks for an overflow.
fn array_nbytes(shape: &[u64], itemsize: u8) -> Option<u64> {
    let mut nbytes = u64::from(itemsize);
    for length in shape.iter().filter(|length| **length > 0) {
        nbytes = nbytes.checked_mul(*length)?;
    }
    i64::try_from(nbytes).ok()?;
    Some(if shape.contains(&0) { 0 } else { nbytes })
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn halves_are_what_they_are_worth() {
        for (bits, expected) in [
            (0x0000, 0.0),
            (0x0001, 2.0_f64.powi(-24)),
            (0x03ff, 1023.0 * 2.0_f64.powi(-24)),
            (0x0400, 2.0_f64.powi(-14)),
            (0x3c00, 1.0),
            (0x3555, 0.333_251_953_125),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x7c00, f64::INFINITY),
            (0xfc00, f64::NEG_INFINITY),
        ] {
            assert_eq!(half(bits).to_bits(), f64::to_bits(expected), "{bits:#06x}");
        }
        assert_eq!(half(0x8000).to_bits(), (-0.0_f64).to_bits());
        assert!(half(0x7e01).is_nan());
    }
}
