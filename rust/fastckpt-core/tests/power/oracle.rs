//! What has to be true of a disk at any moment, and after a power cut at any moment.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastckpt_core::job::Unobserved;
use fastckpt_core::verify::{VerifyOptions, verify_file};
use fastckpt_format::checksum::crc32;

use crate::disk::{Behaviour, Disk};
use crate::files::{self, DIRECTORY, Seen};
use crate::protocol::{Shelf, Survey};
use crate::simulated::{Contents, Inode, Name, Node, State};

/// Judgements of contents that were seen are kept up to this many.
const MAX_REMEMBERED: usize = 4096;

/// A step that was saved, or of which the saving was begun.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    pub(crate) step: usize,
    /// The saves in the order in which they were begun.
    pub(crate) save_ids: Vec<u64>,
    /// How many of them have been promised: the last of these, or a later one, has to be there.
    pub(crate) acknowledged: usize,
    /// Whether rank 0 always has all its files in place. Not where old ones have to be moved aside.
    pub(crate) in_place: bool,
}

/// What was found of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Found {
    Nothing,
    /// The last save that was promised.
    Promised,
    /// One that was under way.
    Newer,
}

/// Contents, and what they are.
type Judged = (Arc<Vec<u8>>, Seen);
/// Checksum and size of contents, and the name that they have to go with.
type Kind = (u32, usize, String);

/// Judges files, and remembers its judgements.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    known: RefCell<HashMap<Kind, Vec<Judged>>>,
    /// The same, of files that are the very same object.
    same: RefCell<HashMap<(usize, u32), Judged>>,
}

impl Judge {
    /// What a file is that was saved under this name. An archive is good only if it verifies to the
    /// byte, and then it has to be one that was saved.
    fn look(&self, name: &str, bytes: &Arc<Vec<u8>>) -> Seen {
        let key = (Arc::as_ptr(bytes).addr(), crc32(name.as_bytes()));
        if let Some((_, seen)) = self.same.borrow().get(&key) {
            return seen.clone();
        }
        let seen = self.look_up(name, bytes);
        let mut same = self.same.borrow_mut();
        if same.len() >= MAX_REMEMBERED {
            same.clear();
        }
        same.insert(key, (Arc::clone(bytes), seen.clone()));
        seen
    }

    fn look_up(&self, name: &str, bytes: &Arc<Vec<u8>>) -> Seen {
        let key = (crc32(bytes), bytes.len(), name.to_owned());
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        let alike = known.entry(key).or_default();
        if let Some((_, seen)) = alike.iter().find(|(known, _)| known == bytes) {
            return seen.clone();
        }
        let seen = judge(Some(name), bytes);
        alike.push((Arc::clone(bytes), seen.clone()));
        seen
    }
}

/// Looks at every byte. A temporary file has no name to compare with.
fn judge(name: Option<&str>, bytes: &[u8]) -> Seen {
    let seen = Seen::of(name.unwrap_or_default(), bytes);
    let Seen::Archive(mark) = seen else {
        return seen;
    };
    if !verifies(bytes) {
        return Seen::Damaged;
    }
    let said = files::name_of_saved(bytes, mark).expect("a file verifies that nobody saved");
    if let Some(name) = name {
        assert_eq!(said, name, "a file has the name of another one");
    }
    seen
}

pub(crate) fn verifies(bytes: &[u8]) -> bool {
    let disk = Disk::new(bytes.to_vec(), Behaviour::default());
    let options = VerifyOptions {
        quick: false,
        threads: std::num::NonZeroUsize::new(1),
    };
    let report = verify_file(&disk, Path::new("file.pt"), &options, &mut Unobserved).unwrap();
    report.damages.is_empty() && report.headers_covered
}

/// The files in the directory, wherever their bytes come from.
pub(crate) struct View<'a> {
    judge: &'a Judge,
    names: BTreeMap<Name, Bytes<'a>>,
}

enum Bytes<'a> {
    There(Arc<Vec<u8>>),
    OnDisk(&'a State<'a>, Inode),
}

impl<'a> View<'a> {
    /// After a power cut; an empty one where the directory is lost.
    pub(crate) fn of_state(judge: &'a Judge, state: &'a State<'a>) -> Self {
        let names = state.names(Path::new(DIRECTORY)).unwrap_or_default();
        let names = names.into_iter().filter_map(|(name, node)| match node {
            Node::File(inode) => Some((name, Bytes::OnDisk(state, inode))),
            Node::Directory(_) => None,
        });
        Self {
            judge,
            names: names.collect(),
        }
    }

    /// Of a disk that nobody has cut the power of.
    pub(crate) fn of_contents(judge: &'a Judge, contents: &Contents) -> Self {
        let files = contents.files_in(Path::new(DIRECTORY)).unwrap_or_default();
        let names = files
            .into_iter()
            .map(|(name, bytes)| (name, Bytes::There(bytes)));
        Self {
            judge,
            names: names.collect(),
        }
    }

