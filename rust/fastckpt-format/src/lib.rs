//! The file that `torch.save` writes, as data: no I/O, no unsafe code.
//!
//! Writing: [`archive`] names the records of one archive, [`layout`] says where every byte of
//! them lies before one of them is written. Reading: [`index`] finds the records of an untrusted
//! file, [`framing`] says what every byte between them has to be, and [`pickle`] turns `data.pkl`
//! into a graph of plain values without executing anything. [`legacy`] does the same for files of
//! torch before 1.6. [`salvage`] finds what is left of a damaged file.

pub mod archive;
mod canonical;
pub mod checksum;
pub mod error;
pub mod framing;
pub mod index;
pub mod layout;
pub mod legacy;
pub mod pickle;
pub mod salvage;
mod zip;

pub use error::FormatError;
