//! Files of torch before 1.6, and of `torch.save(..., _use_new_zipfile_serialization=False)`.
//!
//! Five pickles stand one behind the other: a magic number, a protocol version, what the machine was
//! like, the object, and the keys of the storages. Then, for each key, an element count of 8 bytes and
//! the elements, all of them little-endian. There is no checksum.
//!
//! The object's pickle says how large each storage is, so the list of keys alone decides where every
//! byte lies: the counts are compared, and nothing is ever read by them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use crate::index::{Entry, Index};
use crate::pickle::{self, Graph, Limits, Node, PickleError};

/// torch's `MAGIC_NUMBER`, 0x1950a86a20f9469cfc6c, as a pickle has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// torch's `PROTOCOL_VERSION`.
const PROTOCOL_VERSION: i64 = 1001;
/// The element count in front of a storage.
pub const COUNT_NBYTES: u64 = 8;

/// One of the pickles at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The magic number.
    Magic,
    /// The protocol version.
    Protocol,
    /// Byte order and sizes of C's types where the file was written; nobody uses them.
    SystemInfo,
    /// The object that was saved.
    Object,
    /// The keys of the storages, in the order in which they follow.
    Keys,
}

impl Part {
    const ALL: [Self; 5] = [
        Self::Magic,
        Self::Protocol,
        Self::SystemInfo,
        Self::Object,
        Self::Keys,
    ];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magic => "the pickle of the magic number",
            Self::Protocol => "the pickle of the protocol version",
            Self::SystemInfo => "the pickle of the system info",
            Self::Object => "the pickle of the object",
            Self::Keys => "the pickle of the storage keys",
        })
    }
}

/// Why a legacy file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LegacyError {
    /// A pickle asks for what is not allowed, or is none.
    #[error("{}", describe(*.part, .source))]
    Pickle {
        /// Which pickle.
        part: Part,
        /// What is wrong with it.
        source: PickleError,
    },
    /// A pickle that has plain values alone in every file has something else.
    #[error("{part} has {found}, which none has")]
    NotPlain {
        /// Which pickle.
        part: Part,
        /// What it has.
        found: &'static str,
    },
    /// The file ends before the storages begin.
    #[error("the file ends after {nbytes} bytes, inside {part}: it is truncated")]
    Truncated {
        /// Where it ends.
        part: Part,
        /// How long it is.
        nbytes: u64,
    },
    /// The first pickle is something else.
    #[error("the file does not begin with the magic number of torch.save")]
    Magic,
    /// The second pickle is something else.
    #[error("the protocol version is not {PROTOCOL_VERSION}")]
    Protocol,
    /// The keys are not a list of strings.
    #[error("damaged: the storage keys are not a list of str")]
    Keys,
    /// The list of keys and the object do not agree.
    #[error("damaged: the list of storage keys {problem} {key:?}")]
    Key {
        /// What is wrong: "lacks" or "has twice".
        problem: &'static str,
        /// The key.
        key: String,
    },
    /// One storage with two sizes.
    #[error(
        "damaged: storage {key:?} has {first} bytes in one place of the object and {second} in another"
    )]
    TwoSizes {
        /// Its key.
        key: String,
        /// The first size.
        first: u64,
        /// The other.
        second: u64,
    },
    /// A storage that reaches past the end of the file.
    #[error(
        "the file is truncated: storage {key:?} should end at byte {end}, and the file has {nbytes}"
    )]
    OutOfBounds {
        /// Its key.
        key: String,
        /// Where it should end.
        end: u64,
        /// Size of the file.
        nbytes: u64,
    },
    /// The count in front of a storage is not that of the object's pickle.
    #[error(
        "damaged: storage {key:?} at offset {offset}: expected a count of {expected} elements, found {found}"
    )]
    Count {
        /// The key of the storage.
        key: String,
        /// Where the count stands.
        offset: u64,
        /// The elements that the pickle says.
        expected: u64,
        /// The count.
        found: i64,
    },
}

/// The decoder speaks of data.pkl, which a legacy file does not have.
fn describe(part: Part, source: &PickleError) -> String {
    let text = source.to_string();
    let rest = text.strip_prefix("data.pkl").map(str::to_owned);
    match rest {
        Some(rest) => format!("{part},{rest}"),
        None => format!("{part}: {text}"),
    }
}

