//! The bytes of any chunk of an archive.
//!
//! Chunks are composed by several threads at once. What a chunk holds of payloads is copied and
//! checksummed first; then come the bytes that depend on checksums: the descriptor behind a record
//! waits for the pieces of that record that lie in earlier chunks, and the end of the file waits
//! for all of them. Chunks are taken in order and wait only for earlier ones, so the earliest
//! chunk that is not finished can always be finished.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use fastckpt_format::{archive, checksum};

use super::StorageMaker;
use super::plan::{ArchivePlan, Payload};
use super::staging::Staging;
use crate::error::{Error, Result};
use crate::job::Job;

/// An archive, to be composed chunk by chunk.
pub(super) struct Image<'a> {
    plan: &'a ArchivePlan,
    chunk_nbytes: u64,
    checksums: RecordChecksums,
    staging: Option<&'a Staging>,
    maker: Option<&'a dyn StorageMaker>,
    tail: OnceLock<Tail>,
}

/// What depends on every record's CRC.
struct Tail {
    serialization_id: [u8; 40],
    directory: Vec<u8>,
}

impl<'a> Image<'a> {
    pub(super) fn new(
        plan: &'a ArchivePlan,
        chunk_nbytes: usize,
        staging: Option<&'a Staging>,
        maker: Option<&'a dyn StorageMaker>,
    ) -> Self {
        let chunk_nbytes = chunk_nbytes as u64;
        let checksums = RecordChecksums::new(plan, chunk_nbytes);
        Self {
            plan,
            chunk_nbytes,
            checksums,
            staging,
            maker,
            tail: OnceLock::new(),
        }
    }

    /// How many chunks there are.
    pub(super) fn chunks(&self) -> usize {
        usize::try_from(self.plan.nbytes().div_ceil(self.chunk_nbytes)).unwrap_or(usize::MAX)
    }

    /// The second half of the serialization id, once the last chunk has been composed.
    pub(super) fn content_hash(&self) -> String {
        let id = self
            .tail
            .get()
            .map_or(&[][..], |tail| &tail.serialization_id);
        String::from_utf8_lossy(&id[id.len() / 2..]).into_owned()
    }

    /// Where a chunk lies in the file.
    pub(super) fn range(&self, chunk: usize) -> Range<u64> {
        let start = chunk as u64 * self.chunk_nbytes;
        start..self.plan.nbytes().min(start + self.chunk_nbytes)
    }

    /// Fills `out` with the bytes of a chunk.
    pub(super) fn compose(&self, job: &Job, chunk: usize, out: &mut [u8]) -> Result<()> {
        let range = self.range(chunk);
        let records = self.plan.layout.records();
        let first = records.partition_point(|record| {
            record.payload_offset + record.nbytes + record.descriptor_nbytes <= range.start
        });
        let mut window = Window {
            start: range.start,
            out,
        };
        let touched = first
            ..first + records[first..].partition_point(|record| record.header_offset < range.end);
        for index in touched.clone() {
            self.put_payload(job, chunk, index, &mut window)?;
        }
        job.notify();
        for index in touched {
            self.put_framing(job, index, &mut window)?;
        }
        if range.end > self.plan.layout.directory_offset() {
            window.put(
                self.plan.layout.directory_offset(),
                &self.tail(job)?.directory,
            );
        }
        Ok(())
    }

