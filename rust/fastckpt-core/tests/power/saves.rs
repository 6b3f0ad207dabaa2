//! Saving: what one rank does for one step, in the order of `fastckpt.save_checkpoint`, and writers that
//! do it wrong.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastckpt_core::commit::{Commit, Judged};
use fastckpt_core::files::Files;
use fastckpt_core::job::Unobserved;
use fastckpt_core::write::WriteOptions;
use fastckpt_core::{Error, Phase, Result};
use fastckpt_format::archive::SaveMark;

use crate::files::{self, DIRECTORY, Seen};
use crate::protocol::{Shelf, Survey, Unseen};
use crate::simulated::SimulatedDisk;

/// How a rank saves: right, or with one thing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    Careful,
    /// The file by which a step is found appears before the others.
    ModelFirst,
    /// Replaced files get no second name.
    KeepsNothing,
    /// Second names are not made durable before the first ones are given away.
    KeepsUnsynced,
    /// Second names are removed whether the new save is whole or not.
    DiscardsUnseen,
    /// Second names are removed although the new names of other ranks may not be durable.
    DiscardsUnsynced,
}

/// One save of one step by all ranks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepSave {
    pub(crate) step: usize,
    pub(crate) save_id: u64,
    pub(crate) ranks: usize,
    pub(crate) writer: Writer,
}

/// The directory as one rank sees it while it saves.
struct Live<'a> {
    disk: &'a SimulatedDisk,
    rank: usize,
    files: Arc<dyn Files>,
}

impl Shelf for Live<'_> {
    fn names(&self) -> io::Result<Vec<String>> {
        let names = self.files.names(Path::new(DIRECTORY))?;
        Ok(names
            .into_iter()
            .map(|name| name.into_string().unwrap())
            .collect())
    }

    fn look(&self, name: &str) -> io::Result<Seen> {
        let bytes = files::read(&*self.files, &files::path(name))?;
        let former = files::parse_kept_name(name).map_or(name, |(_, former)| former);
        Ok(Seen::of(former, &bytes))
    }

    fn write_time(&self, name: &str) -> io::Result<usize> {
        self.disk.write_time(self.rank, &files::path(name))
    }
}

/// Blocks as small as they can be and one thread: the order of the writes follows from the file.
pub(crate) fn options() -> WriteOptions {
    WriteOptions {
        threads: NonZeroUsize::new(1),
        chunk_nbytes: NonZeroUsize::new(4096),
        direct: None,
    }
}

impl StepSave {
    fn mark(&self) -> SaveMark {
        SaveMark {
            shards: u32::try_from(self.ranks).unwrap(),
            save_id: self.save_id,
        }
    }

    /// Saves the part of one rank; it is promised as soon as this returns.
    pub(crate) fn save(&self, disk: &SimulatedDisk, rank: usize) -> Result<()> {
        let files = disk.files(rank);
        let live = Live {
            disk,
            rank,
            files: Arc::clone(&files),
        };
        let mut commit = Commit::new(Arc::clone(&files), true);
        commit.create_directory(Path::new(DIRECTORY), &mut Unobserved)?;
        let shard = files::shard(self.step, rank);
        let mut groups = vec![vec![shard.clone()]];
        self.write_archive(&mut commit, &shard)?;
        if rank == 0 {
            groups = self.write_the_rest(&mut commit, shard)?;
        }
        self.release(&live, &mut commit);
        if self.writer == Writer::ModelFirst {
            groups.reverse();
        }
        if let Err(error) = self.replace(&live, &mut commit, &groups) {
            Self::release_unreplaced(&live, &mut commit, self.step, &groups.concat());
            return Err(error);
        }
        self.release(&live, &mut commit);
        drop(commit);
        disk.acknowledge(rank, self.save_id);
        Ok(())
    }

    /// Writes what rank 0 saves beside its shard; returns all its files, as they become visible.
    fn write_the_rest(&self, commit: &mut Commit, shard: String) -> Result<Vec<Vec<String>>> {
        let (model, manifest) = (files::model(self.step), files::manifest(self.step));
        let meta = files::meta(self.step);
        self.write_archive(commit, &model)?;
        for (name, bytes) in [
            (&manifest, files::manifest_bytes(self.mark())),
            (&meta, files::meta_bytes(self.save_id)),
        ] {
            commit.write_bytes(&files::path(name), &bytes, &mut Unobserved)?;
        }
        Ok(vec![vec![shard, manifest, meta], vec![model]])
    }

    fn write_archive(&self, commit: &mut Commit, name: &str) -> Result<()> {
        let plan = files::plan(self.mark(), name);
        let path = files::path(name);
        commit.write_archive(&path, &plan, &options(), &mut Unobserved, None)?;
        Ok(())
    }