/// What stands in front of the storages, decoded.
#[derive(Debug)]
pub struct Header {
    /// The object, without its storages' elements.
    pub graph: Graph,
    storages: Vec<Stored>,
    nbytes: u64,
}

/// One storage of the file.
#[derive(Debug)]
struct Stored {
    key: String,
    numel: u64,
    nbytes: u64,
}

/// Where the count of a storage stands, and what it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The key of the storage.
    pub key: String,
    /// Offset in the file.
    pub offset: u64,
    /// The number of elements.
    pub expected: u64,
}

impl Count {
    /// Compares the count with the bytes that stand in its place.
    ///
    /// # Errors
    /// Where they say something else.
    pub fn check(&self, bytes: [u8; 8]) -> Result<(), LegacyError> {
        let found = i64::from_le_bytes(bytes);
        if u64::try_from(found) == Ok(self.expected) {
            return Ok(());
        }
        Err(LegacyError::Count {
            key: shown(&self.key),
            offset: self.offset,
            expected: self.expected,
            found,
        })
    }
}

/// Where the storages lie.
#[derive(Debug)]
pub struct Contents {
    /// Their records, as an archive would have them: `data/<key>`, without checksums.
    pub index: Index,
    /// The counts in front of them.
    pub counts: Vec<Count>,
    /// Where the last one ends; what follows belongs to somebody else.
    pub end: u64,
}

impl Header {
    /// Decodes the pickles that `bytes` begin with; `None` where they need more bytes than there are.
    ///
    /// # Errors
    /// Where a pickle is refused or is not what torch.save writes, or where object and keys do not agree.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, LegacyError> {
        let Some(ranges) = ranges(bytes)? else {
            return Ok(None);
        };
        let [magic, protocol, system_info, object, keys] = ranges;
        let nbytes = keys.end as u64;
        let decode = |part, range: Range<usize>| {
            let pickle = bytes.get(range).unwrap_or_default().to_vec();
            pickle::decode_legacy(pickle, Limits::default())
                .map_err(|source| LegacyError::Pickle { part, source })
        };
        let decode_plain = |part, range| {
            let graph = decode(part, range)?;
            match graph.nodes().iter().find(|node| !is_plain(node)) {
                None => Ok(graph),
                Some(node) => Err(LegacyError::NotPlain {
                    part,
                    found: node.kind(),
                }),
            }
        };
        check_magic(&decode_plain(Part::Magic, magic)?)?;
        check_protocol(&decode_plain(Part::Protocol, protocol)?)?;
        decode_plain(Part::SystemInfo, system_info)?;
        let graph = decode(Part::Object, object)?;
        let keys = keys_of(&decode_plain(Part::Keys, keys)?)?;
        let storages = storages_of(&graph, keys)?;
        Ok(Some(Self {
            graph,
            storages,
            nbytes,
        }))
    }

    /// The pickle inside which a file ends that is `bytes` alone.
    #[must_use]
    pub fn truncated(bytes: &[u8]) -> LegacyError {
        let mut rest = bytes;
        let ends_in = |part: &Part| match pickle::length(rest) {
            Ok(Some(nbytes)) => {
                rest = rest.get(nbytes..).unwrap_or_default();
                None
            }
            _ => Some(*part),
        };
        LegacyError::Truncated {
            part: Part::ALL.iter().find_map(ends_in).unwrap_or(Part::Keys),
            nbytes: bytes.len() as u64,
        }
    }

    /// Where the storages lie in a file of `file_nbytes` bytes in which this header begins at `start`.
    ///
    /// # Errors
    /// Where the file is shorter than they are.
    pub fn contents(&self, start: u64, file_nbytes: u64) -> Result<Contents, LegacyError> {
        let mut end = start.saturating_add(self.nbytes);
        let mut entries = Vec::with_capacity(self.storages.len());
        let mut counts = Vec::with_capacity(self.storages.len());
        for storage in &self.storages {
            let header_offset = end;
            let payload_offset = header_offset.saturating_add(COUNT_NBYTES);
            end = payload_offset.saturating_add(storage.nbytes);
            if end > file_nbytes {
                return Err(LegacyError::OutOfBounds {
                    key: shown(&storage.key),
                    end,
                    nbytes: file_nbytes,
                });
            }
            counts.push(Count {
                key: storage.key.clone(),
                offset: header_offset,
                expected: storage.numel,
            });
            entries.push(Entry {
                name: format!("data/{}", storage.key),
                header_offset,
                payload_offset,
                nbytes: storage.nbytes,
                crc32: 0,
            });
        }
        Ok(Contents {
            index: Index::without_checksums(entries, file_nbytes),
            counts,
            end,
        })
    }
}

