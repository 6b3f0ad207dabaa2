//! The structures of a zip file, field by field: parsed and encoded, not judged.
//!
//! Section numbers are those of PKWARE's APPNOTE 6.3.10. All numbers are little-endian.

mod end;
mod extra;
mod headers;
mod numbers;

pub(crate) use end::{End, End64, Locator};
pub(crate) use extra::{widen, zip64_field};
pub(crate) use headers::{CentralEntry, LocalHeader};
pub(crate) use numbers::{Cursor, PutLe, clamp16, clamp32};

/// Local file header, 4.3.7.
pub(crate) const LOCAL_SIGNATURE: [u8; 4] = *b"PK\x03\x04";
/// Data descriptor, 4.3.9.3: the signature is optional there, torch always writes it.
pub(crate) const DESCRIPTOR_SIGNATURE: [u8; 4] = *b"PK\x07\x08";
/// Central directory header, 4.3.12.
pub(crate) const CENTRAL_SIGNATURE: [u8; 4] = *b"PK\x01\x02";
/// Zip64 end of central directory record, 4.3.14.
pub(crate) const END64_SIGNATURE: [u8; 4] = *b"PK\x06\x06";
/// Zip64 end of central directory locator, 4.3.15.
pub(crate) const LOCATOR_SIGNATURE: [u8; 4] = *b"PK\x06\x07";
/// End of central directory record, 4.3.16.
pub(crate) const END_SIGNATURE: [u8; 4] = *b"PK\x05\x06";

/// Fixed part of a local header, 4.3.7.
pub(crate) const LOCAL_NBYTES: usize = 30;
/// Fixed part of a directory entry, 4.3.12.
pub(crate) const CENTRAL_NBYTES: usize = 46;
/// Zip64 end record without its extensible data, 4.3.14.
pub(crate) const END64_NBYTES: usize = 56;
/// What the size field of the zip64 end record does not count: signature and itself, 4.3.14.1.
pub(crate) const END64_UNCOUNTED_NBYTES: u64 = 12;
/// Zip64 locator, 4.3.15.
pub(crate) const LOCATOR_NBYTES: usize = 20;
/// End record without its comment, 4.3.16.
pub(crate) const END_NBYTES: usize = 22;
/// Data descriptor with signature and 32-bit sizes, 4.3.9.
pub(crate) const DESCRIPTOR_NBYTES: u64 = 16;
/// Data descriptor with signature and 64-bit sizes, 4.3.9.2.
pub(crate) const DESCRIPTOR64_NBYTES: u64 = 24;

/// Flag bit 3, 4.4.4: CRC and sizes follow the payload in a data descriptor.
pub(crate) const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// Flag bit 11, 4.4.4: the name is UTF-8.
pub(crate) const FLAG_UTF8: u16 = 1 << 11;
/// Flag bits 1 and 2, 4.4.4: compression options, without meaning for a stored record.
const FLAG_COMPRESSION_OPTIONS: u16 = 0b110;
/// The flags a reader may meet; all others mean encryption, patches or things not yet invented.
pub(crate) const FLAGS_ALLOWED: u16 = FLAG_DESCRIPTOR | FLAG_UTF8 | FLAG_COMPRESSION_OPTIONS;
/// Compression method 0, 4.4.5: stored.
pub(crate) const METHOD_STORED: u16 = 0;

/// Extra field id of the zip64 sizes and offset, 4.5.3.
pub(crate) const ZIP64_ID: u16 = 1;
/// Id and length in front of every extra field, 4.5.1.
pub(crate) const EXTRA_HEADER_NBYTES: usize = 4;
/// A 16-bit field with this value is to be found in the zip64 record, 4.4.1.4.
pub(crate) const SENTINEL16: u16 = u16::MAX;
/// A 32-bit field with this value is to be found in the zip64 field or record, 4.4.1.4.
pub(crate) const SENTINEL32: u32 = u32::MAX;