    /// Copies what the chunk holds of a record's payload, and hands in its CRC.
    fn put_payload(
        &self,
        job: &Job,
        chunk: usize,
        index: usize,
        window: &mut Window<'_>,
    ) -> Result<()> {
        let record = &self.plan.layout.records()[index];
        let Some((inside, part)) = window.part(record.payload_offset, record.nbytes) else {
            return Ok(());
        };
        let crc = match &self.plan.payloads[index] {
            Payload::Fixed(bytes) => {
                let start = usize::try_from(inside).unwrap_or(usize::MAX);
                part.copy_from_slice(&bytes[start..start + part.len()]);
                checksum::crc32(part)
            }
            Payload::Memory(memory) => {
                let inside = usize::try_from(inside).unwrap_or(usize::MAX);
                if !memory.is_mapped(inside, part.len()) {
                    return Err(Error::StorageChanged {
                        storage: index - archive::FIRST_STORAGE,
                        nbytes: record.nbytes,
                    });
                }
                memory.copy_checksummed(inside, part)
            }
            Payload::Staged(storage) => match (self.staging, self.maker) {
                (Some(staging), _) => staging.copy_checksummed(job, *storage, inside, part)?,
                (None, Some(maker)) => {
                    maker.make(*storage, inside, part)?;
                    checksum::crc32(part)
                }
                (None, None) => unreachable!("somebody supplies the storages of a plan"),
            },
            Payload::SerializationId => return Ok(()),
        };
        self.checksums
            .hand_in(self.plan, self.chunk_nbytes, index, chunk, crc);
        Ok(())
    }

    /// Puts the header before a record and the descriptor behind it, as far as the chunk has them.
    fn put_framing(&self, job: &Job, index: usize, window: &mut Window<'_>) -> Result<()> {
        let layout = &self.plan.layout;
        let record = &layout.records()[index];
        if window
            .part(
                record.header_offset,
                record.payload_offset - record.header_offset,
            )
            .is_some()
        {
            window.put(record.header_offset, &layout.local_header(index));
        }
        let is_id = matches!(self.plan.payloads[index], Payload::SerializationId);
        if is_id {
            window.put(record.payload_offset, &self.tail(job)?.serialization_id);
        }
        let descriptor_offset = record.payload_offset + record.nbytes;
        if window
            .part(descriptor_offset, record.descriptor_nbytes)
            .is_some()
        {
            let crc = if is_id {
                checksum::crc32(&self.tail(job)?.serialization_id)
            } else {
                job.wait_until(|| self.checksums.get(index).is_some())?;
                self.checksums.get(index).unwrap_or_default()
            };
            window.put(descriptor_offset, &layout.descriptor(index, crc));
        }
        Ok(())
    }

    fn tail(&self, job: &Job) -> Result<&Tail> {
        job.wait_until(|| self.checksums.is_complete())?;
        Ok(self.tail.get_or_init(|| {
            let records = self.plan.layout.records();
            let mut crcs: Vec<u32> = (0..records.len())
                .map(|index| self.checksums.get(index).unwrap_or_default())
                .collect();
            let others: Vec<(u32, u64)> = crcs
                .iter()
                .zip(records)
                .zip(&self.plan.payloads)
                .filter(|(_, payload)| !matches!(payload, Payload::SerializationId))
                .map(|((crc, record), _)| (*crc, record.nbytes))
                .collect();
            let serialization_id = archive::serialization_id(self.plan.mark, &others);
            for (crc, payload) in crcs.iter_mut().zip(&self.plan.payloads) {
                if matches!(payload, Payload::SerializationId) {
                    *crc = checksum::crc32(&serialization_id);
                }
            }
            Tail {
                serialization_id,
                directory: self.plan.layout.directory(&crcs),
            }
        }))
    }
}

/// A stretch of the file that is being composed.
struct Window<'a> {
    start: u64,
    out: &'a mut [u8],
}

impl Window<'_> {
    /// The part of the window that shows the file's bytes `offset..offset + nbytes`, and how far
    /// into those bytes it begins; `None` where it shows none of them.
    fn part(&mut self, offset: u64, nbytes: u64) -> Option<(u64, &mut [u8])> {
        let from = offset.max(self.start);
        let to = (offset + nbytes).min(self.start + self.out.len() as u64);
        if from >= to {
            return None;
        }
        let range =
            usize::try_from(from - self.start).ok()?..usize::try_from(to - self.start).ok()?;
        Some((from - offset, &mut self.out[range]))
    }

    /// Puts those of `bytes`, which begin at `offset` in the file, that the window shows.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        if let Some((inside, part)) = self.part(offset, bytes.len() as u64) {
            let inside = usize::try_from(inside).unwrap_or(usize::MAX);
            part.copy_from_slice(&bytes[inside..inside + part.len()]);
        }
    }
}