/// Where the pickles stand.
fn ranges(bytes: &[u8]) -> Result<Option<[Range<usize>; 5]>, LegacyError> {
    let mut ranges: [Range<usize>; 5] = Default::default();
    let mut start = 0_usize;
    for (part, range) in Part::ALL.into_iter().zip(&mut ranges) {
        let rest = bytes.get(start..).unwrap_or_default();
        let length = pickle::length(rest);
        let Some(nbytes) = length.map_err(|source| LegacyError::Pickle { part, source })? else {
            return Ok(None);
        };
        let end = start.saturating_add(nbytes);
        *range = start..end;
        start = end;
    }
    Ok(Some(ranges))
}

/// Whether it is what every pickle but the object's consists of.
fn is_plain(node: &Node) -> bool {
    matches!(
        node,
        Node::None
            | Node::Bool(_)
            | Node::Int(_)
            | Node::Long(_)
            | Node::Float(_)
            | Node::Text(_)
            | Node::Tuple(_)
            | Node::List(_)
            | Node::Dict(_)
    )
}

fn check_magic(graph: &Graph) -> Result<(), LegacyError> {
    match graph.node(graph.root()) {
        Node::Long(bytes) if **bytes == MAGIC => Ok(()),
        _ => Err(LegacyError::Magic),
    }
}

fn check_protocol(graph: &Graph) -> Result<(), LegacyError> {
    match graph.node(graph.root()) {
        Node::Int(PROTOCOL_VERSION) => Ok(()),
        _ => Err(LegacyError::Protocol),
    }
}

/// The storage keys, each once.
fn keys_of(graph: &Graph) -> Result<Vec<String>, LegacyError> {
    let Node::List(items) = graph.node(graph.root()) else {
        return Err(LegacyError::Keys);
    };
    let mut seen = HashSet::with_capacity(items.len());
    let mut keys = Vec::with_capacity(items.len());
    for item in items {
        let Node::Text(text) = graph.node(*item) else {
            return Err(LegacyError::Keys);
        };
        let text = graph.text(*text);
        let key = std::str::from_utf8(text).map_err(|_surrogates| LegacyError::Keys)?;
        // Before it is copied: the memo may repeat a long key a million times.
        if !seen.insert(text) {
            return Err(LegacyError::Key {
                problem: "has twice",
                key: shown(key),
            });
        }
        keys.push(key.to_owned());
    }
    Ok(keys)
}

/// The storages in the order of the keys, which are those that the object refers to.
fn storages_of(graph: &Graph, keys: Vec<String>) -> Result<Vec<Stored>, LegacyError> {
    let mut sizes: HashMap<&str, (u64, u64)> = HashMap::new();
    let whole = graph.storages().iter();
    for storage in whole.filter(|storage| storage.view_offset.is_none()) {
        let (_, first) = *sizes
            .entry(&storage.key)
            .or_insert((storage.numel, storage.nbytes));
        if first != storage.nbytes {
            return Err(LegacyError::TwoSizes {
                key: shown(&storage.key),
                first,
                second: storage.nbytes,
            });
        }
    }
    let mut stored = Vec::with_capacity(keys.len());
    for key in keys {
        let Some((numel, nbytes)) = sizes.remove(key.as_str()) else {
            return Err(LegacyError::Key {
                problem: "has what the object does not refer to:",
                key: shown(&key),
            });
        };
        stored.push(Stored { key, numel, nbytes });
    }
    // What is not in the list would be memory that nobody has filled.
    match sizes.keys().min() {
        None => Ok(stored),
        Some(key) => Err(LegacyError::Key {
            problem: "lacks",
            key: shown(key),
        }),
    }
}

/// As much of a key as a message shows: torch's own are the digits of an address.
fn shown(key: &str) -> String {
    const MAX_CHARS: usize = 64;
    match key.char_indices().nth(MAX_CHARS) {
        None => key.to_owned(),
        Some((end, _)) => format!("{}…", key.get(..end).unwrap_or_default()),
    }
}
