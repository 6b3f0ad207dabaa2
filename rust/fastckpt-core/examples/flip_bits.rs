//! Flips bits of a file, one at a time, and looks at what verifying and loading make of each.
//!
//! ```text
//! cargo run --release --example flip_bits -- --file model.pt [--seed 0] [--cases 100000] [--directory /dev/shm]
//! ```
//!
//! All the bits of the file stand in one scattered order, which does not depend on the seed. Seed 0
//! takes the first `cases` of them, seed 1 the next: runs with one number of cases and the seeds
//! 0, 1, 2 ... go through the whole file, each bit once, and can stop and go on anywhere. Without
//! `--cases`, one run takes all of them.
//!
//! Prints one line of JSON. Each bit has to be found by verifying, and loading has to fail or to
//! give what was saved, read and mapped. Exits with 1 where that is not so.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test tool: to stop is how it reports"
)]

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use fastckpt_core::files::RealFiles;
use fastckpt_core::format::index::Kind;
use fastckpt_core::job::Unobserved;
use fastckpt_core::read::{Archive, ReadOptions};
use fastckpt_core::verify::{VerifyOptions, verify_file};
use fastckpt_core::{Error, Result};

/// Neighbours in the scattered order are this many bits apart. A prime, larger than any file has
/// bits by a common factor: every bit is met once.
const STRIDE: u64 = 2_654_435_761;
/// More say nothing new.
const FAILURES_SHOWN: usize = 20;
/// The files are small, and starting a thread costs more than reading them.
const ONE_THREAD: Option<NonZeroUsize> = NonZeroUsize::new(1);

#[derive(Debug)]
struct Options {
    file: PathBuf,
    seed: u64,
    cases: Option<u64>,
    directory: PathBuf,
}

/// All that a load has from a file: a bit that changes none of it has done no harm.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    names: Vec<String>,
    graph: String,
    records: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Tally {
    outcomes: BTreeMap<String, u64>,
    failures: Vec<String>,
}

fn main() -> ExitCode {
    let options = parse(env::args().skip(1));
    let good = fs::read(&options.file).unwrap();
    let copy = options
        .directory
        .join(format!("flip_bits-{}.pt", process::id()));
    fs::write(&copy, &good).unwrap();
    let tally = flip_all(&copy, &good, &options);
    fs::remove_file(&copy).unwrap();
    println!("{}", tally.to_json());
    ExitCode::from(u8::from(!tally.failures.is_empty()))
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Options {
    let mut options = Options {
        file: PathBuf::new(),
        seed: 0,
        cases: None,
        directory: PathBuf::from("/dev/shm"),
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap();
        match name.as_str() {
            "--file" => options.file = value.into(),
            "--seed" => options.seed = value.parse().unwrap(),
            "--cases" => options.cases = Some(value.parse().unwrap()),
            "--directory" => options.directory = value.into(),
            _ => panic!("unknown argument {name}"),
        }
    }
    options
}

fn flip_all(path: &Path, good: &[u8], options: &Options) -> Tally {
    let expected = [load(path, false).unwrap(), load(path, true).unwrap()];
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let bits = good.len() as u64 * 8;
    let cases = options.cases.unwrap_or(bits);
    let mut tally = Tally::default();
    for case in 0..cases {
        let bit = bit_of(options.seed, cases, case, bits);
        let byte = good[usize::try_from(bit / 8).unwrap()];
        file.write_all_at(&[byte ^ 1 << (bit % 8)], bit / 8)
            .unwrap();
        tally.look(path, bit, &expected);
        file.write_all_at(&[byte], bit / 8).unwrap();
    }
    // The file is again what it was: nothing above has been looking at something else.
    assert_eq!(fs::read(path).unwrap(), good);
    tally
}

fn bit_of(seed: u64, cases: u64, case: u64, bits: u64) -> u64 {
    let place = u128::from(seed) * u128::from(cases) + u128::from(case);
    let bit = place % u128::from(bits) * u128::from(STRIDE) % u128::from(bits);
    u64::try_from(bit).unwrap()
}

impl Tally {
    fn look(&mut self, path: &Path, bit: u64, expected: &[Contents; 2]) {
        let looked = panic::catch_unwind(AssertUnwindSafe(|| {
            let report = verify(path)?;
            let loads = [load(path, false), load(path, true)];
            Ok::<_, Error>((report, loads))
        }));
        let (found, loads) = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(error)) => return self.fail(bit, &format!("verifying failed: {error}")),
            Err(_) => return self.fail(bit, "panic"),
        };
        if !found {
            self.fail(bit, "verifying found nothing");
        }
        for (way, load, expected) in [
            ("read", &loads[0], &expected[0]),
            ("map", &loads[1], &expected[1]),
        ] {
            match load {
                Ok(contents) if contents == expected => self.count(way, "same"),
                Ok(_) => self.fail(bit, &format!("{way}: loaded something else")),
                Err(error) => match kind_of(error) {
                    Some(kind) => self.count(way, kind),
                    None => self.fail(bit, &format!("{way}: {error}")),
                },
            }
        }
    }

    fn count(&mut self, way: &str, outcome: &str) {
        *self
            .outcomes
            .entry(format!("{way}: {outcome}"))
            .or_default() += 1;
    }

    fn fail(&mut self, bit: u64, problem: &str) {
        self.count("failed", "");
        if self.failures.len() < FAILURES_SHOWN {
            self.failures
                .push(format!("bit {} of byte {}: {problem}", bit % 8, bit / 8));
        }
    }

    fn to_json(&self) -> String {
        let outcomes: Vec<_> = self
            .outcomes
            .iter()
            .map(|(name, count)| format!("{name:?}: {count}"))
            .collect();
        format!(
            "{{\"outcomes\": {{{}}}, \"failures\": {:?}}}",
            outcomes.join(", "),
            self.failures
        )
    }
}

fn verify(path: &Path) -> Result<bool> {
    let options = VerifyOptions {
        quick: false,
        threads: ONE_THREAD,
    };
    let report = verify_file(&RealFiles, path, &options, &mut Unobserved)?;
    Ok(!report.damages.is_empty())
}

fn load(path: &Path, map: bool) -> Result<Contents> {
    let archive = Archive::open(&RealFiles, path)?;
    // Python hands TorchScript to torch, which checks nothing: no bit may make a file that.
    assert_ne!(archive.index().kind(), Kind::TorchScript);
    let graph = archive.decode(true)?;
    let entries = archive.index().entries();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
    let keys: Vec<_> = names
        .iter()
        .filter_map(|name| name.strip_prefix("data/").map(str::to_owned))
        .collect();
    let options = ReadOptions {
        verify: true,
        threads: ONE_THREAD,
    };
    let spans = if map {
        archive.map(&keys, &options, &mut Unobserved)?
    } else {
        archive.read(&keys, &options, &mut Unobserved)?
    };
    let records = keys
        .into_iter()
        .zip(spans.iter().map(|span| span.as_slice().to_vec()))
        .collect();
    Ok(Contents {
        names,
        graph: format!("{graph:?}"),
        records,
    })
}

/// What Python makes of an error, where that is a `CheckpointError`.
fn kind_of(error: &Error) -> Option<&'static str> {
    match error {
        Error::Format { .. } | Error::Record { .. } => Some("FormatError"),
        Error::Checksum(_) => Some("ChecksumError"),
        Error::Pickle { .. } => Some("UnsafePickleError"),
        _ => None,
    }
}
