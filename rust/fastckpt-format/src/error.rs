//! What can be wrong with an archive. Messages say where and what, the caller adds the path.

use crate::index::Kind;

/// The archive is not what `torch.save` (or a zip tool that torch accepts) writes.
///
/// Names from the file are shown escaped and cut, so a hostile one cannot garble a terminal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// An alignment that no reader can follow.
    #[error("alignment must be between 1 and 32768 bytes, got {0}")]
    Alignment(u64),

    /// A file name that leaves nothing for the root folder; torch.save refuses it too.
    #[error(
        "file name {name:?} has nothing before its last extension: torch needs a name for the root folder"
    )]
    FileName {
        /// The file name.
        name: String,
    },

    /// A record that cannot be written under this name.
    #[error("record name {name:?} in root folder {root:?}: {problem}")]
    RecordName {
        /// The root folder.
        root: String,
        /// The record's name without it.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// The archive to plan is larger than a file or a zip directory can be.
    #[error("{what} would take more than {limit} bytes (at record {record:?})")]
    TooLarge {
        /// The archive or its directory.
        what: &'static str,
        /// The largest size.
        limit: u64,
        /// The record that passes the limit.
        record: String,
    },

    /// A file without a byte.
    #[error("the file is empty")]
    Empty,

    /// The file does not begin as a zip archive does: a legacy checkpoint, or no checkpoint.
    #[error(
        "not a torch zip archive: the file begins with {found:02x?}, expected [50, 4b, 03, 04] (PK\\x03\\x04)"
    )]
    NotAnArchive {
        /// The first bytes of the file, at most 4.
        found: Vec<u8>,
    },

    /// A read gave fewer bytes than the file had when its size was taken.
    #[error("the file ends early: expected {expected} bytes at offset {offset}, found {found}")]
    Truncated {
        /// Where the read began.
        offset: u64,
        /// Bytes asked for.
        expected: u64,
        /// Bytes got.
        found: u64,
    },

    /// No end-of-directory record: the usual sign of a file that was cut off.
    #[error(
        "no end of central directory (PK\\x05\\x06) in the last {searched} bytes of {file_nbytes}: the file is truncated or overwritten"
    )]
    NoEndRecord {
        /// How many bytes were searched.
        searched: u64,
        /// Size of the file.
        file_nbytes: u64,
    },

    /// A field of the end records contradicts the file or another field.
    #[error("{structure} at offset {offset}: {field}: expected {expected}, found {found}")]
    EndRecord {
        /// Which end record.
        structure: &'static str,
        /// Where it lies.
        offset: u64,
        /// Which field.
        field: &'static str,
        /// What the rest of the file demands.
        expected: u64,
        /// What the field says.
        found: u64,
    },

    /// The directory ends inside an entry, or has bytes that are no entry.
    #[error(
        "central directory entry {entry} at offset {offset}: expected {expected}, found {found}"
    )]
    DirectoryEntry {
        /// Position of the entry in the directory.
        entry: u64,
        /// Where it lies.
        offset: u64,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },

    /// Names that no loader may use, or that two loaders would read differently.
    #[error("record {name:?} (directory entry at offset {offset}): {problem}")]
    Name {
        /// The name, root folder included, cut to a printable length.
        name: String,
        /// Where its directory entry lies.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// A record outside the root folder of the first one.
    #[error("record {name:?} is outside the root folder {root:?}: an archive has one root folder")]
    SecondRoot {
        /// The name, root folder included.
        name: String,
        /// The root folder of the first record.
        root: String,
    },

    /// Two records of one name; readers differ in which they take.
    #[error(
        "records {first:?} at offset {first_offset} and {second:?} at offset {second_offset} have the same name (torch's look-up ignores case)"
    )]
    DuplicateName {
        /// The name of the record that comes first in the file.
        first: String,
        /// Its header's offset.
        first_offset: u64,
        /// The name of the other.
        second: String,
        /// Its header's offset.
        second_offset: u64,
    },

    /// General purpose flags that no torch file has: encryption, patches, masked headers.
    #[error(
        "record {record:?}: flags {found:#06x} have bits outside {allowed:#06x} (encrypted or unknown)"
    )]
    Flags {
        /// The record.
        record: String,
        /// Flags that are known and harmless.
        allowed: u16,
        /// The flags found.
        found: u16,
    },

    /// A compressed record. `torch.save` never compresses; `TorchScript` does.
    #[error(
        "record {record:?} is compressed (method {method}), expected stored (method 0); the archive is {kind}"
    )]
    Compressed {
        /// The record.
        record: String,
        /// The zip compression method.
        method: u16,
        /// What kind of archive the records' names make it.
        kind: Kind,
    },

    /// A stored record has one size.
    #[error("record {record:?}: stored sizes differ: {compressed_nbytes} and {nbytes} bytes")]
    Sizes {
        /// The record.
        record: String,
        /// The compressed size.
        compressed_nbytes: u64,
        /// The uncompressed size.
        nbytes: u64,
    },

    /// The zip64 field is absent, short or twice there.
    #[error("record {record:?}: {problem} in the {structure} at offset {offset}")]
    ExtraField {
        /// The record.
        record: String,
        /// Directory entry or local header.
        structure: &'static str,
        /// Where that structure lies.
        offset: u64,
        /// What is wrong with its extra fields.
        problem: &'static str,
    },

    /// A record that reaches past its place.
    #[error(
        "record {record:?}: {nbytes} bytes from header offset {header_offset} do not fit before the central directory at {directory_offset}"
    )]
    OutOfBounds {
        /// The record.
        record: String,
        /// Offset of its local header.
        header_offset: u64,
        /// Size of its payload.
        nbytes: u64,
        /// Where the records have to end.
        directory_offset: u64,
    },

    /// Two records share bytes.
    #[error(
        "record {record:?} ends at offset {end}, inside what begins at {next_offset} ({next:?})"
    )]
    Overlap {
        /// The first of the two.
        record: String,
        /// Where it ends.
        end: u64,
        /// The record behind it, or `central directory`.
        next: String,
        /// Where that begins.
        next_offset: u64,
    },

    /// A local header that contradicts the directory.
    #[error(
        "record {record:?}: local header at offset {offset}: {field}: expected {expected}, found {found}"
    )]
    LocalHeader {
        /// The record.
        record: String,
        /// Where its local header lies.
        offset: u64,
        /// Which field.
        field: &'static str,
        /// What the directory says.
        expected: String,
        /// What the local header says.
        found: String,
    },

    /// There is no record at this position of the index.
    #[error("the archive has {count} records, there is none at position {index}")]
    NoSuchRecord {
        /// The position asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },

    /// A record without which this is no checkpoint.
    #[error("record {record:?} is missing from the archive (root folder {root:?})")]
    MissingRecord {
        /// The record that is missing.
        record: &'static str,
        /// The root folder.
        root: String,
    },

    /// A torch archive of another kind.
    #[error("the archive is {kind}, expected a checkpoint of torch.save")]
    OtherArchive {
        /// What it is.
        kind: Kind,
    },
}
