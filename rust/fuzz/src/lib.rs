//! What the fuzz targets share.
//!
//! A checkpoint's bytes are behind checksums: whatever a fuzzer changes at random is refused before
//! it is looked at. [`mutate`] is a mutator that makes half of what it changes consistent again, with
//! the help of [`zipfile`], which finds the parts of an archive however damaged it is. Nothing in the
//! code under test is switched off or weakened for fuzzing.

pub mod memory;
pub mod mutate;
pub mod stack;
pub mod zipfile;
