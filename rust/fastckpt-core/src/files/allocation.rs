//! Reserving the space of a file in spite of signals.
//!
//! tmpfs gives up a reservation, and what it had of it, when a signal comes. Under a timer that fires faster
//! than that takes for a large file (a profiler's), the same call again would never end. So after a signal less
//! is asked for at a time, what has been reserved stays, and after many signals it is left at that: the
//! space is then taken when it is written to, as on file systems that cannot reserve any.

use std::io;

/// Less than this at a time is not worth a call.
const SMALLEST_NBYTES: u64 = 1 << 20;
/// From a terabyte on it takes 20 to get to the smallest piece.
const MAX_INTERRUPTIONS: u32 = 64;

/// Calls `reserve(offset, nbytes)` for all of `nbytes` bytes: once, if no signal comes.
///
/// # Errors
/// Those of `reserve`, and [`io::ErrorKind::Unsupported`] where signals keep it from getting anywhere.
pub(super) fn reserve_all(
    nbytes: u64,
    mut reserve: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut interruptions = 0;
    let mut piece_nbytes = nbytes;
    let mut done = 0;
    while done < nbytes {
        let part_nbytes = piece_nbytes.min(nbytes - done);
        match reserve(done, part_nbytes) {
            Ok(()) => done += part_nbytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                interruptions += 1;
                if interruptions > MAX_INTERRUPTIONS {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                piece_nbytes = (part_nbytes / 2).max(SMALLEST_NBYTES);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// Reserves from a system where a signal comes whenever more than `most` bytes are asked for, and before
    /// the first `first` calls; returns the calls that succeeded, and how many there were in all.
    fn reserved(nbytes: u64, most: u64, first: u32) -> (io::Result<()>, Vec<(u64, u64)>, u32) {
        let (mut parts, mut calls) = (Vec::new(), 0);
        let outcome = reserve_all(nbytes, |offset, nbytes| {
            calls += 1;
            if calls <= first || nbytes > most {
                return Err(io::ErrorKind::Interrupted.into());
            }
            parts.push((offset, nbytes));
            Ok(())
        });
        (outcome, parts, calls)
    }

    fn assert_covers(parts: &[(u64, u64)], nbytes: u64) {
        let mut end = 0;
        for (offset, nbytes) in parts {
            assert_eq!(*offset, end);
            assert!(*nbytes > 0);
            end += nbytes;
        }
        assert_eq!(end, nbytes);
    }

    #[test]
    fn without_signals_it_is_one_call() {
        for nbytes in [1, 4096, GIB, 1 << 50] {
            let (outcome, parts, calls) = reserved(nbytes, u64::MAX, 0);
            outcome.unwrap();
            assert_eq!((parts, calls), (vec![(0, nbytes)], 1));
        }
        let (outcome, parts, calls) = reserved(0, u64::MAX, 0);
        outcome.unwrap();
        assert_eq!((parts, calls), (vec![], 0));
    }

    #[test]
    fn signals_that_come_too_often_for_all_of_it_leave_time_for_pieces() {
        for nbytes in [GIB, 10 * GIB + 12_345, 100 * GIB] {
            for most in [2 << 20, 64 << 20, GIB] {
                let (outcome, parts, calls) = reserved(nbytes, most, 0);
                outcome.unwrap();
                assert_covers(&parts, nbytes);
                assert!(u64::from(calls) <= nbytes / most * 4 + 40, "{calls} calls");
            }
        }
    }

    #[test]
    fn a_few_signals_do_not_end_it() {
        for nbytes in [1, 5000, 3 << 20, GIB] {
            let (outcome, parts, _) = reserved(nbytes, u64::MAX, 30);
            outcome.unwrap();
            assert_covers(&parts, nbytes);
        }
    }

    #[test]
    fn signals_without_end_do() {
        for nbytes in [1, GIB, 1 << 50] {
            let (outcome, parts, calls) = reserved(nbytes, 0, 0);
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::Unsupported);
            assert_eq!((parts, calls), (vec![], MAX_INTERRUPTIONS + 1));
        }
    }

    #[test]
    fn other_errors_are_handed_on() {
        let full = |_, _| Err(io::ErrorKind::StorageFull.into());
        let error = reserve_all(GIB, full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
