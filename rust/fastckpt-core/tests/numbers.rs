//! Averages and comparisons of the records of archives, against the arithmetic done plainly.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/archives.rs"]
mod archives;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use archives::archive_of;
use fastckpt_core::Error;
use fastckpt_core::average::{Average, Averaged};
use fastckpt_core::compare::{Comparison, Pair, Place, Side, compare};
use fastckpt_core::format::pickle::Dtype;
use fastckpt_core::job::Unobserved;
use fastckpt_core::numeric;
use fastckpt_core::read::Archive;
use fastckpt_core::views::View;
use proptest::prelude::*;

fn archive(storages: &[Vec<u8>]) -> Archive {
    opened(archive_of(storages, 64))
}

fn opened(bytes: Vec<u8>) -> Archive {
    Archive::from_bytes(Arc::new(bytes), "model.pt".into()).unwrap()
}

fn f32s(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_ne_bytes).collect()
}

fn whole(dtype: Dtype, numel: u64, archives: usize) -> Averaged {
    Averaged {
        dtype,
        places: vec![("0".to_owned(), View::flat(numel)); archives],
    }
}

fn averaged(
    archives: &[Archive],
    weights: &[f64],
    tensors: &[Averaged],
    threads: usize,
) -> Result<Vec<Vec<u8>>, Error> {
    let archives: Vec<_> = archives.iter().collect();
    let average = Average::new(&archives, weights, tensors)?;
    let spans = average.to_memory(NonZeroUsize::new(threads), &mut Unobserved)?;
    Ok(spans.iter().map(|span| span.as_slice().to_vec()).collect())
}

fn compared(a: &Archive, b: &Archive, pairs: &[Pair]) -> Result<Vec<Comparison>, Error> {
    let (a, b) = (Side::Archive(a), Side::Archive(b));
    compare(a, b, pairs, NonZeroUsize::new(2), &mut Unobserved)
}

fn pair_of(dtype: Dtype, numel: u64) -> Pair {
    let place = || Place::Record("0".to_owned(), View::flat(numel));
    Pair {
        dtypes: [dtype; 2],
        numel,
        a: place(),
        b: place(),
    }
}

fn floating() -> impl Strategy<Value = Dtype> {
    let floating = |dtype: &&Dtype| numeric::arithmetic(**dtype) == numeric::Arithmetic::Floating;
    let dtypes: Vec<Dtype> = Dtype::ALL.iter().filter(floating).copied().collect();
    prop::sample::select(dtypes)
}

/// The means in float64; where the sums overflow and nothing is infinite, from numbers 2^600 smaller.
fn plain_means(dtype: Dtype, parts: &[Vec<u8>], weights: &[f64]) -> Vec<f64> {
    let components = parts[0].len() / numeric::component_nbytes(dtype);
    let decoded: Vec<Vec<f64>> = parts
        .iter()
        .map(|part| {
            let mut numbers = vec![0.0; components];
            numeric::decode(dtype, part, &mut numbers);
            numbers
        })
        .collect();
    let total: f64 = weights.iter().sum();
    let mean = |component: usize, scale: f64| {
        let weighted = decoded
            .iter()
            .zip(weights)
            .filter(|(_, weight)| **weight != 0.0);
        let products = weighted.map(|(numbers, weight)| weight * (numbers[component] * scale));
        products.fold(-0.0, |sum, product| sum + product) / total / scale
    };
    (0..components)
        .map(|component| {
            let plain = mean(component, 1.0);
            let overflows = decoded.iter().all(|numbers| numbers[component].is_finite());
            if overflows && !plain.is_finite() {
                mean(component, 2_f64.powi(-600))
            } else {
                plain
            }
        })
        .collect()
}