    fn replace(&self, live: &Live<'_>, commit: &mut Commit, groups: &[Vec<String>]) -> Result<()> {
        self.keep(live, commit, &groups.concat())?;
        for group in groups {
            let paths: Vec<_> = group.iter().map(|name| files::path(name)).collect();
            let paths: Vec<_> = paths.iter().map(PathBuf::as_path).collect();
            commit.publish(&paths, &mut Unobserved)?;
        }
        Ok(())
    }

    fn keep(&self, live: &Live<'_>, commit: &mut Commit, names: &[String]) -> Result<()> {
        if self.writer == Writer::KeepsNothing {
            return Ok(());
        }
        let refused = |source| Error::Io {
            phase: Phase::Keep,
            path: DIRECTORY.into(),
            source,
        };
        let survey = Survey::of(live, self.step).map_err(refused)?;
        if survey.keeps_something() {
            // What a killed process has moved aside, say. Without it there is nothing left of the old
            // save once the new names are there.
            let directory = live.files.open_directory(Path::new(DIRECTORY));
            directory
                .and_then(|directory| directory.sync())
                .map_err(refused)?;
        }
        let mut careless = Commit::new(Arc::clone(&live.files), false);
        for name in names.iter().filter(|name| survey.is_visible(name)) {
            let replaced = match survey.save_id_of(name) {
                Ok(replaced) => replaced,
                // A damaged file is of no use to anybody.
                Err(Unseen::NotWhole(_)) => continue,
                Err(Unseen::System(error)) => return Err(refused(error)),
            };
            if replaced != self.save_id {
                let commit = match self.writer {
                    Writer::KeepsUnsynced => &mut careless,
                    _ => &mut *commit,
                };
                commit.keep(&files::path(name), replaced)?;
            }
        }
        if self.writer == Writer::KeepsUnsynced {
            // Without links it would undo what it did, were it to end here.
            std::mem::forget(careless);
        }
        Ok(())
    }

    /// After a save that failed, removes the second names of this rank's files that still have their
    /// first. The error of the save is the one to report.
    fn release_unreplaced(live: &Live<'_>, commit: &mut Commit, step: usize, own: &[String]) {
        let Ok(survey) = Survey::of(live, step) else {
            return;
        };
        let inode = |name: &str| {
            let metadata = live.files.inspect(&files::path(name));
            metadata.ok().flatten().map(|metadata| metadata.inode)
        };
        let is_unreplaced = |kept: &String| {
            let former = files::parse_kept_name(kept).map(|(_, former)| former.to_owned());
            former.is_some_and(|former| {
                own.contains(&former) && inode(kept).is_some() && inode(kept) == inode(&former)
            })
        };
        let names: Vec<_> = survey
            .kept_names(|_any| true)
            .into_iter()
            .filter(is_unreplaced)
            .collect();
        let names = judged(live, &names);
        let _left = commit.discard(Path::new(DIRECTORY), &names, true, &mut Unobserved);
    }

    /// Removes the second names that nobody needs any more. The save is whole without that: where the
    /// system refuses, the next save tries again.
    fn release(&self, live: &Live<'_>, commit: &mut Commit) {
        let before = judged(live, &live.names().unwrap_or_default());
        let superseded = if self.writer == Writer::DiscardsUnseen {
            Survey::of(live, self.step).map(|survey| survey.kept_names(|kept| kept != self.save_id))
        } else {
            Survey::superseded(live, self.step)
        };
        let superseded = superseded.unwrap_or_default();
        let is_superseded = |one: &Judged| superseded.iter().any(|name| *one.name == **name);
        let names: Vec<_> = before.into_iter().filter(is_superseded).collect();
        let mut careless = Commit::new(Arc::clone(&live.files), false);
        let commit = match self.writer {
            Writer::DiscardsUnsynced => &mut careless,
            _ => commit,
        };
        let _left = commit.discard(Path::new(DIRECTORY), &names, true, &mut Unobserved);
    }
}

/// What stands for these hidden names now.
fn judged(live: &Live<'_>, names: &[String]) -> Vec<Judged> {
    let hidden = names.iter().filter(|name| name.starts_with('.'));
    hidden
        .filter_map(|name| {
            let found = live.files.inspect(&files::path(name)).ok().flatten()?;
            Some(Judged {
                name: name.into(),
                device: found.device,
                inode: found.inode,
            })
        })
        .collect()
}

/// Saves one file, as `fastckpt.save` does.
pub(crate) fn save_file(disk: &SimulatedDisk, name: &str, save_id: u64) -> Result<()> {
    let mark = SaveMark { shards: 0, save_id };
    let (plan, path) = (files::plan(mark, name), files::path(name));
    let mut commit = Commit::new(disk.files(0), true);
    commit.write_archive(&path, &plan, &options(), &mut Unobserved, None)?;
    commit.publish(&[&path], &mut Unobserved)?;
    drop(commit);
    disk.acknowledge(0, save_id);
    Ok(())
}
