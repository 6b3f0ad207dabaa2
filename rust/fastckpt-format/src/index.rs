//! The records of an untrusted archive, every offset checked.

mod alignment;
mod directory;
mod end;
mod headers;
mod names;
mod source;

use std::fmt;
use std::ops::Range;

use self::alignment::{stated_alignment, torch_layout};
use self::directory::{Listed, Listing, read_directory};
use self::end::find_directory;
use self::headers::read_headers;
use self::names::Names;
use self::source::Source;
use crate::error::FormatError;
use crate::layout::{Alignment, Layout};
use crate::zip::{FLAG_DESCRIPTOR, LOCAL_SIGNATURE, METHOD_STORED, SENTINEL32};

/// One record of an archive: every field is checked against the file and the other records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name without the root folder, e.g. `data/17`.
    pub name: String,
    /// Offset of the local header.
    pub header_offset: u64,
    /// Offset of the payload.
    pub payload_offset: u64,
    /// Payload size in bytes.
    pub nbytes: u64,
    /// CRC-32 as the central directory has it. See [`Index::checksum`] for what a 0 means.
    pub crc32: u32,
}

/// Which checksums the writer of an archive stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Every record has one.
    All,
    /// `torch.serialization.skip_data`: all but the records under `data/`.
    MetadataOnly,
    /// None (`torch.serialization.set_crc32_options(False)`).
    None,
}

/// What the records of an archive make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What `torch.save` writes: it has a `data.pkl`.
    Checkpoint,
    /// What `torch.jit.save` writes: it has a `constants.pkl`.
    TorchScript,
    /// What `torch.export.save` writes (.pt2): an `archive_format` and no `data.pkl`.
    ExportedProgram,
    /// What `torch.package` writes: a `.data/extern_modules` and no `data.pkl`.
    Package,
    /// None of these.
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checkpoint => "a checkpoint of torch.save",
            Self::TorchScript => "a TorchScript archive (constants.pkl)",
            Self::ExportedProgram => "an exported program of torch.export (archive_format)",
            Self::Package => "a torch.package archive (.data/extern_modules)",
            Self::Unknown => "of no kind that torch writes",
        })
    }
}

/// The records of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    root: String,
    entries: Vec<Entry>,
    /// General purpose flags of each entry, as the directory has them.
    flags: Vec<u16>,
    names: Names,
    checksums: Checksums,
    /// What `.storage_alignment` says; 64 without that record; `None` if it says nothing sound.
    alignment: Option<Alignment>,
    layout: Option<Layout>,
    directory: Range<u64>,
    file_nbytes: u64,
}

impl Index {
    /// Parses and checks the directory of a file of `file_nbytes` bytes.
    ///
    /// `read(offset, nbytes)` returns exactly `nbytes` bytes of the file; it is asked for at most
    /// 1 MiB at a time, and only within the file. The local headers are not read where the
    /// directory is exactly what torch's layout gives (then [`Index::layout`] is `Some`, and
    /// [`Index::check_local_header`] is owed by whoever reads the payloads); otherwise each is
    /// read and checked here.
    pub fn parse<E: From<FormatError>>(
        file_nbytes: u64,
        read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        Self::parse_from(&mut Source::new(file_nbytes, read), false)
    }

    /// The same, but always reads and checks every local header.
    pub fn parse_with_headers<E: From<FormatError>>(
        file_nbytes: u64,
        read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        Self::parse_from(&mut Source::new(file_nbytes, read), true)
    }

    fn parse_from<E, R>(source: &mut Source<R>, with_headers: bool) -> Result<Self, E>
    where
        E: From<FormatError>,
        R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
    {
        check_beginning(source)?;
        let directory = find_directory(source)?;
        let Listing { root, mut records } = read_directory(source, &directory)?;
        // torch writes in the order of the offsets; other tools need not.
        records.sort_by_key(|record| record.header_offset);
        let names = Names::new(&records)?;
        check_stored(&records, &names)?;
        let (mut entries, flags) = split(records);
        let directory = directory.range;
        let alignment = stated_alignment(source, &root, &names, &entries, directory.start)?;
        let file_nbytes = source.file_nbytes();
        let layout = alignment
            .and_then(|alignment| torch_layout(&root, &entries, alignment))
            .filter(|layout| layout.nbytes() == file_nbytes)
            .filter(|layout| layout.directory_offset() == directory.start);
        if let Some(layout) = &layout {
            for (entry, record) in entries.iter_mut().zip(layout.records()) {
                entry.payload_offset = record.payload_offset;
            }
        }
        if layout.is_none() || with_headers {
            read_headers(source, &root, &mut entries, &flags, directory.start)?;
        }
        check_overlap(&entries, &flags, directory.start)?;
        let checksums = stored_checksums(&entries, &names);
        Ok(Self {
            root,
            entries,
            flags,
            names,
            checksums,
            alignment,
            layout,
            directory,
            file_nbytes,
        })
    }

