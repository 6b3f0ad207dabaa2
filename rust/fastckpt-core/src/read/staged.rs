//! Records through the host buffers of a device: workers fill and check them, the calling thread
//! has them copied to where the storages live.
//!
//! A buffer, or slot, is free, with a worker, filled, or being copied out of. Copies are left under
//! way as long as there are other slots: one is waited for only when a worker is out of slots.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

use fastckpt_format::index::Index;

use super::ReadOptions;
use super::extents::{Selection, payload_end};
use super::inspect::{Inspection, Verdict, intersection};
use crate::error::{Error, Result};
use crate::files::BLOCK_NBYTES;
use crate::job::{Attendant, Job, Observer, Stop, lock};
use crate::memory::Memory;
use crate::source::{CHUNK_NBYTES, Source, block_start, chunks_of, in_memory, total_nbytes};

/// Moves bytes from host buffers to where the storages live. Called in the calling thread only.
///
/// Like an [`Observer`] it may ask to stop, and remembers why.
pub trait LoadStager {
    /// The host buffers: at least one, of one size, a multiple of [`BLOCK_NBYTES`]. Direct reads
    /// need their addresses to be multiples of it too. They are valid for the whole job.
    fn slots(&self) -> &[Memory];

    /// Starts to copy `nbytes` bytes of slot `slot` from `slot_offset` on to `offset` of
    /// destination `index`.
    fn place(
        &mut self,
        slot: usize,
        slot_offset: usize,
        index: usize,
        offset: u64,
        nbytes: usize,
    ) -> std::result::Result<(), Stop>;

    /// Returns when no copy out of slot `slot` is under way any more.
    fn release(&mut self, slot: usize) -> std::result::Result<(), Stop>;
}

/// Where the copies of a record go.
pub(super) struct Destination {
    /// Position in `Index::entries`.
    pub(super) entry: usize,
    /// What the stager calls it.
    pub(super) index: usize,
}

/// The slots, by what is happening to them.
#[derive(Debug, Default)]
struct Slots {
    free: Vec<usize>,
    /// With the chunks whose bytes they hold.
    filled: VecDeque<(usize, Range<u64>)>,
    /// Being copied out of, the oldest first.
    in_flight: VecDeque<usize>,
    /// Workers that wait for a free one.
    waiting: usize,
}

/// Which records go where.
pub(super) struct StagedRead<'a> {
    pub(super) source: &'a Source,
    pub(super) index: &'a Index,
    pub(super) selection: &'a Selection,
    /// In file order.
    pub(super) destinations: &'a [Destination],
}

impl StagedRead<'_> {
    /// Reads the selected records through the slots of `stager`.
    pub(super) fn run(
        &self,
        options: &ReadOptions,
        observer: &mut dyn Observer,
        stager: &mut dyn LoadStager,
    ) -> Result<Verdict> {
        let memories = stager.slots().to_vec();
        let ranges = self.selection.ranges(self.index);
        let chunks = chunks_of(&ranges, chunk_nbytes(&memories, total_nbytes(&ranges)));
        let inspection = Inspection::new(self.index, self.selection, options.verify);
        let slots = Mutex::new(Slots {
            free: (0..memories.len()).collect(),
            ..Slots::default()
        });
        let job = Job::new(total_nbytes(&ranges));
        let mut attendant = Placer {
            read: self,
            stager,
            slots: &slots,
            job: &job,
        };
        let work = |(): &mut (), item: usize| {
            let slot = wait_for_free_slot(&job, &slots)?;
            let chunk = &chunks[item];
            fill(self.source, chunk, &memories[slot], &inspection)?;
            lock(&slots).filled.push_back((slot, chunk.clone()));
            job.notify();
            Ok(())
        };
        let threads = options.threads();
        let outcome = job.run(
            threads,
            chunks.len(),
            observer,
            Some(&mut attendant),
            || Ok(()),
            work,
        );
        // The buffers are the caller's again when this returns, however it went.
        let released = attendant.release_all();
        outcome.and(released)?;
        Ok(inspection.finish())
    }
}

