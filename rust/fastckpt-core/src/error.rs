//! What can go wrong, with where it happened.

use std::fmt;
use std::io;
use std::path::PathBuf;

use fastckpt_format::FormatError;
use fastckpt_format::legacy::LegacyError;
use fastckpt_format::pickle::PickleError;

/// The result of everything that touches files.
pub type Result<T> = std::result::Result<T, Error>;

/// What was being done when the operating system refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Opening a file for reading.
    Open,
    /// Reading from a file.
    Read,
    /// Mapping a file into memory.
    Map,
    /// Opening the directory that a file goes to.
    OpenDirectory,
    /// Creating a directory.
    CreateDirectory,
    /// Looking at what is at the destination now.
    Inspect,
    /// Listing a directory.
    List,
    /// Removing a temporary file that a dead process left.
    Remove,
    /// Asking how much space is free.
    CheckSpace,
    /// Creating the temporary file.
    Create,
    /// Reserving the space on the disk.
    Allocate,
    /// Writing.
    Write,
    /// Cutting the file to its exact size.
    Truncate,
    /// Flushing the file to the disk.
    Sync,
    /// Giving a file that is about to be replaced a second name.
    Keep,
    /// Renaming the temporary file to its final name.
    Rename,
    /// Giving a file a second name.
    Link,
    /// Flushing the directory to the disk.
    SyncDirectory,
    /// Removing the second name of a file that has been replaced.
    Discard,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "opening the file",
            Self::Read => "reading",
            Self::Map => "mapping the file",
            Self::OpenDirectory => "opening the directory",
            Self::CreateDirectory => "creating the directory",
            Self::Inspect => "looking at the destination",
            Self::List => "listing the directory",
            Self::Remove => "removing the temporary file of a dead process",
            Self::CheckSpace => "checking the free space",
            Self::Create => "creating the temporary file",
            Self::Allocate => "reserving disk space",
            Self::Write => "writing",
            Self::Truncate => "setting the file size",
            Self::Sync => "flushing the file to disk (fsync)",
            Self::Keep => "keeping the file that is replaced",
            Self::Rename => "renaming the temporary file",
            Self::Link => "giving the file a second name",
            Self::SyncDirectory => "flushing the directory to disk (fsync)",
            Self::Discard => "removing a file that has been replaced",
        })
    }
}

/// A record whose bytes are not those that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumMismatch {
    /// The file.
    pub path: PathBuf,
    /// Name of the record, without the root folder.
    pub record: String,
    /// The tensors that lie in it, where data.pkl could be decoded.
    pub tensors: Vec<String>,
    /// Offset of the record's payload in the file.
    pub offset: u64,
    /// Size of the record's payload in bytes.
    pub nbytes: u64,
    /// The CRC-32 in the file's directory.
    pub expected: u32,
    /// The CRC-32 of the bytes that are there.
    pub found: u32,
}

impl fmt::Display for ChecksumMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("checksum mismatch in ")?;
        match self.tensors.as_slice() {
            [] => write!(f, "record {}", self.record)?,
            [first] => write!(f, "tensor '{first}' (record {}", self.record)?,
            [first, rest @ ..] => {
                write!(
                    f,
                    "tensor '{first}' and {} more that share its storage (record {}",
                    rest.len(),
                    self.record
                )?;
            }
        }
        write!(f, " of {}", self.path.display())?;
        if !self.tensors.is_empty() {
            f.write_str(")")?;
        }
        write!(
            f,
            ", bytes {}-{}: expected {:#010x}, found {:#010x}",
            self.offset,
            (self.offset + self.nbytes).saturating_sub(1),
            self.expected,
            self.found
        )
    }
}

/// Everything that can go wrong in the core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{source} (while {phase}): {}", path.display())]
    Io {
        /// What was being done.
        phase: Phase,
        /// The file or directory.
        path: PathBuf,
        /// The system's error, with its errno.
        source: io::Error,
    },
    /// The disk or the quota has no room for a file.
    #[error("{source}: {} (while {phase}): {}", shortage(*needed, *free), path.display())]
    NoSpace {
        /// What was being done.
        phase: Phase,
        /// The file, or the directory where nothing has been written yet.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free without it; `None` where that is not known.
        free: Option<u64>,
        /// The system's error, with its errno.
        source: io::Error,
    },
    /// The new file has its final name, but whether it would survive a power cut is not known.
    #[error(
        "{source} (while {}): {} has been renamed into place, but the rename may not survive a power cut",
        Phase::SyncDirectory,
        path.display()
    )]
    CommitUnknown {
        /// A file that has been renamed into the directory whose fsync failed.
        path: PathBuf,
        /// The system's error, with its errno.
        source: io::Error,
    },
    /// The file is no archive that torch.save writes.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// data.pkl is not a pickle that may be decoded.
    #[error("{}: {source}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PickleError,
    },
    /// A file of torch before 1.6 is not what torch.save wrote then, or asks for what is not allowed.
    #[error("{}: {source}", path.display())]
    Legacy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: LegacyError,
    },
    /// A record is not there, or says what it cannot.
    #[error("{}: record {record} {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Name of the record, without the root folder.
        record: String,
        /// What is wrong with it: the rest of a sentence that begins with its name.
        problem: String,
    },
    /// A record's bytes are not those that were written.
    #[error("{0}")]
    Checksum(Box<ChecksumMismatch>),
    /// A storage is not where it was when its save began, so nobody knows what has been written of it.
    #[error(
        "the storage of record data/{storage} ({nbytes} bytes) was resized, moved or freed while it was saved: \
         call neither resize_ nor share_memory_ until the save has returned, nor, with FSDP, train or unshard; \
         or save a copy"
    )]
    StorageChanged {
        /// Its number, from 0 on: the record has it as its name.
        storage: usize,
        /// Its size in bytes when the save began.
        nbytes: u64,
    },
    /// Memory for the job could not be had.
    #[error("not enough memory: {nbytes} bytes were refused")]
    OutOfMemory {
        /// What was asked for.
        nbytes: u64,
    },
    /// Not one thread could be started, and the job cannot do without.
    #[error("no thread could be started: {source}")]
    Threads {
        /// The system's error, with its errno.
        source: io::Error,
    },
    /// The observer asked to stop; it knows why.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Wraps a system error with where it happened.
    pub fn io(phase: Phase, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            phase,
            path,
            source,
        }
    }
}

/// The figures of [`Error::NoSpace`] in words.
#[must_use]
pub fn shortage(needed: u64, free: Option<u64>) -> String {
    let needed = with_commas(needed);
    match free {
        Some(free) => format!(
            "{needed} bytes are needed and {} are free",
            with_commas(free)
        ),
        None => format!("{needed} bytes are needed"),
    }
}

fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(with_commas(number), text);
        }
        assert_eq!(shortage(4096, None), "4,096 bytes are needed");
    }
}
