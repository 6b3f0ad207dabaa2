//! What the archive describes: data.pkl, and the small records beside it.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use fastckpt_format::index::Entry;
use fastckpt_format::pickle::{self, Graph, Limits, PickleError};

use super::Archive;
use crate::error::{Error, Result};
use crate::job::{Observer, Unobserved};
use crate::source::in_memory;

/// Records beside the storages' that are larger than this are nobody's metadata, and are not
/// checked until somebody reads them.
const MAX_METADATA_NBYTES: u64 = 1 << 20;

/// Archive versions that torch reads: `kMinSupportedFileFormatVersion` and
/// `kMaxSupportedFileFormatVersion` of its `caffe2/serialize/versions.h`.
const VERSIONS: RangeInclusive<u32> = 1..=10;

/// As much of a record as a message shows.
const MAX_SHOWN_NBYTES: usize = 32;

/// Positions in a pickle are 32 bits in the decoder.
const MAX_PICKLE_NBYTES: u64 = u32::MAX as u64;

impl Archive {
    /// Reads and decodes `data.pkl`, and checks the other records that are not storages.
    ///
    /// # Errors
    /// Where one of them is not what was written, `data.pkl` is no pickle that torch.save writes
    /// for tensors, or the byte order is none.
    pub fn decode(&self, verify: bool) -> Result<Graph> {
        self.decode_observed(verify, &mut Unobserved)
    }

    /// The same; the observer may stop it, and is told nothing of how far it is.
    ///
    /// # Errors
    /// As [`Archive::decode`], and [`Error::Interrupted`].
    pub fn decode_observed(&self, verify: bool, observer: &mut dyn Observer) -> Result<Graph> {
        self.index()
            .require_checkpoint()
            .map_err(|source| self.source.malformed(source))?;
        let (_, entry) = self.find("data.pkl")?;
        // Refused by its size, before memory is asked for.
        if entry.nbytes > MAX_PICKLE_NBYTES {
            let (nbytes, limit) = (in_memory(entry.nbytes), in_memory(MAX_PICKLE_NBYTES));
            return Err(self.not_decoded(PickleError::TooLarge { nbytes, limit }));
        }
        let pickle = self.read_record("data.pkl", verify)?;
        self.check_metadata(verify)?;
        self.check_byte_order(verify)?;
        let goes_on = || observer.poll(0, 0).is_ok();
        match pickle::decode_while(pickle, Limits::default(), goes_on) {
            Err(PickleError::Stopped) => Err(Error::Interrupted),
            decoded => decoded.map_err(|source| self.not_decoded(source)),
        }
    }

    fn check_metadata(&self, verify: bool) -> Result<()> {
        let entries = self.index().entries().iter();
        let names = entries
            .filter(|entry| is_metadata(entry))
            .map(|entry| &entry.name);
        for name in names {
            let payload = self.read_record(name, verify)?;
            self.check_stated(name, &payload)?;
        }
        Ok(())
    }

    /// Refuses what torch refuses an archive for: two readers are not to disagree about a file.
    fn check_stated(&self, name: &str, payload: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(payload).ok();
        let number = text.and_then(number);
        // torch's look-up ignores case, and would find a record here that is another one to us.
        let known = name.to_ascii_lowercase();
        let (is_sound, expected) = match known.as_str() {
            "version" | ".data/version" => (
                number.is_some_and(|version| VERSIONS.contains(&version)),
                "a version from 1 to 10",
            ),
            ".storage_alignment" => (number.is_some(), "a number"),
            ".data/serialization_id" => (text.is_some(), "text"),
            "byteorder" | ".format_version" => (true, ""),
            _ => return Ok(()),
        };
        if name != known {
            return Err(self.bad_record(name, format!("should be named {known}")));
        }
        if is_sound {
            return Ok(());
        }
        let shown = &payload[..payload.len().min(MAX_SHOWN_NBYTES)];
        let shown = String::from_utf8_lossy(shown);
        Err(self.bad_record(name, format!("has {shown:?}, expected {expected}")))
    }

    fn check_byte_order(&self, verify: bool) -> Result<()> {
        let name = "byteorder";
        // Before 2.0.1 there was no such record.
        let Some((_, entry)) = self.index().find(name) else {
            return Ok(());
        };
        let longest = "little".len() as u64;
        let found = if entry.nbytes > longest {
            format!("{} bytes", entry.nbytes)
        } else {
            let payload = self.read_record(name, verify)?;
            if matches!(payload.as_slice(), b"little" | b"big") {
                return Ok(());
            }
            format!("{:?}", String::from_utf8_lossy(&payload))
        };
        Err(self.bad_record(name, format!("has {found}, expected \"little\" or \"big\"")))
    }

    /// The tensors that lie in each record, as far as data.pkl can be read: for messages.
    pub(crate) fn tensors_by_record(&self) -> HashMap<String, Vec<String>> {
        let mut tensors: HashMap<String, Vec<String>> = HashMap::new();
        // data.pkl may be what is damaged, or a pickle that only torch can read.
        let Ok(pickle) = self.read_record("data.pkl", true) else {
            return tensors;
        };
        let Ok(graph) = pickle::decode(pickle, Limits::default()) else {
            return tensors;
        };
        for (storage, name) in graph.tensor_names() {
            if let Some(record) = graph.record_name(storage) {
                tensors.entry(record).or_default().push(name);
            }
        }
        tensors
    }

    fn not_decoded(&self, source: PickleError) -> Error {
        Error::Pickle {
            path: self.path().to_owned(),
            source,
        }
    }
}

/// Digits, which a new line may follow.
fn number(text: &str) -> Option<u32> {
    let digits = text.trim_ascii_end();
    // str::parse would take a sign.
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok())?
}

fn is_metadata(entry: &Entry) -> bool {
    entry.name != "data.pkl"
        && !entry.name.starts_with("data/")
        && entry.nbytes <= MAX_METADATA_NBYTES
}
