//! Properties: what is planned is what is parsed; damage is found; nothing panics.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use fastckpt_format::index::Checksums;
use fastckpt_format::layout::{Alignment, Layout, RecordSpec};
use proptest::collection::vec;
use proptest::prelude::*;

use support::{Verdict, parse, parse_with_headers, render, small_archive, verdict};

/// Payloads of a checkpoint: `data.pkl`, `data/*`, `version`.
fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(
        prop_oneof![Just(Vec::new()), vec(any::<u8>(), 0..300)],
        0..12,
    )
    .prop_map(|mut storages| {
        storages.insert(0, b"pickle".to_vec());
        storages.push(b"3\n".to_vec());
        storages
    })
}

fn plan(
    root: &str,
    alignment: u64,
    payloads: &[Vec<u8>],
    states_alignment: bool,
) -> (Layout, Vec<Vec<u8>>) {
    let mut payloads = payloads.to_vec();
    let last = payloads.len() - 1;
    let mut specs: Vec<RecordSpec> = (0..payloads.len())
        .map(|i| match i {
            0 => "data.pkl".to_owned(),
            i if i == last => "version".to_owned(),
            i => format!("data/{}", i - 1),
        })
        .zip(&payloads)
        .map(|(name, payload)| RecordSpec {
            name,
            nbytes: payload.len() as u64,
        })
        .collect();
    if states_alignment {
        let digits = alignment.to_string().into_bytes();
        let name = ".storage_alignment".to_owned();
        specs.insert(
            1,
            RecordSpec {
                name,
                nbytes: digits.len() as u64,
            },
        );
        payloads.insert(1, digits);
    }
    let layout = Layout::plan(root, specs, Alignment::new(alignment).unwrap()).unwrap();
    (layout, payloads)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_planned_is_what_is_parsed(
        root in "[a-zA-Z0-9 ._é-]{1,40}",
        alignment in prop_oneof![Just(1), Just(64), Just(4096), Just(32768), 1_u64..=32768],
        payloads in payloads(),
    ) {
        let (layout, payloads) = plan(&root, alignment, &payloads, true);
        let file = render(&layout, &payloads);
        let index = parse(&file).unwrap();
        prop_assert_eq!(index.layout(), Some(&layout));
        prop_assert_eq!(index.root(), root.as_str());
        prop_assert_eq!(index.entries().len(), payloads.len());
        for (i, (entry, record)) in index.entries().iter().zip(layout.records()).enumerate() {
            prop_assert_eq!(&entry.name, &record.name);
            prop_assert_eq!(entry.header_offset, record.header_offset);
            prop_assert_eq!(entry.payload_offset, record.payload_offset);
            prop_assert_eq!(entry.payload_offset % alignment, 0);
            prop_assert_eq!(entry.nbytes, record.nbytes);
            prop_assert_eq!(index.find(&record.name), Some((i, entry)));
        }
        prop_assert_eq!(&parse_with_headers(&file).unwrap(), &index);
        prop_assert_eq!(verdict(&file), Verdict::Clean);
    }

    #[test]
    fn an_unstated_alignment_is_read_from_the_headers(
        alignment in prop_oneof![Just(1), Just(128), Just(4096)],
        payloads in payloads(),
    ) {
        let (layout, payloads) = plan("m", alignment, &payloads, false);
        let file = render(&layout, &payloads);
        let index = parse(&file).unwrap();
        for (entry, record) in index.entries().iter().zip(layout.records()) {
            prop_assert_eq!(entry.payload_offset, record.payload_offset);
        }
        prop_assert_eq!(verdict(&file), Verdict::Clean);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(mut bytes in vec(any::<u8>(), 0..400), zip in any::<bool>()) {
        if zip && bytes.len() >= 26 {
            bytes[..4].copy_from_slice(b"PK\x03\x04");
            let end = bytes.len() - 22;
            bytes[end..end + 4].copy_from_slice(b"PK\x05\x06");
        }
        prop_assert_ne!(verdict(&bytes), Verdict::Clean);
    }

    #[test]
    fn no_mutation_goes_unseen(
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let good = small_archive();
        let mut bytes = good.clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert_eq!(verdict(&bytes) == Verdict::Clean, bytes == good);
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let good = small_archive();
    assert_eq!(verdict(&good), Verdict::Clean);
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match verdict(&bytes) {
            Verdict::Refused(_) | Verdict::Checksum(_) => {}
            found => assert_eq!(
                found,
                Verdict::Framing {
                    mismatched: 1,
                    is_torch: true
                },
                "bit {bit} of byte {:#x}",
                bit / 8
            ),
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let good = small_archive();
    for nbytes in 0..good.len() {
        assert!(
            matches!(verdict(&good[..nbytes]), Verdict::Refused(_)),
            "{nbytes} bytes"
        );
    }
}

#[test]
fn seventy_thousand_records_take_few_reads() {
    let storages = vec![vec![1_u8; 4]; 70_000];
    let (layout, payloads) = plan("m", 64, &storages, true);
    let file = render(&layout, &payloads);
    for with_headers in [false, true] {
        let mut reads = 0;
        let mut read = support::reader(&file);
        let counted = |offset, nbytes| {
            reads += 1;
            read(offset, nbytes)
        };
        let nbytes = file.len() as u64;
        let index = if with_headers {
            fastckpt_format::index::Index::parse_with_headers(nbytes, counted)
        } else {
            fastckpt_format::index::Index::parse(nbytes, counted)
        };
        let index = index.unwrap();
        assert_eq!(index.entries().len(), 70_001);
        assert_eq!(index.checksums(), Checksums::All);
        assert!(reads <= if with_headers { 30 } else { 12 }, "{reads} reads");
    }
}
