//! The storages of a save, which have to stay what they were until it has ended.
//!
//! torch frees the memory of a storage that is resized (as FSDP does between two steps), whoever holds the
//! storage. What a save then reads is no longer the tensor, with a checksum that fits; or it reads what
//! is not there, and the process ends. Nothing keeps torch from it. But the calling thread takes the GIL
//! every 50 ms anyway, and looks then at the storages that are about to be written; at the end at all of
//! them, so that no file of a storage that has changed gets a name.

use fastckpt_core::Error;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffers::HeldStorage;
use crate::errors;

/// Chunks that workers may be at: 16 of 2 MiB, and as much again for what is between records.
const BEHIND_NBYTES: u64 = 64 << 20;
/// More than is written from one look to the next, on any machine measured.
const AHEAD_NBYTES: u64 = 1 << 30;
/// Storages that are looked at, but for the last time: fewer calls than a look at the signals takes.
const MOST: usize = 256;
/// What a record has besides its payload: headers, names, padding.
const FRAMING_NBYTES: u64 = 256;

/// The storages in host memory of one archive, in the order in which they are written.
#[derive(Default)]
pub(crate) struct HeldStorages {
    /// With their numbers, and about where they end in the file.
    storages: Vec<(usize, HeldStorage, u64)>,
    /// About where the last record of the archive ends, as far as it is known.
    end: u64,
    /// Whether all have been looked at since the last byte was written.
    is_done: bool,
}

impl HeldStorages {
    /// Takes one more, the number `number` of the archive.
    pub(crate) fn push(&mut self, number: usize, storage: HeldStorage) {
        self.skip(storage.memory().nbytes() as u64);
        self.storages.push((number, storage, self.end));
    }

    /// Leaves room for a storage that is somewhere else.
    pub(crate) fn skip(&mut self, nbytes: u64) {
        self.end = self.end.saturating_add(FRAMING_NBYTES + nbytes);
    }

    /// Raises where one that is being written, or is written next, has changed; when all bytes are
    /// written, where any has.
    pub(crate) fn check(
        &mut self,
        py: Python<'_>,
        done_nbytes: u64,
        total_nbytes: u64,
    ) -> PyResult<()> {
        if self.is_done {
            return Ok(());
        }
        let range = if done_nbytes == total_nbytes {
            self.is_done = true;
            0..self.storages.len()
        } else {
            let written = done_nbytes.saturating_sub(BEHIND_NBYTES);
            let first = self.storages.partition_point(|(_, _, end)| *end <= written);
            let next = &self.storages[first..];
            let count = 1 + next.partition_point(|(_, _, end)| *end < done_nbytes + AHEAD_NBYTES);
            first..first + count.min(MOST).min(next.len())
        };
        for (number, storage, _) in &self.storages[range] {
            if !storage.is_unchanged(py)? {
                let error = Error::StorageChanged {
                    storage: *number,
                    nbytes: storage.memory().nbytes() as u64,
                };
                return Err(errors::to_python(py, error));
            }
        }
        Ok(())
    }
}

/// Raises where a storage has another size than when it was pickled.
pub(crate) fn require_size(number: usize, nbytes: u64, pickled: Option<&[u64]>) -> PyResult<()> {
    let Some(pickled) = pickled else {
        return Ok(());
    };
    let expected = *pickled
        .get(number)
        .ok_or_else(|| PyValueError::new_err("there is a size for each storage"))?;
    if nbytes == expected {
        return Ok(());
    }
    let error = Error::StorageChanged {
        storage: number,
        nbytes: expected,
    };
    Err(Python::attach(|py| errors::to_python(py, error)))
}
