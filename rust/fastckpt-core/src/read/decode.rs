//! What the archive describes: data.pkl, and the small records beside it.

use std::collections::HashMap;

use fastckpt_format::index::Entry;
use fastckpt_format::pickle::{self, Graph, Limits, PickleError};

use super::Archive;
use crate::error::{Error, Result};
use crate::source::in_memory;

/// Records beside the storages' that are larger than this are nobody's metadata, and are not
/// checked until somebody reads them.
const MAX_METADATA_NBYTES: u64 = 1 << 20;

impl Archive {
    /// Reads and decodes `data.pkl`, and checks the other records that are not storages.
    ///
    /// # Errors
    /// Where one of them is not what was written, `data.pkl` is no pickle that torch.save writes
    /// for tensors, or the byte order is none.
    pub fn decode(&self, verify: bool) -> Result<Graph> {
        self.index()
            .require_checkpoint()
            .map_err(|source| self.source.malformed(source))?;
        let (_, pickle) = self.find(self.index(), "data.pkl")?;
        if pickle.nbytes > u64::from(u32::MAX) {
            let nbytes = in_memory(pickle.nbytes);
            return Err(self.not_decoded(PickleError::TooLarge {
                nbytes,
                limit: in_memory(u64::from(u32::MAX)),
            }));
        }
        let pickle = self.read_record("data.pkl", verify)?;
        let metadata: Vec<String> = self
            .index()
            .entries()
            .iter()
            .filter(|e| is_metadata(e))
            .map(|e| e.name.clone())
            .collect();
        for name in metadata {
            let payload = self.read_record(&name, verify)?;
            if name == "byteorder" && !matches!(payload.as_slice(), b"little" | b"big") {
                let found = String::from_utf8_lossy(&payload)
                    .chars()
                    .take(16)
                    .collect::<String>();
                return Err(self.bad_record(
                    "byteorder",
                    format!("says {found:?}, expected \"little\" or \"big\""),
                ));
            }
        }
        pickle::decode(pickle, Limits::default()).map_err(|source| self.not_decoded(source))
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

fn is_metadata(entry: &Entry) -> bool {
    entry.name != "data.pkl"
        && !entry.name.starts_with("data/")
        && entry.nbytes <= MAX_METADATA_NBYTES
}
