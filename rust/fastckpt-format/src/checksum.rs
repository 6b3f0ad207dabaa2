//! CRC-32 of records that are read or written in pieces, in any order.

use crc32fast::Hasher;

/// The CRC-32 of `bytes`.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The CRC-32 of two adjacent pieces from the CRC-32 of each; `next_nbytes` is the length of the
/// second. Costs a few hundred nanoseconds, whatever the lengths.
#[must_use]
pub fn combine(first: u32, next: u32, next_nbytes: u64) -> u32 {
    let mut hasher = Hasher::new_with_initial(first);
    hasher.combine(&Hasher::new_with_initial_len(next, next_nbytes));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )]
    use super::*;

    #[test]
    fn pieces_combine_to_the_whole() {
        let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        for cut in [0, 1, 4096, 9_999, 10_000] {
            let (first, next) = bytes.split_at(cut);
            let combined = combine(crc32(first), crc32(next), next.len() as u64);
            assert_eq!(combined, crc32(&bytes), "cut at {cut}");
        }
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
