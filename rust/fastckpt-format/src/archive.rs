//! The records of one torch archive: their names, their order and the small ones' contents.

use crate::error::FormatError;
use crate::layout::{Alignment, RecordSpec};

/// The root folder torch uses when it has no file name to take it from.
pub const DEFAULT_ROOT: &str = "archive";

/// The first half of the serialization id that says who wrote the file: a 9, five digits for the
/// number of optimizer shards in the step, fourteen digits of save id.
///
/// torch puts a 64-bit hash of the record names there, at most 18446744073709551615, so no file of
/// torch's begins with a 9; no loader looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SaveMark {
    /// Number of optimizer shards of the step, at most 99999.
    pub shards: u32,
    /// Save id, below 10^14; 0 means that the file belongs to no step.
    pub save_id: u64,
}

/// Most shards that five digits can say; more are written as this many.
const MAX_SHARDS: u32 = 99_999;
/// Largest save id that fourteen digits can say.
const MAX_SAVE_ID: u64 = 99_999_999_999_999;
/// Decimal digits of one half of a serialization id: those of 2^64 - 1.
const HALF_DIGITS: usize = 20;
/// Size of `.data/serialization_id`: two halves.
pub(crate) const SERIALIZATION_ID_NBYTES: usize = 2 * HALF_DIGITS;

impl SaveMark {
    /// The mark in a `.data/serialization_id`; `None` if another writer made it.
    #[must_use]
    pub fn parse(serialization_id: &[u8]) -> Option<Self> {
        if serialization_id.len() != SERIALIZATION_ID_NBYTES {
            return None;
        }
        let half = std::str::from_utf8(serialization_id.get(..HALF_DIGITS)?).ok()?;
        let digits = half
            .strip_prefix('9')
            .filter(|s| s.bytes().all(|b| b.is_ascii_digit()))?;
        let (shards, save_id) = digits.split_at_checked(5)?;
        Some(Self {
            shards: shards.parse().ok()?,
            save_id: save_id.parse().ok()?,
        })
    }
}

/// The root folder that torch.save uses for a file of this name (the last path component): the
/// name without its last extension; `archive` where the path is not ASCII (`ascii_path` false).
///
/// torch's writer takes a backslash for a path separator on every system, and refuses a name with
/// nothing before its last dot; so does this.
pub fn root_folder(file_name: &str, ascii_path: bool) -> Result<String, FormatError> {
    if !ascii_path {
        return Ok(DEFAULT_ROOT.to_owned());
    }
    let base = file_name.rsplit(['/', '\\']).next().unwrap_or_default();
    let root = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
    if root.is_empty() {
        return Err(FormatError::FileName {
            name: file_name.to_owned(),
        });
    }
    Ok(root.to_owned())
}

/// `version` of a plain checkpoint: 3, and higher only for `TorchScript` operators that changed.
const VERSION: &[u8] = b"3\n";
/// `.format_version`: the promise that offsets can be computed from names and sizes.
const FORMAT_VERSION: &[u8] = b"1";
/// `byteorder` of this machine.
const BYTEORDER: &[u8] = if cfg!(target_endian = "big") {
    b"big"
} else {
    b"little"
};

/// The records of an archive in torch's order: `data.pkl`, `.format_version`,
/// `.storage_alignment`, `byteorder`, `data/0`..., `version`, `.data/serialization_id`.
#[must_use]
pub fn record_specs(
    pickle_nbytes: u64,
    alignment: Alignment,
    storage_nbytes: &[u64],
) -> Vec<RecordSpec> {
    let fixed = |name: &str| RecordSpec {
        name: name.to_owned(),
        nbytes: fixed_payload(name, alignment).map_or(0, |payload| payload.len() as u64),
    };
    let mut specs = Vec::with_capacity(storage_nbytes.len().saturating_add(6));
    specs.push(RecordSpec {
        name: "data.pkl".to_owned(),
        nbytes: pickle_nbytes,
    });
    specs.extend([".format_version", ".storage_alignment", "byteorder"].map(fixed));
    specs.extend(
        storage_nbytes
            .iter()
            .enumerate()
            .map(|(key, &nbytes)| RecordSpec {
                name: format!("data/{key}"),
                nbytes,
            }),
    );
    specs.push(fixed("version"));
    specs.push(RecordSpec {
        name: ".data/serialization_id".to_owned(),
        nbytes: SERIALIZATION_ID_NBYTES as u64,
    });
    specs
}

/// Index of the record `data/0` in [`record_specs`].
pub const FIRST_STORAGE: usize = 4;

