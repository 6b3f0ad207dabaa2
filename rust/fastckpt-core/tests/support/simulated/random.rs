//! Random numbers that are the same for the same seed, everywhere and always.

/// The `SplitMix64` sequence of one seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence of its own for the `number`-th part of something that has one seed.
    pub fn of_part(seed: u64, number: u64) -> Self {
        Self(Self(seed ^ Self(number).draw()).draw())
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Below `bound`, which is small: the bias of the remainder does not matter here.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.draw() % bound as u64).unwrap()
    }

    /// True `eighths` times out of eight.
    pub fn in_eighths(&mut self, eighths: u64) -> bool {
        self.draw() % 8 < eighths
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
