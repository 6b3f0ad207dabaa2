//! The position in the pickle: every length is compared with the bytes that are there.

use super::error::PickleError;
use super::graph::Text;

/// Reads the pickle once, front to back, and knows which opcode it is in.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    next: usize,
    /// Where the current opcode stands, for messages.
    pub(super) offset: usize,
    /// The current opcode, for messages.
    pub(super) opcode: u8,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            next: 0,
            offset: 0,
            opcode: 0,
        }
    }

    /// The bytes of a text that this cursor has read.
    pub(super) fn text(&self, text: Text) -> &'a [u8] {
        self.bytes.get(text.range()).unwrap_or_default()
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.next)
    }

    pub(super) fn position(&self) -> usize {
        self.next
    }

    /// Begins the next opcode.
    pub(super) fn opcode(&mut self) -> Result<u8, PickleError> {
        self.offset = self.next;
        let Some(&opcode) = self.bytes.get(self.next) else {
            return Err(PickleError::Truncated {
                offset: self.offset,
                opcode: None,
                missing: 1,
            });
        };
        self.next = self.next.saturating_add(1);
        self.opcode = opcode;
        Ok(opcode)
    }

    pub(super) fn take(&mut self, nbytes: usize) -> Result<&'a [u8], PickleError> {
        let end = self.next.saturating_add(nbytes);
        let Some(taken) = self.bytes.get(self.next..end) else {
            return Err(self.truncated(nbytes.saturating_sub(self.remaining())));
        };
        self.next = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let Some(&array) = self.bytes.get(self.next..).and_then(<[u8]>::first_chunk) else {
            return Err(self.truncated(N.saturating_sub(self.remaining())));
        };
        self.next = self.next.saturating_add(N);
        Ok(array)
    }

    pub(super) fn byte(&mut self) -> Result<u8, PickleError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PickleError> {
        self.array().map(u32::from_le_bytes)
    }

    /// A line of a `GLOBAL` opcode, without its newline.
    pub(super) fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = self.bytes.get(self.next..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(self.truncated(1));
        };
        let line = self.take(length)?;
        self.next = self.next.saturating_add(1);
        std::str::from_utf8(line).map_err(|_not_utf8| self.not_text())
    }

    /// The next `nbytes` as text; `surrogates` are let through where Python's pickler writes them.
    pub(super) fn span(&mut self, nbytes: usize, surrogates: bool) -> Result<Text, PickleError> {
        let start = self.next;
        let bytes = self.take(nbytes)?;
        let found = match std::str::from_utf8(bytes) {
            Ok(_) => false,
            Err(_) if surrogates && is_utf8_with_surrogates(bytes) => true,
            Err(_) => return Err(self.not_text()),
        };
        // The pickle is shorter than 4 GiB, so neither number can be out of range.
        let start = u32::try_from(start).unwrap_or(u32::MAX);
        let nbytes = u32::try_from(nbytes).unwrap_or(0);
        Ok(Text::new(start, nbytes, found))
    }

    fn not_text(&self) -> PickleError {
        PickleError::Text {
            offset: self.offset,
            opcode: self.opcode,
        }
    }

    fn truncated(&self, missing: usize) -> PickleError {
        PickleError::Truncated {
            offset: self.offset,
            opcode: Some(self.opcode),
            missing,
        }
    }
}

/// Whether these bytes are what Python's `surrogatepass` decodes: UTF-8 in which a surrogate may
/// stand as if it were any other character of three bytes.
fn is_utf8_with_surrogates(mut bytes: &[u8]) -> bool {
    loop {
        let Err(error) = std::str::from_utf8(bytes) else {
            return true;
        };
        let rest = bytes.get(error.valid_up_to()..).unwrap_or_default();
        match rest {
            [0xed, 0xa0..=0xbf, 0x80..=0xbf, after @ ..] => bytes = after,
            _ => return false,
        }
    }
}
