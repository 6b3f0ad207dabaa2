//! Any bytes as a file: refused, or every record read and compared with its checksum; and what
//! verifying says agrees with what loading does.

#![no_main]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use fastckpt_core::Error;
use fastckpt_core::job::Unobserved;
use fastckpt_core::read::{Archive, ReadOptions};
use fastckpt_core::verify::{FileReport, VerifyOptions, verify_archive};
use fastckpt_format::index::{Checksums, Entry};
use fastckpt_fuzz::memory::bounded;
use fastckpt_fuzz::mutate::mutate_archive;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

/// The directory's names are kept three times, once as the keys of a map; the file itself is here
/// once, a copy of each record while it is compared.
const MEMORY_PER_BYTE: usize = 16;

/// A worker for each input would cost more than the input.
const ONE: Option<NonZeroUsize> = NonZeroUsize::new(1);

/// What came of reading one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Read,
    BadHeader,
    WrongChecksum,
}

fn report(archive: &Archive, quick: bool) -> FileReport {
    let options = VerifyOptions {
        quick,
        threads: ONE,
    };
    verify_archive(archive, &options, &mut Unobserved).expect("memory can be read")
}

fn payload<'a>(file: &'a [u8], entry: &Entry) -> &'a [u8] {
    let start = entry.payload_offset as usize;
    &file[start..start + entry.nbytes as usize]
}

fn read_record(archive: &Archive, file: &[u8], entry: &Entry) -> Outcome {
    match archive.read_record(&entry.name, true) {
        Ok(found) => {
            assert_eq!(found, payload(file, entry));
            Outcome::Read
        }
        Err(Error::Format { .. }) => Outcome::BadHeader,
        Err(Error::Checksum(mismatch)) => {
            assert_eq!(mismatch.record, entry.name);
            Outcome::WrongChecksum
        }
        Err(error) => panic!("{error}"),
    }
}

/// Reads all storages at once, which takes another way than one record by itself.
fn read_storages(archive: &Archive, file: &[u8], outcomes: &[Outcome]) {
    let entries = archive.index().entries();
    let key = |entry: &Entry| entry.name.strip_prefix("data/").map(str::to_owned);
    let (storages, keys): (Vec<usize>, Vec<String>) = entries
        .iter()
        .enumerate()
        .filter_map(|(position, entry)| Some((position, key(entry)?)))
        .unzip();
    let options = ReadOptions {
        verify: true,
        threads: ONE,
    };
    let all_are_good = storages
        .iter()
        .all(|position| outcomes[*position] == Outcome::Read);
    assert_eq!(
        archive.check(&keys, &options, &mut Unobserved).is_ok(),
        all_are_good
    );
    match archive.read(&keys, &options, &mut Unobserved) {
        Ok(spans) => {
            assert!(all_are_good);
            for (span, position) in spans.iter().zip(storages) {
                assert_eq!(span.as_slice(), payload(file, &entries[position]));
            }
        }
        Err(Error::Format { .. } | Error::Checksum(_)) => assert!(!all_are_good),
        Err(error) => panic!("{error}"),
    }
}

fn check(file: &[u8]) {
    let archive = match Archive::from_bytes(Arc::new(file.to_vec()), PathBuf::from("fuzzed.pt")) {
        Ok(archive) => archive,
        Err(Error::Format { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let entries = archive.index().entries();
    let outcomes: Vec<Outcome> = entries
        .iter()
        .map(|entry| read_record(&archive, file, entry))
        .collect();
    let full = report(&archive, false);
    let quick = report(&archive, true);
    assert_eq!(full.records, entries.len());
    assert_eq!(full.headers_covered, quick.headers_covered);
    for (entry, outcome) in entries.iter().zip(&outcomes) {
        let reported = full
            .damages
            .iter()
            .any(|damage| damage.expected.is_some() && damage.record.as_ref() == Some(&entry.name));
        match outcome {
            Outcome::Read => assert!(!reported, "{entry:?}"),
            Outcome::WrongChecksum => assert!(reported, "{entry:?}"),
            Outcome::BadHeader => assert!(!full.damages.is_empty(), "{entry:?}"),
        }
    }
    for damage in full.damages.iter().chain(&quick.damages) {
        let end = damage.offset.checked_add(damage.nbytes);
        assert!(
            end.is_some() && damage.offset <= file.len() as u64,
            "{damage:?}"
        );
    }
    if full.damages.is_empty() && full.checksums == Checksums::All {
        assert!(quick.damages.is_empty());
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Read));
    }
    read_storages(&archive, file, &outcomes);
    // What is in data.pkl is another target's business; that it is read only where it is sound is not.
    if archive.decode(true).is_ok() {
        let (position, _) = archive.index().find("data.pkl").expect("it was decoded");
        assert_eq!(outcomes[position], Outcome::Read);
    }
}

fuzz_target!(|file: &[u8]| {
    bounded(file.len(), MEMORY_PER_BYTE, || check(file));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_archive(data, size, max_size, seed)
});
