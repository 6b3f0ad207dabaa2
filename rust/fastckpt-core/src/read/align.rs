//! Records whose place in the file is not one where a tensor may lie in memory.
//!
//! A record lands at its offset in the file modulo the block size. torch aligns payloads to 64 bytes, and
//! then so is the memory. A file may have been written with an alignment of 1, though, and code that works
//! on tensors may take it that elements lie at multiples of their size.

use std::sync::Arc;

use super::Span;
use super::extents::MAX_ARENA_NBYTES;
use crate::error::Result;
use crate::mapping::Mapping;
use crate::source::allocate;

/// The largest element of any dtype, `complex128`, in bytes.
const MIN_ALIGNMENT: usize = 16;
/// Where moved records begin: what torch's own allocator gives.
const ALIGNMENT: usize = 64;

/// Moves the records that lie badly to where they do not: a large one within its own memory, so that it is
/// there once at any time, small ones into other memory.
pub(super) fn align(spans: &mut [Span]) -> Result<()> {
    for span in spans.iter_mut() {
        shift(span);
    }
    let mut badly_placed: Vec<&mut Span> = spans
        .iter_mut()
        .filter(|span| span.nbytes > 0 && !span.offset.is_multiple_of(MIN_ALIGNMENT))
        .collect();
    let mut rest = badly_placed.as_mut_slice();
    while !rest.is_empty() {
        let (group, nbytes) = next_arena(rest);
        let (moving, later) = rest.split_at_mut(group);
        move_into(allocate(nbytes as u64)?, moving);
        rest = later;
    }
    Ok(())
}

/// Moves a record that lies badly and has its memory for itself.
fn shift(span: &mut Span) {
    if span.nbytes == 0 || span.offset.is_multiple_of(MIN_ALIGNMENT) {
        return;
    }
    let offset = span.offset - span.offset % ALIGNMENT;
    if let Some(memory) = Arc::get_mut(&mut span.memory) {
        let record = span.offset..span.offset + span.nbytes;
        memory.as_mut_slice().copy_within(record, offset);
        span.offset = offset;
    }
}

/// How many of the next spans share an arena, and its size.
fn next_arena(spans: &[&mut Span]) -> (usize, usize) {
    let mut nbytes = 0;
    for (position, span) in spans.iter().enumerate() {
        let with_it = nbytes + span.nbytes.next_multiple_of(ALIGNMENT);
        if position > 0 && with_it as u64 > MAX_ARENA_NBYTES {
            return (position, nbytes);
        }
        nbytes = with_it;
    }
    (spans.len(), nbytes)
}

fn move_into(mut arena: Mapping, spans: &mut [&mut Span]) {
    let mut offset = 0;
    let mut offsets = Vec::with_capacity(spans.len());
    for span in spans.iter() {
        arena.as_mut_slice()[offset..offset + span.nbytes].copy_from_slice(span.as_slice());
        offsets.push(offset);
        offset += span.nbytes.next_multiple_of(ALIGNMENT);
    }
    let memory = Arc::new(arena);
    for (span, offset) in spans.iter_mut().zip(offsets) {
        span.memory = Arc::clone(&memory);
        span.offset = offset;
    }
}
