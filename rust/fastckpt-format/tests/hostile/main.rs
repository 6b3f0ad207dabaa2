//! One file for each thing the parser refuses, with its message.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod ends;
mod entries;
mod names;
#[path = "../support/mod.rs"]
mod support;

use support::{find, parse, patched, small_archive};

/// Fields of a directory entry, APPNOTE 4.3.12.
const VERSION_NEEDED: usize = 6;
const FLAGS: usize = 8;
const METHOD: usize = 10;
const STORED_SIZE: usize = 20;
const SIZE: usize = 24;
const EXTRA_LENGTH: usize = 30;
const DISK: usize = 34;
const EXTERNAL_ATTRIBUTES: usize = 38;
const HEADER_OFFSET: usize = 42;
const NAME: usize = 46;

/// Distances from the end of the file.
const END: usize = 22;
const LOCATOR: usize = END + 20;
const END64: usize = LOCATOR + 56;

/// `small_archive` with `patch` in a field of the directory entry at `position`.
fn with_entry(position: usize, field: usize, patch: &[u8]) -> Vec<u8> {
    let good = small_archive();
    let entry = find(&good, b"PK\x01\x02", position);
    patched(&good, entry + field, patch)
}

/// `small_archive` with `patch` so far from the start of the structure that begins `from_end`
/// bytes before the end.
fn with_end(from_end: usize, field: usize, patch: &[u8]) -> Vec<u8> {
    let good = small_archive();
    let at = good.len() - from_end + field;
    patched(&good, at, patch)
}

fn message(bytes: &[u8]) -> String {
    parse(bytes).expect_err("it is refused").to_string()
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    assert_eq!(message(bytes), expected);
}
