//! Archives as torch.save writes them, put together one record after the other.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test file uses a part of this"
)]

use fastckpt_core::format::archive::{self, SaveMark};
use fastckpt_core::format::checksum::crc32;
use fastckpt_core::format::layout::{Alignment, Layout};

/// A file with the storages' bytes under `data/0`, `data/1` ... and a pickle that has them as
/// uint8 tensors `t0`, `t1` ...
pub fn archive_of(storages: &[Vec<u8>], alignment: u64) -> Vec<u8> {
    archive_with(&pickle_of(storages), storages, alignment)
}

pub fn archive_with(pickle: &[u8], storages: &[Vec<u8>], alignment: u64) -> Vec<u8> {
    let alignment = Alignment::new(alignment).unwrap();
    let sizes: Vec<u64> = storages.iter().map(|bytes| bytes.len() as u64).collect();
    let specs = archive::record_specs(pickle.len() as u64, alignment, &sizes);
    let layout = Layout::plan("model", specs, alignment).unwrap();
    let mut out = Vec::with_capacity(usize::try_from(layout.nbytes()).unwrap());
    let mut written: Vec<(u32, u64)> = Vec::new();
    for (index, record) in layout.records().iter().enumerate() {
        let payload = match record.name.as_str() {
            "data.pkl" => pickle.to_vec(),
            ".data/serialization_id" => {
                archive::serialization_id(SaveMark::default(), &written).to_vec()
            }
            name => match name.strip_prefix("data/") {
                Some(key) => storages[key.parse::<usize>().unwrap()].clone(),
                None => archive::fixed_payload(name, alignment).unwrap(),
            },
        };
        let crc = crc32(&payload);
        out.extend(layout.local_header(index));
        assert_eq!(out.len() as u64, record.payload_offset);
        out.extend(&payload);
        out.extend(layout.descriptor(index, crc));
        written.push((crc, payload.len() as u64));
    }
    let crcs: Vec<u32> = written.into_iter().map(|(crc, _)| crc).collect();
    out.extend(layout.directory(&crcs));
    assert_eq!(out.len() as u64, layout.nbytes());
    out
}

/// What torch.save pickles for `{"t0": ..., "t1": ...}` of one-dimensional uint8 tensors.
pub fn pickle_of(storages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for (key, storage) in storages.iter().enumerate() {
        text(&mut out, &format!("t{key}"));
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nByteStorage\n");
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        int(&mut out, storage.len());
        out.extend(b"tQK\x00");
        int(&mut out, storage.len());
        out.extend(b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    out.extend(text.as_bytes());
}

fn int(out: &mut Vec<u8>, value: usize) {
    out.push(b'J');
    out.extend(i32::try_from(value).unwrap().to_le_bytes());
}

/// Bytes that differ from place to place and from seed to seed.
pub fn payload(seed: usize, nbytes: usize) -> Vec<u8> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(nbytes + 8);
    while bytes.len() < nbytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(nbytes);
    bytes
}

pub fn payloads(sizes: &[usize]) -> Vec<Vec<u8>> {
    sizes
        .iter()
        .enumerate()
        .map(|(seed, &nbytes)| payload(seed, nbytes))
        .collect()
}

pub fn keys(count: usize) -> Vec<String> {
    (0..count).map(|key| key.to_string()).collect()
}
