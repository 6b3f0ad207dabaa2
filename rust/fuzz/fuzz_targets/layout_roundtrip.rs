//! Any names and sizes: refused, or planned, rendered and parsed back.

#![no_main]

use fastckpt_format::FormatError;
use fastckpt_format::framing::Framing;
use fastckpt_format::index::Index;
use fastckpt_format::layout::{Alignment, Layout, RecordSpec};
use fastckpt_fuzz::zipfile::render;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Archive {
    root: String,
    alignment: u16,
    records: Vec<(String, u16)>,
}

/// Huge sizes are planned only; small ones become a file.
#[derive(Debug, Arbitrary)]
struct Input {
    archive: Archive,
    huge: Vec<u64>,
}

fuzz_target!(|input: Input| {
    let Archive {
        root,
        alignment,
        records,
    } = input.archive;
    let Ok(alignment) = Alignment::new(u64::from(alignment)) else {
        return;
    };
    let huge = input.huge.iter().enumerate();
    let specs = huge
        .map(|(i, &nbytes)| RecordSpec {
            name: i.to_string(),
            nbytes,
        })
        .collect();
    if let Ok(layout) = Layout::plan("m", specs, alignment) {
        let directory = layout.directory(&[]).len() as u64;
        assert_eq!(layout.directory_offset() + directory, layout.nbytes());
    }
    let specs = records.into_iter().map(|(name, nbytes)| RecordSpec {
        name,
        nbytes: u64::from(nbytes),
    });
    let Ok(layout) = Layout::plan(&root, specs.collect(), alignment) else {
        return;
    };
    let payloads: Vec<Vec<u8>> = layout
        .records()
        .iter()
        .map(|record| vec![b'p'; record.nbytes as usize])
        .collect();
    let file = render(&layout, payloads.iter().map(Vec::as_slice));
    let read = |offset: u64, nbytes: usize| {
        Ok::<_, FormatError>(file[offset as usize..][..nbytes].to_vec())
    };
    match Index::parse(file.len() as u64, read) {
        Ok(index) => {
            assert_eq!(index.root(), layout.root());
            assert_eq!(index.entries().len(), layout.records().len());
            for (entry, record) in index.entries().iter().zip(layout.records()) {
                assert_eq!(entry.payload_offset, record.payload_offset);
                assert_eq!(entry.name, record.name);
            }
            assert_eq!(Framing::new(&index).gaps(), layout.records().len() + 1);
        }
        // The planner leaves it to its caller that names are distinct, and that there is one.
        Err(FormatError::DuplicateName { .. } | FormatError::NotAnArchive { .. }) => {}
        Err(error) => panic!("{error}"),
    }
});
