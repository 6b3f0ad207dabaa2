//! Checkpoint I/O without Python: a parallel, checksummed engine over the archives of
//! `fastckpt-format`.
//!
//! Saving: [`write`] composes the bytes of an archive chunk by chunk in any order, [`commit`]
//! keeps them under a temporary name and makes them visible. Loading: [`read`] checks the
//! directory, brings the records into memory of our own ([`mapping`]) and checks their CRCs.
//! [`verify`] reads every byte of a file and compares. [`repair`] finds what is left of a damaged one.
//! [`average`] and [`compare`] look at the elements of tensors as numbers ([`numeric`], [`views`]). All
//! of them reach files through the traits in [`files`] only, and run their threads through [`job`].
//!
//! `unsafe` lives in [`mapping`], [`memory`], `files/real/` and `read/staged.rs`.
#![deny(unsafe_code)]

pub mod average;
pub mod commit;
pub mod compare;
mod elements;
pub mod error;
pub mod files;
pub mod job;
pub mod mapping;
pub mod memory;
pub mod numeric;
pub mod read;
pub mod repair;
mod source;
pub mod stale;
pub mod verify;
pub mod views;
pub mod write;

pub use error::{Error, Phase, Result};
pub use fastckpt_format as format;
