//! Where the elements of a tensor lie in the bytes of its storage.

use fastckpt_format::pickle::Dtype;

/// A tensor as a view of a storage: sizes, strides and offset are in elements, as torch has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Element of the storage that is the first of the tensor.
    pub offset: u64,
    /// Its shape.
    pub size: Vec<u64>,
    /// Elements of the storage from one to the next, for each dimension.
    pub stride: Vec<u64>,
}

/// A view that has been compared with the bytes that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First byte in the storage.
    pub(crate) start: u64,
    /// Bytes of all its elements, one after the other.
    pub(crate) nbytes: u64,
    /// Whether its elements lie in the storage one after the other.
    pub(crate) is_contiguous: bool,
}

impl View {
    /// `numel` elements from the first of the storage on.
    #[must_use]
    pub fn flat(numel: u64) -> Self {
        Self {
            offset: 0,
            size: vec![numel],
            stride: vec![1],
        }
    }

    /// Number of elements; `None` where it exceeds 63 bits.
    #[must_use]
    pub fn numel(&self) -> Option<u64> {
        if self.size.contains(&0) {
            return Some(0);
        }
        let product = |so_far: u64, size: &u64| so_far.checked_mul(*size);
        self.size.iter().try_fold(1, product).filter(fits)
    }

    /// Finds where the elements lie in a storage of `storage_nbytes` bytes.
    ///
    /// # Errors
    /// What is wrong: the rest of a sentence that begins with the storage.
    pub(crate) fn within(&self, dtype: Dtype, storage_nbytes: u64) -> Result<Extent, String> {
        let itemsize = dtype.itemsize();
        let too_large = || "is asked for more bytes than there can be".to_owned();
        if self.size.len() != self.stride.len() {
            let (sizes, strides) = (self.size.len(), self.stride.len());
            return Err(format!(
                "is viewed with {sizes} sizes and {strides} strides"
            ));
        }
        let numel = self.numel().ok_or_else(too_large)?;
        let nbytes = numel
            .checked_mul(itemsize)
            .filter(fits)
            .ok_or_else(too_large)?;
        if numel == 0 {
            return Ok(Extent {
                start: 0,
                nbytes: 0,
                is_contiguous: true,
            });
        }
        let last = |so_far: u64, (size, stride): (&u64, &u64)| {
            so_far.checked_add((size - 1).checked_mul(*stride)?)
        };
        let dimensions = self.size.iter().zip(&self.stride);
        let needed = dimensions
            .clone()
            .try_fold(self.offset, last)
            .and_then(|last| last.checked_add(1)?.checked_mul(itemsize))
            .ok_or_else(too_large)?;
        if needed > storage_nbytes {
            return Err(format!(
                "has {storage_nbytes} bytes, and data.pkl asks for {needed}"
            ));
        }
        Ok(Extent {
            start: self.offset * itemsize,
            nbytes,
            is_contiguous: self.is_contiguous(),
        })
    }

    /// Whether the elements, in their order, are neighbours. Strides of dimensions of one element are
    /// used by nobody.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (size, stride) in self.size.iter().zip(&self.stride).rev() {
            if *size != 1 && *stride != expected {
                return false;
            }
            // The product of all sizes is known to fit.
            expected *= size;
        }
        true
    }

    /// Copies elements of `N` bytes, from the element with number `first` on, out of the storage; `out`
    /// says how many. All are known to lie in it.
    fn gather_of<const N: usize>(&self, storage: &[u8], first: u64, out: &mut [u8]) {
        let elements = storage.as_chunks::<N>().0;
        let mut position = self.position_of(first);
        let mut at = self.offset + dot(&position, &self.stride);
        for out in out.as_chunks_mut::<N>().0 {
            *out = elements[usize::try_from(at).unwrap_or(usize::MAX)];
            at = self.step(&mut position, at);
        }
    }

    /// Copies elements of `itemsize` bytes out of the storage: see [`View::gather_of`].
    pub(crate) fn gather(&self, itemsize: u64, storage: &[u8], first: u64, out: &mut [u8]) {
        match itemsize {
            1 => self.gather_of::<1>(storage, first, out),
            2 => self.gather_of::<2>(storage, first, out),
            4 => self.gather_of::<4>(storage, first, out),
            8 => self.gather_of::<8>(storage, first, out),
            16 => self.gather_of::<16>(storage, first, out),
            _ => unreachable!("torch has no elements of {itemsize} bytes"),
        }
    }

    /// The indices of the element with this number.
    fn position_of(&self, number: u64) -> Vec<u64> {
        let mut left = number;
        let mut position = vec![0; self.size.len()];
        for (index, size) in position.iter_mut().zip(&self.size).rev() {
            *index = left % size;
            left /= size;
        }
        position
    }

    /// Goes on to the next element; returns where it lies.
    fn step(&self, position: &mut [u64], mut at: u64) -> u64 {
        let dimensions = self.size.iter().zip(&self.stride);
        for (index, (size, stride)) in position.iter_mut().zip(dimensions).rev() {
            *index += 1;
            if *index < *size {
                return at + stride;
            }
            at -= (size - 1) * stride;
            *index = 0;
        }
        at
    }
}

