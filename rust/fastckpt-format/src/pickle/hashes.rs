//! What Python's `hash()` gives for the keys of dicts and the elements of sets.
//!
//! Numbers and tuples hash the same in every process, so whoever writes a file can choose them. The
//! hashes of texts and bytes are secret to a process, and those of other objects are their
//! addresses: any hash that tells them apart stands for them.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::graph::{Graph, Node, NodeId};
use super::numpy::Number;

/// Python's `sys.hash_info.modulus`: numbers hash to their remainder.
const MODULUS: u64 = (1 << MODULUS_BITS) - 1;
const MODULUS_BITS: u32 = 61;
/// `sys.hash_info.inf`.
const INFINITY: u64 = 314_159;
/// `sys.hash_info.imag`.
const IMAGINARY: u64 = 1_000_003;
/// -1 is how C code says that there is no hash, so this stands for it.
const MINUS_TWO: u64 = u64::MAX - 1;

/// The constants of xxHash (Python's `Objects/tupleobject.c`, since 3.8).
const PRIME_1: u64 = 11_400_714_785_074_694_791;
const PRIME_2: u64 = 14_029_467_366_897_019_727;
const PRIME_5: u64 = 2_870_177_450_012_600_261;
const LENGTH_SALT: u64 = 3_527_539;
const TUPLE_OF_MINUS_ONE: u64 = 1_546_275_796;

/// The hashes of the nodes of a graph.
pub(super) struct Hashes<'g> {
    graph: &'g Graph,
    /// Those of all tuples, by ascending id, once one was asked for.
    tuples: Option<Vec<(NodeId, u64)>>,
}

impl<'g> Hashes<'g> {
    pub(super) fn new(graph: &'g Graph) -> Self {
        let tuples = None;
        Self { graph, tuples }
    }

    /// The hash of a node.
    pub(super) fn of(&mut self, id: NodeId) -> u64 {
        if !matches!(self.graph.node(id), Node::Tuple(_)) {
            return simple(self.graph, id);
        }
        let graph = self.graph;
        let tuples = self.tuples.get_or_insert_with(|| all_tuples(graph));
        find(tuples, id)
    }
}

/// Hashes all tuples: one refers to nodes with a smaller id only, so this takes no recursion.
fn all_tuples(graph: &Graph) -> Vec<(NodeId, u64)> {
    let mut hashes = Vec::new();
    for (node, id) in graph.nodes.iter().zip((0..).map(NodeId)) {
        if let Node::Tuple(items) = node {
            let lanes = items.iter().map(|item| match graph.node(*item) {
                Node::Tuple(_) => find(&hashes, *item),
                _ => simple(graph, *item),
            });
            let hash = tuple(lanes, items.len());
            hashes.push((id, hash));
        }
    }
    hashes
}

fn find(tuples: &[(NodeId, u64)], id: NodeId) -> u64 {
    let found = tuples.binary_search_by_key(&id, |(id, _)| *id).ok();
    let found = found.and_then(|at| tuples.get(at));
    found.map_or(0, |(_, hash)| *hash)
}

/// The hash of what is not a tuple.
fn simple(graph: &Graph, id: NodeId) -> u64 {
    match graph.node(id) {
        Node::Bool(value) => u64::from(*value),
        Node::Int(value) => int(*value),
        Node::Long(bytes) => long(bytes),
        Node::Float(value) if !value.is_nan() => float(*value),
        Node::Complex(real, imaginary) if !real.is_nan() && !imaginary.is_nan() => {
            complex(*real, *imaginary)
        }
        // numpy's hash as Python's numbers of the same value.
        Node::NumpyScalar(scalar) => match scalar.number() {
            Number::Bool(value) => u64::from(value),
            Number::Int(value) => int(value),
            Number::UInt(value) => signed(value % MODULUS, false),
            Number::Float(value) if !value.is_nan() => float(value),
            Number::Complex(real, imaginary) if !real.is_nan() && !imaginary.is_nan() => {
                complex(real, imaginary)
            }
            _ => secret(&id.0.to_le_bytes()),
        },
        Node::Size(lengths) => {
            let of_length = |length: &i64| signed(length.unsigned_abs() % MODULUS, *length < 0);
            tuple(lengths.iter().map(of_length), lengths.len())
        }
        Node::Text(text) => secret(graph.text(*text)),
        Node::Bytes(bytes) => secret(bytes),
        _ => secret(&id.0.to_le_bytes()),
    }
}

