//! A mutator for archives: what it changes, it makes consistent again half of the time.

use libfuzzer_sys::fuzzer_mutate;

use crate::zipfile::{Contents, repair};

/// Names that mean something to a reader.
const NAMES: [&str; 10] = [
    "data.pkl",
    "data/0",
    "data/1",
    "byteorder",
    "version",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
    "constants.pkl",
    "DATA.PKL",
];

/// Random numbers out of one seed: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }
}

/// Changes the first `size` bytes of `data` to at most `max_size`, and returns how many there are.
pub fn mutate_archive(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random(u64::from(seed));
    match random.below(8) {
        // Any byte, and the checksums with it: what a damaged or forged file is like.
        0..4 => fuzzer_mutate(data, size, max_size),
        // Any byte, then all that can be derived from others made right.
        4..6 => {
            let size = fuzzer_mutate(data, size, max_size);
            repair(&mut data[..size]);
            size
        }
        // One record, and the file written around it.
        _ => {
            let mut contents = Contents::of(&data[..size]);
            mutate_contents(&mut contents, max_size.saturating_sub(size), &mut random);
            match contents.write() {
                Some(file) if file.len() <= max_size => {
                    data[..file.len()].copy_from_slice(&file);
                    file.len()
                }
                _ => fuzzer_mutate(data, size, max_size),
            }
        }
    }
}

/// Changes one record: its payload, mostly; `room` is how much longer the file may become.
fn mutate_contents(contents: &mut Contents, room: usize, random: &mut Random) {
    let records = &mut contents.records;
    let name = NAMES[random.below(NAMES.len())];
    if records.is_empty() {
        records.push((name.to_owned(), Vec::new()));
    }
    let pickle = records.iter().position(|(name, _)| name == "data.pkl");
    // The pickle says what the other records are, so it is the one half of the time.
    let index = match pickle {
        Some(pickle) if random.below(2) == 0 => pickle,
        _ => random.below(records.len()),
    };
    match random.below(16) {
        0 => drop(records.remove(index)),
        1 => records.push(records[index].clone()),
        2 => records.push((name.to_owned(), records[index].1.clone())),
        3 => name.clone_into(&mut records[index].0),
        4 => {
            let other = random.below(records.len());
            records.swap(index, other);
        }
        _ => mutate_payload(&mut records[index].1, room),
    }
}

fn mutate_payload(payload: &mut Vec<u8>, room: usize) {
    let nbytes = payload.len();
    // libFuzzer's own mutators need a byte of room.
    let max_nbytes = (nbytes + room).max(1);
    payload.resize(max_nbytes, 0);
    let nbytes = fuzzer_mutate(payload, nbytes, max_nbytes);
    payload.truncate(nbytes);
}