/// The CRC of each record, from those of the pieces that lie in different chunks.
struct RecordChecksums {
    /// One per piece: the pieces of record i are `first_piece[i]..first_piece[i + 1]`.
    pieces: Vec<AtomicU32>,
    first_piece: Vec<usize>,
    /// Pieces that have not been handed in, for each record.
    missing: Vec<AtomicUsize>,
    /// The CRC with `READY` set, for each record whose pieces are all there.
    whole: Vec<AtomicU64>,
    incomplete_records: AtomicUsize,
}

/// Marks a CRC in `RecordChecksums::whole` as known.
const READY: u64 = 1 << 32;

impl RecordChecksums {
    fn new(plan: &ArchivePlan, chunk_nbytes: u64) -> Self {
        let mut first_piece = vec![0];
        let mut missing = Vec::new();
        let mut whole = Vec::new();
        let mut incomplete_records = 0;
        for (record, payload) in plan.layout.records().iter().zip(&plan.payloads) {
            let covered = record.nbytes > 0 && !matches!(payload, Payload::SerializationId);
            let pieces = if covered {
                let last = record.payload_offset + record.nbytes - 1;
                usize::try_from(last / chunk_nbytes - record.payload_offset / chunk_nbytes + 1)
                    .unwrap_or(usize::MAX)
            } else {
                0
            };
            incomplete_records += usize::from(covered);
            first_piece.push(first_piece.last().copied().unwrap_or_default() + pieces);
            missing.push(AtomicUsize::new(pieces));
            // The CRC of nothing is 0.
            whole.push(AtomicU64::new(if covered { 0 } else { READY }));
        }
        let pieces = (0..first_piece.last().copied().unwrap_or_default())
            .map(|_| AtomicU32::new(0))
            .collect();
        Self {
            pieces,
            first_piece,
            missing,
            whole,
            incomplete_records: AtomicUsize::new(incomplete_records),
        }
    }

    /// Takes the CRC of what `chunk` holds of record `index`.
    fn hand_in(&self, plan: &ArchivePlan, chunk_nbytes: u64, index: usize, chunk: usize, crc: u32) {
        let record = &plan.layout.records()[index];
        let first_chunk = record.payload_offset / chunk_nbytes;
        let piece = chunk - usize::try_from(first_chunk).unwrap_or(usize::MAX);
        let pieces = &self.pieces[self.first_piece[index]..self.first_piece[index + 1]];
        pieces[piece].store(crc, Ordering::Relaxed);
        // AcqRel: whoever hands in the last piece sees all the others.
        if self.missing[index].fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let end = record.payload_offset + record.nbytes;
        let mut whole = pieces[0].load(Ordering::Relaxed);
        for (later, crc) in pieces.iter().enumerate().skip(1) {
            let start = (first_chunk + later as u64) * chunk_nbytes;
            whole = checksum::combine(
                whole,
                crc.load(Ordering::Relaxed),
                end.min(start + chunk_nbytes) - start,
            );
        }
        self.whole[index].store(u64::from(whole) | READY, Ordering::Release);
        self.incomplete_records.fetch_sub(1, Ordering::AcqRel);
    }

    /// The CRC of record `index`, once all its pieces are there.
    fn get(&self, index: usize) -> Option<u32> {
        let whole = self.whole[index].load(Ordering::Acquire);
        (whole & READY != 0).then_some(u32::try_from(whole & !READY).unwrap_or_default())
    }

    fn is_complete(&self) -> bool {
        self.incomplete_records.load(Ordering::Acquire) == 0
    }
}