    /// The index of records that somebody else has checked: each within the file, apart from the
    /// others, with a CRC and a name of its own, in file order.
    pub(crate) fn of_records(root: String, entries: Vec<Entry>, file_nbytes: u64) -> Self {
        let names = entries.iter().enumerate();
        let names = names.map(|(position, entry)| (entry.name.to_ascii_lowercase(), position));
        Self {
            root,
            flags: vec![0; entries.len()],
            names: Names(names.collect()),
            checksums: Checksums::All,
            alignment: None,
            layout: None,
            directory: file_nbytes..file_nbytes,
            file_nbytes,
            entries,
        }
    }

    /// The same for records that have no CRC, and names that may differ by case alone.
    pub(crate) fn without_checksums(entries: Vec<Entry>, file_nbytes: u64) -> Self {
        let names = entries.iter().enumerate();
        let names = names.map(|(position, entry)| (entry.name.clone(), position));
        Self {
            names: Names(names.collect()),
            checksums: Checksums::None,
            ..Self::of_records(String::new(), entries, file_nbytes)
        }
    }

    /// The root folder, without the slash.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The records, in the order of their offsets in the file.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The record of this name (without the root folder), and its position in `entries`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(usize, &Entry)> {
        let position = self.names.find(name)?;
        let entry = self.entries.get(position)?;
        // Names differ from each other by more than case, but `name` may differ by case alone.
        (entry.name == name).then_some((position, entry))
    }

    /// What kind of archive the names of the records make it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.names.kind()
    }

    /// Checks that this is a checkpoint of `torch.save`, with the records that every reader needs:
    /// `data.pkl`, and `version` or `.data/version`.
    pub fn require_checkpoint(&self) -> Result<(), FormatError> {
        let missing = |record| FormatError::MissingRecord {
            record,
            root: self.root.clone(),
        };
        match self.kind() {
            Kind::Checkpoint => {}
            Kind::Unknown => return Err(missing("data.pkl")),
            kind => return Err(FormatError::OtherArchive { kind }),
        }
        if self.find("data.pkl").is_none() {
            return Err(missing("data.pkl"));
        }
        if self
            .find("version")
            .or_else(|| self.find(".data/version"))
            .is_none()
        {
            return Err(missing("version"));
        }
        Ok(())
    }

    /// Which checksums the file has.
    #[must_use]
    pub fn checksums(&self) -> Checksums {
        self.checksums
    }

    /// The CRC-32 that the payload of `entries()[index]` must have; `None` where its writer stored none.
    #[must_use]
    pub fn checksum(&self, index: usize) -> Option<u32> {
        let entry = self.entries.get(index)?;
        match self.checksums {
            Checksums::All => Some(entry.crc32),
            Checksums::MetadataOnly => (!is_storage(entry)).then_some(entry.crc32),
            Checksums::None => None,
        }
    }

    /// The layout torch gives to these records, where offsets, order and file size agree with it.
    #[must_use]
    pub fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }

    /// The alignment that the file states in `.storage_alignment` (torch's default without that
    /// record); `None` if what it states is no alignment.
    #[must_use]
    pub fn alignment(&self) -> Option<Alignment> {
        self.alignment
    }

    /// Where the central directory lies; the end records follow.
    #[must_use]
    pub fn directory(&self) -> Range<u64> {
        self.directory.clone()
    }

    /// The size of the file that was parsed.
    #[must_use]
    pub fn file_nbytes(&self) -> u64 {
        self.file_nbytes
    }

    /// Checks the local header of `entries()[index]` against the directory. `bytes` are those from
    /// `header_offset` to `payload_offset`.
    pub fn check_local_header(&self, index: usize, bytes: &[u8]) -> Result<(), FormatError> {
        match (self.entries.get(index), self.flags.get(index)) {
            (Some(entry), Some(&flags)) => headers::check(&self.root, entry, flags, bytes),
            _ => Err(FormatError::NoSuchRecord {
                index,
                count: self.entries.len(),
            }),
        }
    }
}