proptest! {
    #[test]
    fn the_mean_is_that_of_the_decoded_numbers(
        dtype in floating(),
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 6400), 1..5),
        weights in prop::collection::vec(0.0..4.0_f64, 4),
        threads in 1..4_usize,
    ) {
        let weights = &weights[..parts.len()];
        prop_assume!(weights.iter().sum::<f64>() > 0.0);
        let numel = 6400 / dtype.itemsize();
        let archives: Vec<_> = parts.iter().map(|part| archive(std::slice::from_ref(part))).collect();
        let found = averaged(&archives, weights, &[whole(dtype, numel, parts.len())], threads).unwrap();
        let components = 6400 / numeric::component_nbytes(dtype);
        let sums = plain_means(dtype, &parts, weights);
        let mut expected = vec![0; 6400];
        numeric::encode(dtype, &sums, &mut expected);
        let (mut one, mut other) = (vec![0.0; components], vec![0.0; components]);
        numeric::decode(dtype, &found[0], &mut one);
        numeric::decode(dtype, &expected, &mut other);
        for (one, other) in one.iter().zip(&other) {
            prop_assert!(one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan());
        }
    }

    #[test]
    fn no_place_is_read_outside_its_record(
        offset in any::<u64>(),
        size in prop::collection::vec(any::<u64>(), 0..3),
        stride in prop::collection::vec(any::<u64>(), 0..3),
        small in any::<bool>(),
    ) {
        let cut = |numbers: Vec<u64>| -> Vec<u64> {
            numbers.into_iter().map(|number| if small { number % 9 } else { number }).collect()
        };
        let view = View {
            offset: if small { offset % 9 } else { offset },
            size: cut(size),
            stride: cut(stride),
        };
        let archive = [archive(&[f32s((0..16_u8).map(f32::from))])];
        let tensor = Averaged {
            dtype: Dtype::Float32,
            places: vec![("0".to_owned(), view.clone())],
        };
        // Either it lies in the record or it is refused. (Both tests of what lies there are elsewhere.)
        if let Ok(found) = averaged(&archive, &[1.0], &[tensor], 1) {
            prop_assert_eq!(found[0].len() as u64, view.numel().unwrap() * 4);
        }
    }
}

