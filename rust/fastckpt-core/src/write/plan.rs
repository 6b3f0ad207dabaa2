//! What goes into an archive: its layout, and where the bytes of each record come from.

use fastckpt_format::FormatError;
use fastckpt_format::archive::{self, SaveMark};
use fastckpt_format::layout::{Alignment, Layout};

use crate::memory::Memory;

/// Where the bytes of one storage are.
#[derive(Debug, Clone, Copy)]
pub enum StorageSource {
    /// In host memory.
    Memory(Memory),
    /// On a device: they come through the buffers of a [`SaveStager`](super::SaveStager). Or nowhere
    /// yet: a [`StorageMaker`](super::StorageMaker) makes them.
    Staged {
        /// Size in bytes.
        nbytes: u64,
    },
}

impl StorageSource {
    /// Size in bytes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        match self {
            Self::Memory(memory) => memory.nbytes() as u64,
            Self::Staged { nbytes } => *nbytes,
        }
    }
}

/// Where the bytes of one record come from.
#[derive(Debug)]
pub(super) enum Payload {
    /// Known from the start.
    Fixed(Vec<u8>),
    /// A storage in host memory.
    Memory(Memory),
    /// The storage with this number, on a device or yet to be made.
    Staged(usize),
    /// The serialization id: a hash over the CRCs of all the other records.
    SerializationId,
}

/// One archive, planned to the byte.
#[derive(Debug)]
pub struct ArchivePlan {
    pub(super) layout: Layout,
    pub(super) payloads: Vec<Payload>,
    pub(super) mark: SaveMark,
}

impl ArchivePlan {
    /// Plans an archive of `pickle` (data.pkl) and `storages` (`data/0`, `data/1`, ...).
    pub fn new(
        root: &str,
        pickle: Vec<u8>,
        storages: &[StorageSource],
        alignment: Alignment,
        mark: SaveMark,
    ) -> Result<Self, FormatError> {
        let sizes: Vec<u64> = storages.iter().map(StorageSource::nbytes).collect();
        let layout = plan_layout(root, pickle.len() as u64, &sizes, alignment)?;
        let mut pickle = Some(pickle);
        let payloads = layout
            .records()
            .iter()
            .enumerate()
            .map(|(position, record)| {
                let storage = position
                    .checked_sub(archive::FIRST_STORAGE)
                    .filter(|number| *number < storages.len());
                match storage {
                    Some(number) => match storages[number] {
                        StorageSource::Memory(memory) => Payload::Memory(memory),
                        StorageSource::Staged { .. } => Payload::Staged(number),
                    },
                    None if position == 0 => Payload::Fixed(pickle.take().unwrap_or_default()),
                    None => archive::fixed_payload(&record.name, alignment)
                        .map_or(Payload::SerializationId, Payload::Fixed),
                }
            })
            .collect();
        Ok(Self {
            layout,
            payloads,
            mark,
        })
    }

    /// The exact size of the file.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.layout.nbytes()
    }
}

fn plan_layout(
    root: &str,
    pickle_nbytes: u64,
    storage_nbytes: &[u64],
    alignment: Alignment,
) -> Result<Layout, FormatError> {
    let records = archive::record_specs(pickle_nbytes, alignment, storage_nbytes);
    Layout::plan(root, records, alignment)
}

/// The exact size of the file that an [`ArchivePlan`] of a pickle and storages of these sizes
/// would give.
pub fn archive_nbytes(
    root: &str,
    pickle_nbytes: u64,
    storage_nbytes: &[u64],
    alignment: Alignment,
) -> Result<u64, FormatError> {
    plan_layout(root, pickle_nbytes, storage_nbytes, alignment).map(|layout| layout.nbytes())
}
