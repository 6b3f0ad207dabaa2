//! Measures the memory that parsing an input takes: it has to be a small multiple of the input.
//!
//! Counts what is asked of Rust's allocator, in all threads. Mappings are not among it; they are made
//! for bytes that the file has.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Refusals have messages, and a window into the file has a smallest size.
const FIXED_NBYTES: usize = 64 << 10;

static LIVE_NBYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_NBYTES: AtomicUsize = AtomicUsize::new(0);

struct Meter;

#[global_allocator]
static METER: Meter = Meter;

fn add(nbytes: usize) {
    let live = LIVE_NBYTES.fetch_add(nbytes, Ordering::Relaxed) + nbytes;
    PEAK_NBYTES.fetch_max(live, Ordering::Relaxed);
}

fn remove(nbytes: usize) {
    LIVE_NBYTES.fetch_sub(nbytes, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise is the one that is asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        remove(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, nbytes: usize) -> *mut u8 {
        add(nbytes);
        remove(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, nbytes) }
    }
}

/// Runs `parse`, which is given an input of `input_nbytes` bytes.
///
/// # Panics
/// Where it had more than `multiple` times the input in use at once.
pub fn bounded<T>(input_nbytes: usize, multiple: usize, parse: impl FnOnce() -> T) -> T {
    let before = LIVE_NBYTES.load(Ordering::Relaxed);
    PEAK_NBYTES.store(before, Ordering::Relaxed);
    let result = parse();
    let peak = PEAK_NBYTES.load(Ordering::Relaxed).saturating_sub(before);
    let limit = FIXED_NBYTES + multiple * input_nbytes;
    assert!(
        peak <= limit,
        "{peak} bytes in use at once for {input_nbytes} of input"
    );
    result
}
