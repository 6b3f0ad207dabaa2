//! Storages that live on a device come through a few host buffers, piece by piece, in the order in
//! which the file needs them: never a second full copy in host memory.

use std::collections::VecDeque;
use std::sync::Mutex;

use fastckpt_format::checksum;

use super::plan::{ArchivePlan, Payload};
use crate::error::{Error, Result};
use crate::job::{Attendant, Job, Stop, lock};
use crate::memory::Memory;

/// Copies from a device to host buffers. Called in the calling thread only.
pub trait SaveStager {
    /// The host buffers, of one size.
    fn slots(&self) -> &[Memory];
    /// Starts copying `nbytes` bytes of storage `storage` from `offset` on into a buffer.
    fn start(
        &mut self,
        slot: usize,
        storage: usize,
        offset: u64,
        nbytes: usize,
    ) -> std::result::Result<(), Stop>;
    /// Returns once the bytes are in the buffer.
    fn finish(&mut self, slot: usize) -> std::result::Result<(), Stop>;
}

/// What fills one buffer once.
#[derive(Debug, Clone, Copy)]
struct Piece {
    storage: usize,
    offset: u64,
    nbytes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    Free,
    /// A copy into it is under way.
    Filling,
    /// It holds a piece of which `unread_nbytes` have not been taken yet.
    Ready {
        piece: usize,
        unread_nbytes: usize,
    },
}

/// The pieces of all staged storages, and the buffers they pass through.
#[derive(Debug)]
pub(super) struct Staging {
    pieces: Vec<Piece>,
    slot_memory: Vec<Memory>,
    slots: Mutex<Vec<Slot>>,
}

impl Staging {
    pub(super) fn new(plan: &ArchivePlan, stager: &dyn SaveStager) -> Self {
        let slot_memory = stager.slots().to_vec();
        let slot_nbytes = slot_memory
            .iter()
            .map(Memory::nbytes)
            .min()
            .unwrap_or_default();
        let mut pieces = Vec::new();
        for (payload, record) in plan.payloads.iter().zip(plan.layout.records()) {
            let Payload::Staged(storage) = *payload else {
                continue;
            };
            let mut offset = 0;
            while offset < record.nbytes && slot_nbytes > 0 {
                let nbytes = usize::try_from(record.nbytes - offset)
                    .map_or(slot_nbytes, |left| left.min(slot_nbytes));
                pieces.push(Piece {
                    storage,
                    offset,
                    nbytes,
                });
                offset += nbytes as u64;
            }
        }
        let slots = Mutex::new(vec![Slot::Free; slot_memory.len()]);
        Self {
            pieces,
            slot_memory,
            slots,
        }
    }

    /// What the calling thread does while the workers write.
    pub(super) fn attendant<'a>(
        &'a self,
        stager: &'a mut dyn SaveStager,
        job: &'a Job,
    ) -> Stage<'a> {
        Stage {
            staging: self,
            stager,
            job,
            next_piece: 0,
            filling: VecDeque::new(),
        }
    }

    /// Copies `out.len()` bytes of a storage from `offset` on as they arrive; returns their CRC.
    pub(super) fn copy_checksummed(
        &self,
        job: &Job,
        storage: usize,
        offset: u64,
        out: &mut [u8],
    ) -> Result<u32> {
        let mut crc = 0;
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            // Pieces are in the order of storages, then of offsets.
            let index = self.pieces.partition_point(|piece| {
                (piece.storage, piece.offset + piece.nbytes as u64) <= (storage, at)
            });
            let piece = self.pieces[index];
            let inside = usize::try_from(at - piece.offset).unwrap_or(usize::MAX);
            let part_nbytes = (piece.nbytes - inside).min(out.len() - done);
            let slot = self.wait_for(job, index)?;
            let part = &mut out[done..done + part_nbytes];
            let part_crc = self.slot_memory[slot].copy_checksummed(inside, part);
            crc = checksum::combine(crc, part_crc, part_nbytes as u64);
            self.take(job, slot, part_nbytes);
            done += part_nbytes;
        }
        Ok(crc)
    }

    /// Waits until a piece is there; returns the slot that holds it.
    fn wait_for(&self, job: &Job, wanted: usize) -> Result<usize> {
        let mut found = 0;
        job.wait_until(|| {
            let slots = lock(&self.slots);
            let position = slots
                .iter()
                .position(|slot| matches!(slot, Slot::Ready { piece, .. } if *piece == wanted));
            found = position.unwrap_or_default();
            position.is_some()
        })?;
        Ok(found)
    }

    /// Counts bytes of a slot as taken; the last of them set it free.
    fn take(&self, job: &Job, slot: usize, nbytes: usize) {
        let mut slots = lock(&self.slots);
        if let Slot::Ready { unread_nbytes, .. } = &mut slots[slot] {
            *unread_nbytes -= nbytes;
            if *unread_nbytes == 0 {
                slots[slot] = Slot::Free;
                drop(slots);
                job.notify();
            }
        }
    }
}

/// Keeps the device copying: as many copies under way as there are free slots.
pub(super) struct Stage<'a> {
    staging: &'a Staging,
    stager: &'a mut dyn SaveStager,
    job: &'a Job,
    next_piece: usize,
    filling: VecDeque<(usize, usize)>,
}

impl Attendant for Stage<'_> {
    fn attend(&mut self) -> Result<bool> {
        let staging = self.staging;
        if let Some(piece) = staging.pieces.get(self.next_piece) {
            let free = lock(&staging.slots)
                .iter()
                .position(|slot| matches!(slot, Slot::Free));
            if let Some(slot) = free {
                lock(&staging.slots)[slot] = Slot::Filling;
                let started = self
                    .stager
                    .start(slot, piece.storage, piece.offset, piece.nbytes);
                started.map_err(|Stop| Error::Interrupted)?;
                self.filling.push_back((slot, self.next_piece));
                self.next_piece += 1;
                return Ok(true);
            }
        }
        let Some((slot, piece)) = self.filling.pop_front() else {
            return Ok(false);
        };
        self.stager
            .finish(slot)
            .map_err(|Stop| Error::Interrupted)?;
        let unread_nbytes = staging.pieces[piece].nbytes;
        lock(&staging.slots)[slot] = Slot::Ready {
            piece,
            unread_nbytes,
        };
        self.job.notify();
        Ok(true)
    }
}
