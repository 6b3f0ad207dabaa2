//! Files of other writers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use fastckpt_format::FormatError;
use fastckpt_format::archive::{SaveMark, fixed_payload, record_specs, serialization_id};
use fastckpt_format::index::{Checksums, Kind};
use fastckpt_format::layout::Layout;

use support::{Verdict, parse, parse_with_headers, render, verdict};

fn specimen(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/specimens");
    std::fs::read(folder.join(name)).unwrap()
}

fn payloads(file: &[u8]) -> Vec<Vec<u8>> {
    parse(file)
        .unwrap()
        .entries()
        .iter()
        .map(|entry| {
            let start = usize::try_from(entry.payload_offset).unwrap();
            file[start..start + usize::try_from(entry.nbytes).unwrap()].to_vec()
        })
        .collect()
}

#[test]
fn torch_files_are_reproduced_byte_for_byte() {
    for name in ["torch-2.15.pt", "torch-2.9-alignment-7.pt"] {
        let file = specimen(name);
        let index = parse(&file).unwrap();
        let layout = index.layout().unwrap();
        let payloads = payloads(&file);
        let storages = 4..payloads.len() - 2;
        let storage_nbytes: Vec<u64> = payloads[storages]
            .iter()
            .map(|payload| payload.len() as u64)
            .collect();
        let specs = record_specs(
            payloads[0].len() as u64,
            layout.alignment(),
            &storage_nbytes,
        );
        for (spec, payload) in specs.iter().zip(&payloads) {
            if let Some(fixed) = fixed_payload(&spec.name, layout.alignment()) {
                assert_eq!(&fixed, payload, "{}", spec.name);
            }
        }
        let planned = Layout::plan(index.root(), specs, layout.alignment()).unwrap();
        assert_eq!(&planned, layout);
        assert!(render(&planned, &payloads) == file, "{name}");
    }
}

#[test]
fn the_second_half_of_the_serialization_id_is_torchs() {
    let file = specimen("torch-2.15.pt");
    let index = parse(&file).unwrap();
    let records: Vec<(u32, u64)> = index
        .entries()
        .iter()
        .map(|entry| (entry.crc32, entry.nbytes))
        .collect();
    let (id, records) = (
        payloads(&file).pop().unwrap(),
        &records[..records.len() - 1],
    );
    let mark = SaveMark {
        shards: 8,
        save_id: 42,
    };
    let own = serialization_id(mark, records);
    assert_eq!(own[..20], *b"90000800000000000042");
    assert_eq!(own[20..], id[20..]);
    assert_eq!(SaveMark::parse(&own), Some(mark));
    assert_eq!(SaveMark::parse(&id), None);
}

#[test]
fn torch_files_are_clean_and_their_flipped_bits_are_found() {
    for (name, checksums) in [
        ("torch-2.15.pt", Checksums::All),
        ("torch-2.6.pt", Checksums::All),
        ("torch-2.9-alignment-7.pt", Checksums::All),
        ("torch-2.15-no-crc.pt", Checksums::None),
        ("torch-2.15-skip-data.pt", Checksums::MetadataOnly),
    ] {
        let file = specimen(name);
        let index = parse_with_headers(&file).unwrap();
        assert_eq!(index.checksums(), checksums, "{name}");
        assert_eq!(index.kind(), Kind::Checkpoint);
        assert_eq!(index.require_checkpoint(), Ok(()));
        assert_eq!(verdict(&file), Verdict::Clean, "{name}");
        let unverified = |at: u64| {
            index.entries().iter().enumerate().any(|(i, entry)| {
                let payload = entry.payload_offset..entry.payload_offset + entry.nbytes;
                index.checksum(i).is_none() && payload.contains(&at)
            })
        };
        for bit in (0..file.len() * 8).filter(|bit| !unverified((bit / 8) as u64)) {
            let mut bytes = file.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = verdict(&bytes);
            let torch = !matches!(
                found,
                Verdict::Framing {
                    is_torch: false,
                    ..
                }
            );
            assert!(
                found != Verdict::Clean && torch,
                "{name}: bit {bit}: {found:?}"
            );
        }
    }
}

#[test]
fn another_writers_framing_is_not_called_damaged() {
    let file = specimen("python-zipfile.pt");
    let index = parse(&file).unwrap();
    assert_eq!(index.layout(), None);
    assert_eq!(index.require_checkpoint(), Ok(()));
    assert_eq!(
        verdict(&file),
        Verdict::Framing {
            mismatched: 11,
            is_torch: false
        }
    );
}

#[test]
fn other_kinds_are_named() {
    let message = |name| parse(&specimen(name)).unwrap_err().to_string();
    assert_eq!(
        message("legacy.pt"),
        "not a torch zip archive: the file begins with [80, 02, 8a, 0a], expected [50, 4b, 03, 04] (PK\\x03\\x04)"
    );
    assert_eq!(
        message("torchscript.pt"),
        "record \"code/__torch__/torch/nn/modules/linear.py\" is compressed (method 8), expected stored (method 0); the archive is a TorchScript archive (constants.pkl)"
    );
    assert!(matches!(
        parse(&specimen("python-zipfile-deflated.pt")),
        Err(FormatError::Compressed {
            method: 8,
            kind: Kind::Checkpoint,
            ..
        })
    ));
}
