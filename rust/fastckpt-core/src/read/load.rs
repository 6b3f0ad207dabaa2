//! Records into private memory: read into mappings of our own, or mapped from the file.
//!
//! Reading: every extent gets anonymous memory in which each byte lies at its offset in the file
//! modulo the block size, so that direct reads need no copy. The workers take chunks of it in file
//! order; a chunk's bytes are checked as they arrive.

use std::iter;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use fastckpt_format::index::Index;

use super::align::align;
use super::extents::{Extent, Selection, cut};
use super::inspect::{Inspection, Verdict};
use super::{ReadOptions, Span};
use crate::error::Result;
use crate::files::BLOCK_NBYTES;
use crate::job::{Job, Observer, lock};
use crate::mapping::Mapping;
use crate::source::{CHUNK_NBYTES, Source, allocate, chunks_of, in_memory, total_nbytes};

/// A mapped file is looked at in chunks of this size: large enough that handing them out costs
/// nothing, small enough that all workers end together.
const MAPPED_CHUNK_NBYTES: u64 = 4 << 20;

/// The selected records' bytes, in the order of the selection, and what was found wrong with them.
pub(super) type Loaded = (Vec<Span>, Verdict);

/// A part of the file that one worker reads to where it belongs.
struct Chunk<'a> {
    range: Range<u64>,
    /// The blocks that have it. Nobody else's: the lock is never waited for.
    memory: Mutex<&'a mut [u8]>,
}

/// Reads the selected records into memory of their own.
pub(super) fn read(
    source: &Source,
    index: &Index,
    selection: &Selection,
    options: &ReadOptions,
    observer: &mut dyn Observer,
) -> Result<Loaded> {
    let extents = cut(index, selection);
    let mut mappings = extents
        .iter()
        .map(allocate_for)
        .collect::<Result<Vec<_>>>()?;
    let inspection = Inspection::new(index, selection, options.verify);
    let ranges: Vec<_> = extents.iter().map(|extent| extent.range.clone()).collect();
    let chunks: Vec<_> = iter::zip(&extents, &mut mappings)
        .flat_map(|(extent, mapping)| chunks_into(extent, mapping))
        .collect();
    let job = Job::new(total_nbytes(&ranges));
    job.run(
        options.threads(),
        chunks.len(),
        observer,
        None,
        || Ok(()),
        |(), item| {
            let chunk = &chunks[item];
            source.read_chunk(
                &chunk.range,
                &mut lock(&chunk.memory),
                &mut |offset, bytes| {
                    inspection.look(offset, bytes);
                },
            )?;
            job.advance(chunk.range.end - chunk.range.start);
            Ok(())
        },
    )?;
    drop(chunks);
    let mut spans = spans_in(index, selection, &extents, mappings);
    align(&mut spans)?;
    Ok((spans, inspection.finish()))
}

fn allocate_for(extent: &Extent) -> Result<Mapping> {
    let nbytes = extent.range.end - extent.mapping_offset();
    allocate(nbytes.next_multiple_of(BLOCK_NBYTES))
}

/// Cuts an extent into chunks that end where a huge page does, so that no two workers fault in the
/// same one (the kernel would clear it twice).
fn chunks_into<'a>(extent: &Extent, mapping: &'a mut Mapping) -> Vec<Chunk<'a>> {
    let mut chunks = Vec::new();
    let mut nbytes = CHUNK_NBYTES - mapping.address().addr() % CHUNK_NBYTES;
    let mut memory = mapping.as_mut_slice();
    let mut offset = extent.mapping_offset();
    while !memory.is_empty() {
        let (first, rest) = memory.split_at_mut(nbytes.min(memory.len()));
        let end = offset + first.len() as u64;
        let range = offset.max(extent.range.start)..end.min(extent.range.end);
        chunks.push(Chunk {
            range,
            memory: Mutex::new(first),
        });
        (memory, offset, nbytes) = (rest, end, CHUNK_NBYTES);
    }
    chunks
}

/// Where the selected records lie in the mappings of their extents.
fn spans_in(
    index: &Index,
    selection: &Selection,
    extents: &[Extent],
    mappings: Vec<Mapping>,
) -> Vec<Span> {
    let mut spans = Vec::with_capacity(selection.entries.len());
    for (extent, mapping) in iter::zip(extents, mappings) {
        let memory = Arc::new(mapping);
        for &position in &selection.entries[extent.selected.clone()] {
            let entry = &index.entries()[position];
            let offset = in_memory(entry.payload_offset - extent.mapping_offset());
            spans.push(Span {
                memory: Arc::clone(&memory),
                offset,
                nbytes: in_memory(entry.nbytes),
            });
        }
    }
    spans
}

/// Maps the whole file, and looks at the selected records in it; reads what cannot be mapped.
pub(super) fn map(
    source: &Source,
    index: &Index,
    selection: &Selection,
    options: &ReadOptions,
    observer: &mut dyn Observer,
) -> Result<Loaded> {
    let Some(mapping) = source.map()? else {
        return read(source, index, selection, options, observer);
    };
    let memory = Arc::new(mapping);
    let inspection = Inspection::new(index, selection, options.verify);
    let ranges = if inspection.is_idle() {
        Vec::new()
    } else {
        selection.ranges(index)
    };
    if options.verify {
        memory.advise_sequential();
    }
    let chunks = chunks_of(&ranges, MAPPED_CHUNK_NBYTES);
    let job = Job::new(total_nbytes(&ranges));
    job.run(
        options.threads(),
        chunks.len(),
        observer,
        None,
        || Ok(()),
        |(), item| {
            let chunk = &chunks[item];
            source.populate(&memory, chunk)?;
            inspection.look(
                chunk.start,
                &memory.as_slice()[in_memory(chunk.start)..in_memory(chunk.end)],
            );
            job.advance(chunk.end - chunk.start);
            Ok(())
        },
    )?;
    let span = |&position: &usize| {
        let entry = &index.entries()[position];
        let (offset, nbytes) = (in_memory(entry.payload_offset), in_memory(entry.nbytes));
        Span {
            memory: Arc::clone(&memory),
            offset,
            nbytes,
        }
    };
    Ok((
        selection.entries.iter().map(span).collect(),
        inspection.finish(),
    ))
}