/// The file begins with a local header. torch takes anything else for a legacy file, and a file
/// with something in front is one that two readers may understand in two ways.
fn check_beginning<E, R>(source: &mut Source<R>) -> Result<(), E>
where
    E: From<FormatError>,
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
{
    /// A file up to this size is read whole at once.
    const SMALL_FILE_NBYTES: u64 = 64 << 10;
    let file_nbytes = source.file_nbytes();
    if file_nbytes == 0 {
        return Err(FormatError::Empty.into());
    }
    let until = if file_nbytes <= SMALL_FILE_NBYTES {
        file_nbytes
    } else {
        0
    };
    let nbytes = usize::try_from(file_nbytes)
        .unwrap_or(usize::MAX)
        .min(LOCAL_SIGNATURE.len());
    let found = source.bytes(0, nbytes, until)?;
    if found != LOCAL_SIGNATURE {
        return Err(FormatError::NotAnArchive {
            found: found.to_vec(),
        }
        .into());
    }
    Ok(())
}

fn check_stored(records: &[Listed], names: &Names) -> Result<(), FormatError> {
    match records.iter().find(|record| record.method != METHOD_STORED) {
        None => Ok(()),
        Some(record) => Err(FormatError::Compressed {
            record: record.name.clone(),
            method: record.method,
            kind: names.kind(),
        }),
    }
}

/// The public entries, without payload offsets yet, and the flags.
fn split(records: Vec<Listed>) -> (Vec<Entry>, Vec<u16>) {
    records
        .into_iter()
        .map(|record| {
            let entry = Entry {
                name: record.name,
                header_offset: record.header_offset,
                payload_offset: 0,
                nbytes: record.nbytes,
                crc32: record.crc32,
            };
            (entry, record.flags)
        })
        .unzip()
}

/// From its header to the end of its descriptor, a record has its bytes to itself.
fn check_overlap(
    entries: &[Entry],
    flags: &[u16],
    directory_offset: u64,
) -> Result<(), FormatError> {
    let ends = entries.iter().zip(flags).map(|(entry, &flags)| {
        let end = entry.payload_offset.saturating_add(entry.nbytes);
        (
            entry,
            end.saturating_add(shortest_descriptor_nbytes(entry, flags)),
        )
    });
    let nexts = entries
        .iter()
        .skip(1)
        .map(|next| (next.name.as_str(), next.header_offset))
        .chain([("central directory", directory_offset)]);
    for ((entry, end), (next, next_offset)) in ends.zip(nexts) {
        if end > next_offset {
            let (record, next) = (entry.name.clone(), next.to_owned());
            return Err(FormatError::Overlap {
                record,
                end,
                next,
                next_offset,
            });
        }
    }
    Ok(())
}

/// APPNOTE 4.3.9: CRC and two sizes of 4 or 8 bytes; the signature is optional.
fn shortest_descriptor_nbytes(entry: &Entry, flags: u16) -> u64 {
    if flags & FLAG_DESCRIPTOR == 0 {
        0
    } else if entry.nbytes < u64::from(SENTINEL32) {
        12
    } else {
        20
    }
}

fn is_storage(entry: &Entry) -> bool {
    entry.name.starts_with("data/")
}

fn stored_checksums(entries: &[Entry], names: &Names) -> Checksums {
    let pickle = names
        .find("data.pkl")
        .and_then(|position| entries.get(position));
    if pickle.is_some_and(|pickle| pickle.nbytes > 0 && pickle.crc32 == 0) {
        return Checksums::None;
    }
    let mut storages = entries
        .iter()
        .filter(|entry| is_storage(entry) && entry.nbytes > 0)
        .peekable();
    if storages.peek().is_some() && storages.all(|entry| entry.crc32 == 0) {
        return Checksums::MetadataOnly;
    }
    Checksums::All
}
