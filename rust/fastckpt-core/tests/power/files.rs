//! The files of a step: what they are called, what is in them, and what a reader sees in them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use fastckpt_core::files::{File, Files, read_full_at};
use fastckpt_core::memory::Memory;
use fastckpt_core::read::Archive;
use fastckpt_core::write::{ArchivePlan, StorageSource};
use fastckpt_format::archive::SaveMark;
use fastckpt_format::checksum::crc32;
use fastckpt_format::layout::Alignment;

use crate::simulated::Random;

pub(crate) const DIRECTORY: &str = "/runs/d12";

pub(crate) fn model(step: usize) -> String {
    format!("model_{step:06}.pt")
}

pub(crate) fn meta(step: usize) -> String {
    format!("meta_{step:06}.json")
}

pub(crate) fn manifest(step: usize) -> String {
    format!("manifest_{step:06}.json")
}

pub(crate) fn shard(step: usize, rank: usize) -> String {
    format!("optim_{step:06}_rank{rank}.pt")
}

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// The second name of a file that is replaced.
pub(crate) fn kept_name(save_id: u64, name: &str) -> String {
    format!(".fastckpt-{save_id:014}-{name}.kept")
}

/// The save and the former name of a kept file.
pub(crate) fn parse_kept_name(name: &str) -> Option<(u64, &str)> {
    let (save_id, name) = name
        .strip_prefix(".fastckpt-")?
        .strip_suffix(".kept")?
        .split_once('-')?;
    (save_id.len() == 14).then_some((save_id.parse().ok()?, name))
}

pub(crate) fn is_temp_name(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "tmp")
}

/// All payloads are parts of this; what belongs to which file follows from its name and save.
fn pool() -> &'static [u8] {
    static POOL: OnceLock<&'static [u8]> = OnceLock::new();
    POOL.get_or_init(|| {
        let mut random = Random::new(0);
        let words = (0..32_768).flat_map(|_| random.draw().to_le_bytes());
        words.collect::<Vec<u8>>().leak()
    })
}

/// The storage of an archive: between a few hundred bytes and two blocks, another one for each save.
pub(crate) fn storage_of(save_id: u64, name: &str) -> &'static [u8] {
    let mut random = Random::of_part(save_id, u64::from(crc32(name.as_bytes())));
    let nbytes = 300 + random.below(8_000);
    let start = random.below(pool().len() - nbytes);
    &pool()[start..start + nbytes]
}

fn pickle_of(save_id: u64, name: &str) -> Vec<u8> {
    format!("{save_id:014} {name}").into_bytes()
}

pub(crate) fn plan(mark: SaveMark, name: &str) -> ArchivePlan {
    let storage = StorageSource::Memory(Memory::of_static(storage_of(mark.save_id, name)));
    ArchivePlan::new(
        "model",
        pickle_of(mark.save_id, name),
        &[storage],
        Alignment::TORCH_DEFAULT,
        mark,
    )
    .unwrap()
}

/// A meta names no save: the manifest does that for it.
pub(crate) fn meta_bytes(save_id: u64) -> Vec<u8> {
    format!("{{\"loss\": 0.{save_id}}}").into_bytes()
}

pub(crate) fn manifest_bytes(mark: SaveMark) -> Vec<u8> {
    let SaveMark { shards, save_id } = mark;
    let meta = crc32(&meta_bytes(save_id));
    format!("{{\"save_id\": \"{save_id:014}\", \"shards\": {shards}, \"meta\": {meta}}}\n").into()
}

/// What a reader makes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Archive(SaveMark),
    Manifest {
        mark: SaveMark,
        meta: u32,
    },
    /// By its checksum.
    Meta(u32),
    /// Nothing that it may rely on.
    Damaged,
}

impl Seen {
    /// Looks at a file of this (former) name as a loader does that checks no payload.
    pub(crate) fn of(name: &str, bytes: &[u8]) -> Self {
        if name.starts_with("meta_") {
            return Self::Meta(crc32(bytes));
        }
        if name.starts_with("manifest_") {
            return Self::of_manifest(bytes).unwrap_or(Self::Damaged);
        }
        mark_of(bytes).map_or(Self::Damaged, Self::Archive)
    }

    fn of_manifest(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let save_id = text.get(13..27)?.parse().ok()?;
        let (shards, meta) = text.get(40..)?.split_once(", \"meta\": ")?;
        let mark = SaveMark {
            shards: shards.parse().ok()?,
            save_id,
        };
        let meta = meta.strip_suffix("}\n")?.parse().ok()?;
        // As in a real manifest, every byte is as it has to be, or it is none.
        (manifest_bytes(mark) == bytes).then_some(Self::Manifest { mark, meta })
    }
}

fn mark_of(bytes: &[u8]) -> Option<SaveMark> {
    let archive = open(bytes)?;
    let id = archive.read_record(".data/serialization_id", true).ok()?;
    SaveMark::parse(&id)
}

fn open(bytes: &[u8]) -> Option<Archive> {
    Archive::from_bytes(Arc::new(bytes.to_vec()), PathBuf::from("archive.pt")).ok()
}

/// The name under which an archive was saved, if it is bit for bit one that was.
pub(crate) fn name_of_saved(bytes: &[u8], mark: SaveMark) -> Option<String> {
    let archive = open(bytes)?;
    let pickle = archive.read_record("data.pkl", true).ok()?;
    let name = std::str::from_utf8(pickle.get(15..)?).ok()?;
    let storage = archive.read_record("data/0", true).ok()?;
    let as_saved =
        pickle == pickle_of(mark.save_id, name) && storage == storage_of(mark.save_id, name);
    as_saved.then(|| name.to_owned())
}

/// Reads a whole file, in one read.
pub(crate) fn read(files: &dyn Files, path: &Path) -> std::io::Result<Vec<u8>> {
    let file: Arc<dyn File> = files.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.nbytes).unwrap()];
    let nbytes = read_full_at(&*file, &mut bytes, 0)?;
    bytes.truncate(nbytes);
    Ok(bytes)
}