/// How much one filling of a slot holds: all of it, but small enough that every slot is used twice.
fn chunk_nbytes(memories: &[Memory], total_nbytes: u64) -> u64 {
    let smallest = memories.iter().map(Memory::nbytes).min().unwrap_or(0) as u64;
    let slot_nbytes = block_start(smallest);
    assert!(
        slot_nbytes > 0,
        "a stager has at least one slot of at least {BLOCK_NBYTES} bytes"
    );
    let share = total_nbytes / (2 * memories.len() as u64);
    share
        .next_multiple_of(BLOCK_NBYTES)
        .max(CHUNK_NBYTES as u64)
        .min(slot_nbytes)
}

fn wait_for_free_slot(job: &Job, slots: &Mutex<Slots>) -> Result<usize> {
    lock(slots).waiting += 1;
    job.notify();
    let mut slot = None;
    let outcome = job.wait_until(|| {
        slot = lock(slots).free.pop();
        slot.is_some()
    });
    lock(slots).waiting -= 1;
    outcome?;
    slot.ok_or(Error::Interrupted)
}

fn fill(
    source: &Source,
    chunk: &Range<u64>,
    memory: &Memory,
    inspection: &Inspection<'_>,
) -> Result<()> {
    let nbytes = in_memory((chunk.end - block_start(chunk.start)).next_multiple_of(BLOCK_NBYTES));
    // SAFETY: the slot was free: no copy out of it is under way, and no other worker has it until
    // it has been placed and released again.
    let buffer = unsafe { memory.part(0, nbytes) };
    source.read_chunk(chunk, buffer, &mut |offset, bytes| {
        inspection.look(offset, bytes);
    })
}

/// The calling thread's side.
struct Placer<'a> {
    read: &'a StagedRead<'a>,
    stager: &'a mut dyn LoadStager,
    slots: &'a Mutex<Slots>,
    job: &'a Job,
}

impl Attendant for Placer<'_> {
    fn attend(&mut self) -> Result<bool> {
        if self.place_next()? {
            return Ok(true);
        }
        let oldest = {
            let mut slots = lock(self.slots);
            if slots.waiting == 0 || !slots.free.is_empty() {
                None
            } else {
                slots.in_flight.pop_front()
            }
        };
        let Some(slot) = oldest else { return Ok(false) };
        let released = self.stager.release(slot);
        lock(self.slots).free.push(slot);
        self.job.notify();
        released.map_err(|Stop| Error::Interrupted)?;
        Ok(true)
    }
}

impl Placer<'_> {
    /// Has one filled slot copied; false where there is none.
    fn place_next(&mut self) -> Result<bool> {
        let Some((slot, chunk)) = lock(self.slots).filled.pop_front() else {
            return Ok(false);
        };
        // In flight from the first copy on, so that it is released also if a later one fails.
        lock(self.slots).in_flight.push_back(slot);
        let entries = self.read.index.entries();
        let first = self
            .read
            .destinations
            .partition_point(|to| payload_end(&entries[to.entry]) <= chunk.start);
        for to in &self.read.destinations[first..] {
            let entry = &entries[to.entry];
            if entry.payload_offset >= chunk.end {
                break;
            }
            let part = intersection(&(entry.payload_offset..payload_end(entry)), &chunk);
            if part.is_empty() {
                continue;
            }
            let slot_offset = in_memory(part.start - block_start(chunk.start));
            let nbytes = in_memory(part.end - part.start);
            self.stager
                .place(
                    slot,
                    slot_offset,
                    to.index,
                    part.start - entry.payload_offset,
                    nbytes,
                )
                .map_err(|Stop| Error::Interrupted)?;
        }
        self.job.advance(chunk.end - chunk.start);
        Ok(true)
    }

    /// Waits for every copy, also if one of them failed.
    fn release_all(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        loop {
            let Some(slot) = lock(self.slots).in_flight.pop_front() else {
                return outcome;
            };
            if let Err(Stop) = self.stager.release(slot) {
                outcome = Err(Error::Interrupted);
            }
        }
    }
}
