//! A window over the file: few reads, none larger than [`WINDOW_NBYTES`].

use crate::error::FormatError;

/// The most that is asked for at a time.
pub(super) const WINDOW_NBYTES: u64 = 1 << 20;

/// The file, seen through its `read` callback and the last window that was read.
pub(super) struct Source<R> {
    read: R,
    file_nbytes: u64,
    window_offset: u64,
    window: Vec<u8>,
}

impl<R> Source<R> {
    pub(super) fn new(file_nbytes: u64, read: R) -> Self {
        Self {
            read,
            file_nbytes,
            window_offset: 0,
            window: Vec::new(),
        }
    }

    pub(super) fn file_nbytes(&self) -> u64 {
        self.file_nbytes
    }

    /// The part of the window from `offset` on, if it has `nbytes` bytes there.
    fn cached(&self, offset: u64, nbytes: usize) -> Option<&[u8]> {
        let skip = usize::try_from(offset.checked_sub(self.window_offset)?).ok()?;
        self.window.get(skip..)?.get(..nbytes)
    }

    /// The `nbytes` bytes at `offset`. If they are not at hand, reads up to `until` (if that is
    /// further) in the same go.
    pub(super) fn bytes<E>(&mut self, offset: u64, nbytes: usize, until: u64) -> Result<&[u8], E>
    where
        E: From<FormatError>,
        R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
    {
        if self.cached(offset, nbytes).is_none() {
            self.refill(offset, nbytes, until)?;
        }
        let truncated = FormatError::Truncated {
            offset,
            expected: nbytes as u64,
            found: self.window.len() as u64,
        };
        self.cached(offset, nbytes).ok_or_else(|| truncated.into())
    }

    fn refill<E>(&mut self, offset: u64, nbytes: usize, until: u64) -> Result<(), E>
    where
        E: From<FormatError>,
        R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
    {
        let ahead = until
            .min(self.file_nbytes)
            .saturating_sub(offset)
            .min(WINDOW_NBYTES);
        let wanted = ahead.max(nbytes as u64);
        let within = self.file_nbytes.saturating_sub(offset);
        if wanted > within {
            let (expected, found) = (wanted, within);
            return Err(FormatError::Truncated {
                offset,
                expected,
                found,
            }
            .into());
        }
        let wanted = usize::try_from(wanted).unwrap_or(nbytes);
        let window = (self.read)(offset, wanted)?;
        if window.len() != wanted {
            let (expected, found) = (wanted as u64, window.len() as u64);
            return Err(FormatError::Truncated {
                offset,
                expected,
                found,
            }
            .into());
        }
        self.window = window;
        self.window_offset = offset;
        Ok(())
    }
}