fn int(value: i64) -> u64 {
    signed(value.unsigned_abs() % MODULUS, value < 0)
}

fn complex(real: f64, imaginary: f64) -> u64 {
    let imaginary = float(imaginary).wrapping_mul(IMAGINARY);
    not_minus_one(float(real).wrapping_add(imaginary))
}

fn secret(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn signed(remainder: u64, is_negative: bool) -> u64 {
    let hash = if is_negative {
        remainder.wrapping_neg()
    } else {
        remainder
    };
    not_minus_one(hash)
}

fn not_minus_one(hash: u64) -> u64 {
    if hash == u64::MAX { MINUS_TWO } else { hash }
}

/// An int from little-endian two's complement.
fn long(bytes: &[u8]) -> u64 {
    let is_negative = bytes.last().is_some_and(|last| *last >= 0x80);
    // The magnitude of a negative number is its complement, plus 1.
    let flip = if is_negative { 0xff } else { 0 };
    let digits = bytes.iter().rev().map(|byte| u64::from(byte ^ flip));
    let remainder = digits.fold(0, |so_far, digit| {
        // Multiplying by 256 rotates the 61 bits.
        let high = so_far >> (MODULUS_BITS - u8::BITS);
        let rotated = ((so_far << u8::BITS) & MODULUS) | high;
        rotated.wrapping_add(digit) % MODULUS
    });
    signed(
        remainder.wrapping_add(u64::from(is_negative)) % MODULUS,
        is_negative,
    )
}

/// Python's `_Py_HashDouble`, of what is not NaN.
fn float(value: f64) -> u64 {
    const MANTISSA_BITS: u32 = 52;
    const EXPONENT_MASK: u64 = 0x7ff;
    if value.is_infinite() {
        return signed(INFINITY, value < 0.0);
    }
    let bits = value.to_bits();
    let fraction = bits & ((1 << MANTISSA_BITS) - 1);
    let exponent = (bits >> MANTISSA_BITS) & EXPONENT_MASK;
    // The value is mantissa * 2^(power - 1075), which keeps the power positive.
    let (mantissa, power) = if exponent == 0 {
        (fraction, 1)
    } else {
        (fraction | (1 << MANTISSA_BITS), exponent)
    };
    // 2^61 is 1, so only the power modulo 61 counts; 1075 is 38 modulo 61.
    // The power has 11 bits.
    let turns = u32::try_from(power).unwrap_or(0).wrapping_add(23) % MODULUS_BITS;
    let low = mantissa.checked_shl(turns).unwrap_or(0) & MODULUS;
    let high = mantissa
        .checked_shr(MODULUS_BITS.saturating_sub(turns))
        .unwrap_or(0);
    signed((low | high) % MODULUS, value < 0.0)
}

fn tuple(lanes: impl Iterator<Item = u64>, count: usize) -> u64 {
    let mixed = lanes.fold(PRIME_5, |so_far, lane| {
        let sum = so_far.wrapping_add(lane.wrapping_mul(PRIME_2));
        sum.rotate_left(31).wrapping_mul(PRIME_1)
    });
    let salt = (count as u64) ^ (PRIME_5 ^ LENGTH_SALT);
    match mixed.wrapping_add(salt) {
        u64::MAX => TUPLE_OF_MINUS_ONE,
        hash => hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pickle::{Limits, decode};

    /// The hash of what this pickle makes, in the sign that Python prints.
    fn hash_of(body: &[u8]) -> Option<i64> {
        let pickle = [b"\x80\x02", body, b"."].concat();
        let graph = decode(pickle, Limits::default()).ok()?;
        Some(Hashes::new(&graph).of(graph.root()).cast_signed())
    }

    fn hash_of_long(bytes: &[u8]) -> Option<i64> {
        let length = u8::try_from(bytes.len()).ok()?;
        hash_of(&[&[0x8a, length], bytes].concat())
    }

    // What Python 3.11 prints for `hash()` of each.

    #[test]
    fn ints_hash_as_in_python() {
        for (number, expected) in [
            (0_i64, 0),
            (1, 1),
            (-1, -2),
            (-2, -2),
            ((1 << 61) - 2, 2_305_843_009_213_693_950),
            ((1 << 61) - 1, 0),
            (1 << 61, 1),
            (1 - (1 << 61), 0),
            (-(1 << 61), -2),
            (i64::MAX, 3),
            (i64::MIN, -4),
        ] {
            assert_eq!(hash_of_long(&number.to_le_bytes()), Some(expected));
        }
        let mut power_of_1000 = [0; 126];
        power_of_1000[125] = 0xff;
        let long: [(&[u8], i64); 5] = [
            (&[0, 0, 0, 0, 0, 0, 0, 0, 1], 8),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 255], -8),
            (&[57, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16], 549_755_826_233),
            (
                &[
                    199, 207, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 239,
                ],
                -549_755_826_233,
            ),
            (&power_of_1000, -16_777_216),
        ];
        for (bytes, expected) in long {
            assert_eq!(hash_of_long(bytes), Some(expected));
        }
    }

    #[test]
    fn floats_hash_as_in_python() {
        for (number, expected) in [
            (0.0_f64, 0),
            (-0.0, 0),
            (1.0, 1),
            (-1.0, -2),
            (-2.0, -2),
            (0.5, 1_152_921_504_606_846_976),
            (1e300, 1_224_995_262_755_759_164),
            (1e-300, 482_449_582_752_280_463),
            (5e-324, 16_777_216),
            (f64::MIN_POSITIVE, 32_768),
            (f64::MIN_POSITIVE / 2.0, 16_384),
            (std::f64::consts::PI, 326_490_430_436_040_707),
            (-std::f64::consts::E, -1_656_245_132_797_518_850),
            (2.0_f64.powi(61), 1),
            (2.0_f64.powi(1023), 140_737_488_355_328),
            (f64::INFINITY, 314_159),
            (f64::NEG_INFINITY, -314_159),
            (123_456_789.125, 288_230_376_275_168_533),
        ] {
            let body = [b"G".as_slice(), &number.to_be_bytes()].concat();
            assert_eq!(hash_of(&body), Some(expected), "{number}");
        }
        let complex = b"c__builtin__\ncomplex\nG\x3f\xf8\0\0\0\0\0\0G\xc0\0\0\0\0\0\0\0\x86R";
        assert_eq!(hash_of(complex), Some(1_152_921_504_604_846_971));
    }

    #[test]
    fn tuples_hash_as_in_python() {
        for (body, expected) in [
            (b")".as_slice(), 5_740_354_900_026_072_187),
            (b"K\x01\x85", -6_644_214_454_873_602_895),
            (b"K\x01K\x02\x86", -3_550_055_125_485_641_917),
            (
                b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86",
                960_947_337_673_586_213,
            ),
            (b"K\x01K\x02K\x03\x85\x86\x86", -2_939_794_377_302_041_199),
            (
                b"ctorch\nSize\nK\x01K\x02\x86\x85R",
                -3_550_055_125_485_641_917,
            ),
        ] {
            assert_eq!(hash_of(body), Some(expected));
        }
    }
}