/// The payload of the record of this name in [`record_specs`], where it does not depend on the
/// other records: `.format_version`, `.storage_alignment`, `byteorder`, `version`.
#[must_use]
pub fn fixed_payload(name: &str, alignment: Alignment) -> Option<Vec<u8>> {
    match name {
        ".format_version" => Some(FORMAT_VERSION.to_vec()),
        ".storage_alignment" => Some(alignment.nbytes().to_string().into_bytes()),
        "byteorder" => Some(BYTEORDER.to_vec()),
        "version" => Some(VERSION.to_vec()),
        _ => None,
    }
}

/// The 40 digits of `.data/serialization_id`: `mark`, then torch's hash over the CRCs of the
/// records with data in the order of writing, without the id itself. `records` gives
/// `(crc32, nbytes)` of each.
///
/// A mark above its limits is written as the largest there is.
#[must_use]
pub fn serialization_id(mark: SaveMark, records: &[(u32, u64)]) -> [u8; 40] {
    let hash = records
        .iter()
        .filter(|(_, nbytes)| *nbytes > 0)
        .fold(0, |seed, (crc32, _)| hash_combine(seed, u64::from(*crc32)));
    let (shards, save_id) = (mark.shards.min(MAX_SHARDS), mark.save_id.min(MAX_SAVE_ID));
    let digits = format!("9{shards:05}{save_id:014}{hash:020}");
    let mut id = [b'0'; SERIALIZATION_ID_NBYTES];
    for (slot, digit) in id.iter_mut().zip(digits.bytes()) {
        *slot = digit;
    }
    id
}

/// Boost's `hash_combine` on 64 bits but with its 32-bit golden ratio, as torch has it.
fn hash_combine(seed: u64, value: u64) -> u64 {
    const GOLDEN_RATIO: u64 = 0x9e37_79b9;
    seed ^ value
        .wrapping_add(GOLDEN_RATIO)
        .wrapping_add(seed << 6)
        .wrapping_add(seed >> 2)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )]
    use super::*;

    /// What torch 2.15 made of these names.
    #[test]
    fn root_folder_is_torchs() {
        for (name, root) in [
            ("a", "a"),
            ("a.pt", "a"),
            ("a.b.", "a.b"),
            ("..pt", "."),
            ("...", ".."),
            ("a..", "a."),
            (".a.pt", ".a"),
            ("x y.pt", "x y"),
            ("a\\b.pt", "b"),
            ("a%s\n.pt", "a%s\n"),
        ] {
            assert_eq!(root_folder(name, true).as_deref(), Ok(root), "{name:?}");
        }
        assert_eq!(root_folder("\u{e9}.pt", false).as_deref(), Ok("archive"));
        assert_eq!(root_folder(".pt", false).as_deref(), Ok("archive"));
    }

    #[test]
    fn names_without_a_root_are_refused_as_by_torch() {
        for name in [".pt", ".", "b\\.pt", "b\\", ""] {
            assert_eq!(
                root_folder(name, true).unwrap_err().to_string(),
                format!(
                    "file name {name:?} has nothing before its last extension: torch needs a name for the root folder"
                )
            );
        }
    }

    #[test]
    fn records_are_in_torchs_order() {
        let specs = record_specs(100, Alignment::new(4096).unwrap(), &[8, 0]);
        let listed: Vec<(&str, u64)> = specs
            .iter()
            .map(|spec| (spec.name.as_str(), spec.nbytes))
            .collect();
        assert_eq!(
            listed,
            [
                ("data.pkl", 100),
                (".format_version", 1),
                (".storage_alignment", 4),
                ("byteorder", if cfg!(target_endian = "big") { 3 } else { 6 }),
                ("data/0", 8),
                ("data/1", 0),
                ("version", 2),
                (".data/serialization_id", 40),
            ]
        );
        assert_eq!(listed[FIRST_STORAGE].0, "data/0");
        assert_eq!(fixed_payload("data/0", Alignment::TORCH_DEFAULT), None);
    }

    #[test]
    fn marks_survive_and_saturate() {
        let mark = SaveMark {
            shards: 99_999,
            save_id: 99_999_999_999_999,
        };
        let id = serialization_id(mark, &[]);
        assert_eq!(&id[..], [[b'9'; 20], [b'0'; 20]].concat());
        assert_eq!(SaveMark::parse(&id), Some(mark));
        let more = SaveMark {
            shards: u32::MAX,
            save_id: u64::MAX,
        };
        assert_eq!(serialization_id(more, &[]), id);
        assert_eq!(
            serialization_id(SaveMark::default(), &[(7, 0)])[..],
            b"9".iter().chain(&[b'0'; 39]).copied().collect::<Vec<u8>>()
        );
        assert_eq!(SaveMark::parse(&id[1..]), None);
        let mut letters = id;
        letters[10] = b'x';
        assert_eq!(SaveMark::parse(&letters), None);
    }
}
