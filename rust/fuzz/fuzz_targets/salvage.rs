//! Any bytes as a damaged file: what is salvaged are bytes of the file that have a CRC stated in it, under
//! names of their own; and of a good file, all of it.

#![no_main]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastckpt_core::Error;
use fastckpt_core::job::Unobserved;
use fastckpt_core::read::Archive;
use fastckpt_core::repair;
use fastckpt_core::verify::{VerifyOptions, verify_archive};
use fastckpt_format::index::Checksums;
use fastckpt_fuzz::memory::bounded;
use fastckpt_fuzz::mutate::mutate_archive;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[path = "../../fastckpt-core/tests/support/disk.rs"]
mod disk;

use disk::{Behaviour, Disk};

/// Every four bytes may be a signature, and each structure that one begins is kept with its name, which
/// may reach over those that follow.
const MEMORY_PER_BYTE: usize = 512;
const ONE: Option<NonZeroUsize> = NonZeroUsize::new(1);

type Records = BTreeMap<String, Vec<u8>>;

fn records(archive: &Archive) -> Records {
    let read = |name: &String| match archive.read_record(name, true) {
        Ok(payload) => payload,
        Err(error) => panic!("{name}: {error}"),
    };
    let names = archive.index().entries().iter().map(|entry| &entry.name);
    names.map(|name| (name.clone(), read(name))).collect()
}

/// The records of a file that torch could have written, every byte of it as it has to be.
fn records_of_good(file: &[u8]) -> Option<Records> {
    let archive = Archive::from_bytes(Arc::new(file.to_vec()), PathBuf::from("fuzzed.pt")).ok()?;
    let options = VerifyOptions {
        quick: false,
        threads: ONE,
    };
    let report = verify_archive(&archive, &options, &mut Unobserved).expect("memory can be read");
    let is_good = report.damages.is_empty()
        && report.headers_covered
        && report.checksums == Checksums::All
        && archive.index().layout().is_some();
    is_good.then(|| records(&archive))
}

fn check(file: &[u8]) {
    let disk = Disk::new(file.to_vec(), Behaviour::default());
    let salvaged = match repair::salvage(&disk, Path::new("fuzzed.pt"), ONE, &mut Unobserved) {
        Ok(salvaged) => salvaged,
        Err(Error::Format { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let found = records(&salvaged.archive);
    assert_eq!(found.len(), salvaged.archive.index().entries().len());
    for entry in salvaged.archive.index().entries() {
        let start = entry.payload_offset as usize;
        let end = start + entry.nbytes as usize;
        assert_eq!(found[&entry.name], file[start..end]);
    }
    let _whatever_it_says = repair::decode(&salvaged.archive, &mut Unobserved);
    if let Some(expected) = records_of_good(file) {
        assert!(
            found == expected,
            "{:?} of {:?}",
            found.keys(),
            expected.keys()
        );
    }
}

fuzz_target!(|file: &[u8]| {
    bounded(file.len(), MEMORY_PER_BYTE, || check(file));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_archive(data, size, max_size, seed)
});