    pub(crate) fn listed(&self) -> Vec<String> {
        let names = self.names.keys();
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    fn bytes(&self, name: &str) -> Option<Arc<Vec<u8>>> {
        match self.names.get(std::ffi::OsStr::new(name))? {
            Bytes::There(bytes) => Some(Arc::clone(bytes)),
            Bytes::OnDisk(state, inode) => Some(state.bytes(*inode)),
        }
    }

    /// Checks a step; says what was found of it, and how many of its files are kept ones.
    pub(crate) fn check(&self, promise: &Promise) -> Result<(Found, usize), String> {
        let survey = Survey::of(self, promise.step).map_err(|error| error.to_string())?;
        if promise.in_place {
            check_model_is_last(promise, &survey)?;
        }
        let save = match survey.newest_whole() {
            Ok(save) => save,
            Err(unseen) if promise.acknowledged > 0 => {
                return Err(format!("a promised save is lost: {unseen}"));
            }
            Err(_) => return Ok((Found::Nothing, 0)),
        };
        let age = |save_id| {
            let mut save_ids = promise.save_ids.iter();
            save_ids.position(|known| *known == save_id)
        };
        let Some(position) = age(save.save_id) else {
            return Err(format!("nobody made save {}", save.save_id));
        };
        let kept = save
            .names
            .iter()
            .filter(|name| name.starts_with('.'))
            .count();
        match (position + 1).cmp(&promise.acknowledged) {
            std::cmp::Ordering::Less => Err(format!(
                "save {} of the step is taken, and {} were promised",
                position + 1,
                promise.acknowledged
            )),
            std::cmp::Ordering::Equal => Ok((Found::Promised, kept)),
            std::cmp::Ordering::Greater => Ok((Found::Newer, kept)),
        }
    }

    /// Checks a file that belongs to no step: the last save of it that was promised, or a newer one.
    pub(crate) fn check_file(&self, name: &str, promise: &Promise) -> Result<Found, String> {
        let Some(bytes) = self.bytes(name) else {
            return match promise.acknowledged {
                0 => Ok(Found::Nothing),
                _ => Err(format!("{name} is gone")),
            };
        };
        let Seen::Archive(mark) = self.judge.look(name, &bytes) else {
            return Err(format!("{name} is damaged"));
        };
        let mut save_ids = promise.save_ids.iter();
        match save_ids.position(|known| *known == mark.save_id) {
            Some(position) if position + 1 == promise.acknowledged => Ok(Found::Promised),
            Some(position) if position + 1 > promise.acknowledged => Ok(Found::Newer),
            other => Err(format!("{name} is of save {other:?}")),
        }
    }

    /// Checks that no half-written file passes for a whole one; tells how many were torn.
    pub(crate) fn count_torn(&self) -> usize {
        let listed = self.listed();
        let temps = listed.iter().filter(|name| files::is_temp_name(name));
        temps
            .filter_map(|name| self.bytes(name))
            .filter(|bytes| judge(None, bytes) == Seen::Damaged)
            .count()
    }
}

/// Where a model is visible, whatever else rank 0 saved with it is visible too, or newer.
fn check_model_is_last(promise: &Promise, survey: &Survey<'_>) -> Result<(), String> {
    let model = files::model(promise.step);
    if !survey.is_visible(&model) {
        return Ok(());
    }
    let age = |name: &str| -> Result<usize, String> {
        let save_id = survey
            .save_id_of(name)
            .map_err(|unseen| format!("{model} is visible, but {unseen}"))?;
        let mut save_ids = promise.save_ids.iter();
        save_ids
            .position(|known| *known == save_id)
            .ok_or_else(|| format!("{model} is visible, and {name} is of save {save_id}"))
    };
    let model_age = age(&model)?;
    for name in [files::manifest(promise.step), files::shard(promise.step, 0)] {
        if age(&name)? < model_age {
            return Err(format!("{model} is newer than {name}"));
        }
    }
    if survey.is_visible(&files::meta(promise.step)) {
        Ok(())
    } else {
        Err(format!("{model} is visible without its meta"))
    }
}

impl Shelf for View<'_> {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.listed())
    }

    fn look(&self, name: &str) -> io::Result<Seen> {
        let bytes = self.bytes(name).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                PathBuf::from(name).display().to_string(),
            )
        })?;
        let former = files::parse_kept_name(name).map_or(name, |(_, former)| former);
        Ok(self.judge.look(former, &bytes))
    }

    fn write_time(&self, _name: &str) -> io::Result<usize> {
        unreachable!("nothing is removed here")
    }
}