#[test]
fn every_flipped_bit_of_an_input_is_found() {
    let storages = [f32s((0..8_u8).map(f32::from)), f32s([1.0; 8])];
    let good = archive_of(&storages, 64);
    let index = Archive::from_bytes(Arc::new(good.clone()), "model.pt".into()).unwrap();
    let payload = |name| {
        let (_, entry) = index.index().find(name).unwrap();
        let start = usize::try_from(entry.payload_offset).unwrap();
        start..start + 32
    };
    let flat = |key: &str| vec![(key.to_owned(), View::flat(8))];
    // Read as a whole, in two parts, and with a step.
    let view = |offset, stride| {
        let (size, stride) = (vec![4], vec![stride]);
        vec![(
            "1".to_owned(),
            View {
                offset,
                size,
                stride,
            },
        )]
    };
    let averaged_as = |places| Averaged {
        dtype: Dtype::Float32,
        places,
    };
    for tensors in [
        vec![averaged_as(flat("0")), averaged_as(flat("1"))],
        vec![
            averaged_as(flat("0")),
            averaged_as(view(0, 1)),
            averaged_as(view(4, 1)),
        ],
        vec![averaged_as(flat("0")), averaged_as(view(1, 2))],
    ] {
        assert!(averaged(&[opened(good.clone())], &[1.0], &tensors, 2).is_ok());
        for (name, tensor) in [("data/0", "t0"), ("data/1", "t1")] {
            for position in payload(name) {
                let mut changed = good.clone();
                changed[position] ^= 1 << (position % 8);
                match averaged(&[opened(changed)], &[1.0], &tensors, 2) {
                    Err(Error::Checksum(found)) => {
                        assert_eq!(
                            (found.record.as_str(), &found.tensors[..]),
                            (name, &[tensor.to_owned()][..])
                        );
                    }
                    other => panic!("byte {position} of {name}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_missing_or_short_record_is_refused() {
    let archives = [archive(&[f32s([1.0; 4])])];
    let problem = |tensor: Averaged| match averaged(&archives, &[1.0], &[tensor], 1) {
        Err(Error::Record { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    let mut missing = whole(Dtype::Float32, 4, 1);
    missing.places[0].0 = "7".to_owned();
    assert_eq!(problem(missing), "is missing from the archive");
    let short = whole(Dtype::Float32, 5, 1);
    assert_eq!(problem(short), "has 16 bytes, and data.pkl asks for 20");
}

#[test]
fn large_and_small_tensors_lie_apart_in_memory() {
    let sizes = [3_usize, 1 << 20, 0, 5, (4 << 20) + 1, 7, 9];
    let storages: Vec<Vec<u8>> = sizes
        .iter()
        .enumerate()
        .map(|(number, size)| vec![u8::try_from(number).unwrap(); *size])
        .collect();
    let tensors: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(number, size)| Averaged {
            dtype: Dtype::UInt8,
            places: vec![(number.to_string(), View::flat(*size as u64))],
        })
        .collect();
    let found = averaged(&[archive(&storages)], &[1.0], &tensors, 3).unwrap();
    assert_eq!(found, storages);
}

#[test]
fn comparisons_count_what_differs() {
    let a = archive(&[f32s([1.0, 2.0, f32::NAN, f32::INFINITY, 0.0])]);
    let b = archive(&[f32s([1.0, 4.0, f32::NAN, 1.0, -0.0])]);
    let found = compared(&a, &b, &[pair_of(Dtype::Float32, 5)]).unwrap();
    let expected = Comparison {
        differing: 3,
        non_finite: 1,
        finite: 3,
        max_abs: 2.0,
        sum_abs: 2.0,
        sum_squares: 4.0,
        reference_squares: 5.0,
        was_read: true,
        was_checked: [true, true],
    };
    assert_eq!(found, [expected]);
    let same = compared(&a, &a, &[pair_of(Dtype::Float32, 5)]).unwrap();
    assert_eq!((same[0].was_read, same[0].differing), (false, 0));
}

#[test]
fn a_damaged_record_is_no_difference() {
    let storage = f32s([1.0; 8]);
    let a = archive(&[f32s([2.0; 8])]);
    let mut damaged = archive_of(&[storage], 64);
    let start = damaged
        .windows(4)
        .position(|bytes| bytes == 1.0_f32.to_ne_bytes());
    damaged[start.unwrap()] ^= 1;
    let outcome = compared(&a, &opened(damaged), &[pair_of(Dtype::Float32, 8)]);
    assert!(matches!(outcome, Err(Error::Checksum(_))), "{outcome:?}");
}

/// An archive in memory that counts how often it is looked at.
struct Counted {
    bytes: Vec<u8>,
    looks: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        self.looks.fetch_add(1, Ordering::Relaxed);
        &self.bytes
    }
}

#[test]
fn a_damaged_record_of_a_strided_tensor_is_read_once() {
    let mut bytes = archive_of(&[f32s([1.0; 8])], 64);
    let start = bytes
        .windows(4)
        .position(|bytes| bytes == 1.0_f32.to_ne_bytes());
    bytes[start.unwrap()] ^= 1;
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = Counted {
        bytes,
        looks: Arc::clone(&looks),
    };
    let archive = Archive::from_bytes(Arc::new(counted), "model.pt".into()).unwrap();
    let transposed = View {
        offset: 0,
        size: vec![2, 4],
        stride: vec![1, 2],
    };
    let tensor = Averaged {
        dtype: Dtype::Float32,
        places: vec![("0".to_owned(), transposed)],
    };
    let average = Average::new(&[&archive], &[1.0], &[tensor]).unwrap();
    let outcome = average.run(None, &mut Unobserved, |maker, _observer| {
        let mut out = [0; 16];
        let first = maker.make(0, 0, &mut out).unwrap_err();
        let looks_until_then = looks.load(Ordering::Relaxed);
        let second = maker.make(0, 16, &mut out).unwrap_err();
        assert_eq!(looks.load(Ordering::Relaxed), looks_until_then);
        assert!(matches!(first, Error::Checksum(_)), "{first:?}");
        assert_eq!(second.to_string(), first.to_string());
        Err::<(), _>(second)
    });
    assert!(matches!(outcome, Err(Error::Checksum(_))), "{outcome:?}");
}