fn dot(position: &[u64], stride: &[u64]) -> u64 {
    position.iter().zip(stride).map(|(a, b)| a * b).sum()
}

/// Whether torch could have such a number: it counts in signed 64 bits.
#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "what Option::filter calls"
)]
fn fits(number: &u64) -> bool {
    i64::try_from(*number).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(offset: u64, size: &[u64], stride: &[u64]) -> View {
        View {
            offset,
            size: size.to_vec(),
            stride: stride.to_vec(),
        }
    }

    #[test]
    fn elements_are_gathered_in_the_order_of_the_tensor() {
        let storage: Vec<u8> = (0..12).collect();
        let transposed = view(1, &[2, 3], &[1, 4]);
        for first in 0..6 {
            let mut out = vec![0; 6 - first];
            transposed.gather(1, &storage, first as u64, &mut out);
            assert_eq!(out, [1, 5, 9, 2, 6, 10][first..]);
        }
        let expanded = view(2, &[3, 2], &[0, 1]);
        let mut out = [0; 12];
        expanded.gather(2, &storage, 0, &mut out);
        assert_eq!(out, [4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7]);
        let mut scalar = [0];
        view(7, &[], &[]).gather(1, &storage, 0, &mut scalar);
        assert_eq!(scalar, [7]);
    }

    #[test]
    fn a_view_has_to_lie_in_its_storage() {
        let f32 = Dtype::Float32;
        let good = view(2, &[3, 4], &[4, 1]).within(f32, 56);
        let (start, nbytes, is_contiguous) = (8, 48, true);
        assert_eq!(
            good,
            Ok(Extent {
                start,
                nbytes,
                is_contiguous
            })
        );
        let problem = |view: View| view.within(f32, 55).err();
        assert_eq!(
            problem(view(2, &[3, 4], &[4, 1])).as_deref(),
            Some("has 55 bytes, and data.pkl asks for 56")
        );
        for huge in [
            view(u64::MAX, &[1], &[1]),
            view(0, &[u64::MAX, 2], &[0, 0]),
            view(0, &[1 << 62], &[0]),
            view(0, &[3], &[u64::MAX]),
        ] {
            assert_eq!(
                problem(huge).as_deref(),
                Some("is asked for more bytes than there can be")
            );
        }
        assert_eq!(
            view(9, &[0, 7], &[7, 1]).within(f32, 0).map(|e| e.nbytes),
            Ok(0)
        );
        assert_eq!(
            problem(view(0, &[1], &[])).as_deref(),
            Some("is viewed with 1 sizes and 0 strides")
        );
    }

    #[test]
    fn contiguous_is_what_torch_calls_so() {
        for (size, stride, contiguous) in [
            (&[][..], &[][..], true),
            (&[5], &[1], true),
            (&[5], &[2], false),
            (&[1, 5], &[99, 1], true),
            (&[5, 1], &[1, 99], true),
            (&[2, 3], &[3, 1], true),
            (&[2, 3], &[1, 2], false),
            (&[2, 3], &[0, 1], false),
        ] {
            assert_eq!(
                view(0, size, stride).is_contiguous(),
                contiguous,
                "{size:?} {stride:?}"
            );
        }
    }
}
