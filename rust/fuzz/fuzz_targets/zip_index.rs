//! Any bytes: parsed or refused, and where they are parsed, every offset lies in the file.

#![no_main]

use fastckpt_format::FormatError;
use fastckpt_format::framing::Framing;
use fastckpt_format::index::Index;
use fastckpt_fuzz::memory::bounded;
use fastckpt_fuzz::mutate::mutate_archive;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

/// A directory entry of 46 bytes becomes an entry, its flags, its name and the same as a key.
const MEMORY_PER_BYTE: usize = 16;

fn check(bytes: &[u8]) {
    let file_nbytes = bytes.len() as u64;
    let read = |offset: u64, nbytes: usize| {
        assert!(nbytes <= 1 << 20);
        let start = offset as usize;
        Ok::<_, FormatError>(bytes[start..start + nbytes].to_vec())
    };
    let Ok(index) = Index::parse(file_nbytes, read) else {
        assert!(Index::parse_with_headers(file_nbytes, read).is_err());
        return;
    };
    let slice = |start: u64, end: u64| &bytes[start as usize..end as usize];
    let mut end = 0;
    let mut headers_agree = true;
    for (i, entry) in index.entries().iter().enumerate() {
        assert!(end <= entry.header_offset && entry.header_offset < entry.payload_offset);
        end = entry.payload_offset + entry.nbytes;
        assert!(end <= index.directory().start);
        assert_eq!(index.find(&entry.name), Some((i, entry)));
        let header = slice(entry.header_offset, entry.payload_offset);
        headers_agree &= index.check_local_header(i, header).is_ok();
    }
    match Index::parse_with_headers(file_nbytes, read) {
        Ok(same) => assert!(headers_agree && same == index),
        Err(_) => assert!(index.layout().is_some()),
    }
    let framing = Framing::new(&index);
    for gap in 0..framing.gaps() {
        let range = framing.range(gap);
        let found = slice(range.start, range.end);
        let expected = framing.expected(gap);
        assert_eq!(framing.compare(gap, found).is_none(), *expected == *found);
    }
    let _ = (index.kind(), index.require_checkpoint(), index.checksums());
}

fuzz_target!(|bytes: &[u8]| {
    bounded(bytes.len(), MEMORY_PER_BYTE, || check(bytes));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_archive(data, size, max_size, seed)
});
