//! Which save of a step a reader takes, and which kept files a rank may remove: what
//! `fastckpt._steps.saves` and `fastckpt.nanochat.replacing` do, over any disk.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;

use fastckpt_format::archive::SaveMark;

use crate::files::{self, Seen};

/// Saves that are not whole and may become so yet, of which files are kept.
const MAX_UNFINISHED: usize = 2;

/// A directory that is looked into.
pub(crate) trait Shelf {
    fn names(&self) -> io::Result<Vec<String>>;
    fn look(&self, name: &str) -> io::Result<Seen>;
    /// When this name's file was written last.
    fn write_time(&self, name: &str) -> io::Result<usize>;
}

/// Why a reader finds no save.
#[derive(Debug)]
pub(crate) enum Unseen {
    /// No save is whole, a file is damaged, or it was gone when it was opened.
    NotWhole(String),
    System(io::Error),
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWhole(problem) => f.write_str(problem),
            Self::System(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Unseen {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::NotWhole(error.to_string())
        } else {
            Self::System(error)
        }
    }
}

/// One save of a step, and the names that its files have now.
#[derive(Debug, Clone)]
pub(crate) struct Save {
    pub(crate) save_id: u64,
    pub(crate) names: Vec<String>,
}

/// The names of one step.
#[derive(Debug)]
pub(crate) struct Survey<'a> {
    shelf: &'a dyn Shelf,
    step: usize,
    visible: BTreeSet<String>,
    /// Former names, by save.
    kept: BTreeMap<u64, BTreeSet<String>>,
    /// Archives and manifests are read once.
    marks: RefCell<HashMap<String, Seen>>,
}

impl fmt::Debug for dyn Shelf + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shelf")
    }
}

impl<'a> Survey<'a> {
    pub(crate) fn of(shelf: &'a dyn Shelf, step: usize) -> io::Result<Self> {
        let infix = format!("_{step:06}");
        let (mut visible, mut kept) = (BTreeSet::new(), BTreeMap::<u64, BTreeSet<_>>::new());
        for name in shelf.names()?.iter().filter(|name| name.contains(&infix)) {
            match files::parse_kept_name(name) {
                Some((save_id, name)) => {
                    kept.entry(save_id).or_default().insert(name.to_owned());
                }
                None => {
                    visible.insert(name.clone());
                }
            }
        }
        Ok(Self {
            shelf,
            step,
            visible,
            kept,
            marks: RefCell::default(),
        })
    }

    pub(crate) fn is_visible(&self, name: &str) -> bool {
        self.visible.contains(name)
    }

    pub(crate) fn keeps_something(&self) -> bool {
        !self.kept.is_empty()
    }

    /// The second names of the saves that `superseded` says.
    pub(crate) fn kept_names(&self, superseded: impl Fn(u64) -> bool) -> Vec<String> {
        let of_save = |(save_id, names): (&u64, &BTreeSet<String>)| {
            let save_id = *save_id;
            let names = superseded(save_id).then(|| names.clone());
            names
                .into_iter()
                .flatten()
                .map(move |name| files::kept_name(save_id, &name))
        };
        self.kept.iter().flat_map(of_save).collect()
    }

    /// Which save a visible file is of; 0 where nothing says.
    pub(crate) fn save_id_of(&self, name: &str) -> Result<u64, Unseen> {
        if name != files::meta(self.step) {
            return Ok(self.mark(name)?.save_id);
        }
        let manifest = files::manifest(self.step);
        if !self.is_visible(&manifest) {
            let model = files::model(self.step);
            return if self.is_visible(&model) {
                Ok(self.mark(&model)?.save_id)
            } else {
                Ok(0)
            };
        }
        if self.describes_meta(&manifest, &files::meta(self.step))? {
            return Ok(self.mark(&manifest)?.save_id);
        }
        // A crash between two renames of a save: the manifest is the new one, the meta still the old.
        for name in self.names_kept_of(&manifest) {
            match self.describes_meta(&name, &files::meta(self.step)) {
                Ok(true) => return Ok(self.mark(&name)?.save_id),
                // Another rank has removed it meanwhile.
                Ok(false) | Err(Unseen::NotWhole(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    fn names_kept_of(&self, name: &str) -> Vec<String> {
        let keeping = self.kept.iter().filter(|(_, names)| names.contains(name));
        keeping
            .map(|(save_id, _)| files::kept_name(*save_id, name))
            .collect()
    }

    /// The newest save that is whole.
    pub(crate) fn newest_whole(&self) -> Result<Save, Unseen> {
        let model = files::model(self.step);
        let visible = if self.is_visible(&model) {
            Some(self.mark(&model)?.save_id)
        } else {
            None
        };
        let save = visible.map(|save_id| self.whole(save_id)).transpose()?;
        if let Some(save) = save.flatten() {
            return Ok(save);
        }
        let mut whole = Vec::new();
        for (save_id, names) in &self.kept {
            if Some(*save_id) == visible || !names.contains(&model) {
                continue;
            }
            if self.mark(&files::kept_name(*save_id, &model))?.save_id == *save_id {
                whole.extend(self.whole(*save_id)?);
            }
        }
        // The one of which the fewest files have been replaced since is the newest.
        whole
            .into_iter()
            .max_by_key(|save| (save.visible().count(), save.save_id))
            .ok_or_else(|| Unseen::NotWhole("no save is whole".to_owned()))
    }

    /// The names of a save's files, if they are all there.
    fn whole(&self, save_id: u64) -> Result<Option<Save>, Unseen> {
        let Some(model) = self.find(save_id, &files::model(self.step))? else {
            return Ok(None);
        };
        let mut names = vec![model.clone()];
        for rank in 0..self.mark(&model)?.shards {
            let rank = usize::try_from(rank).unwrap();
            let Some(shard) = self.find(save_id, &files::shard(self.step, rank))? else {
                return Ok(None);
            };
            names.push(shard);
        }
        let (meta, manifest) = (files::meta(self.step), files::manifest(self.step));
        let own_manifest = self.find_manifest(save_id)?;
        if own_manifest.is_none() && self.is_visible(&manifest) && !self.keeps(save_id, &meta) {
            return Ok(None);
        }
        let Some(own_meta) = self.find_meta(save_id, own_manifest.as_deref())? else {
            let visible = own_manifest.as_ref() == Some(&manifest);
            return if visible && self.is_visible(&meta) {
                let problem = format!("{meta} is not the one of {manifest}");
                Err(Unseen::NotWhole(problem))
            } else {
                Ok(None)
            };
        };
        names.push(own_meta);
        names.extend(own_manifest);
        Ok(Some(Save { save_id, names }))
    }

    fn find(&self, save_id: u64, name: &str) -> Result<Option<String>, Unseen> {
        if self.is_visible(name) && self.mark(name)?.save_id == save_id {
            return Ok(Some(name.to_owned()));
        }
        Ok(self
            .keeps(save_id, name)
            .then(|| files::kept_name(save_id, name)))
    }

    fn keeps(&self, save_id: u64, name: &str) -> bool {
        self.kept
            .get(&save_id)
            .is_some_and(|names| names.contains(name))
    }

    /// The name under which a save has a file, kept or visible, kept first.
    fn candidates(&self, save_id: u64, name: &str) -> Vec<String> {
        let kept = self
            .keeps(save_id, name)
            .then(|| files::kept_name(save_id, name));
        let visible = self.is_visible(name).then(|| name.to_owned());
        kept.into_iter().chain(visible).collect()
    }

    fn find_manifest(&self, save_id: u64) -> Result<Option<String>, Unseen> {
        for name in self.candidates(save_id, &files::manifest(self.step)) {
            if self.mark(&name)?.save_id == save_id {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn find_meta(&self, save_id: u64, manifest: Option<&str>) -> Result<Option<String>, Unseen> {
        for name in self.candidates(save_id, &files::meta(self.step)) {
            let belongs = match manifest {
                Some(manifest) => self.describes_meta(manifest, &name)?,
                None => true,
            };
            if belongs {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn describes_meta(&self, manifest: &str, meta: &str) -> Result<bool, Unseen> {
        match (self.look_once(manifest)?, self.shelf.look(meta)?) {
            (Seen::Manifest { meta: said, .. }, Seen::Meta(found)) => Ok(said == found),
            other => Err(Unseen::NotWhole(format!("{manifest}, {meta}: {other:?}"))),
        }
    }

    fn look_once(&self, name: &str) -> io::Result<Seen> {
        if let Some(seen) = self.marks.borrow().get(name) {
            return Ok(seen.clone());
        }
        let seen = self.shelf.look(name)?;
        self.marks
            .borrow_mut()
            .insert(name.to_owned(), seen.clone());
        Ok(seen)
    }

    /// What an archive or a manifest says of itself.
    fn mark(&self, name: &str) -> Result<SaveMark, Unseen> {
        match self.look_once(name)? {
            Seen::Archive(mark) | Seen::Manifest { mark, .. } => Ok(mark),
            other => Err(Unseen::NotWhole(format!("{name}: {other:?}"))),
        }
    }

    /// The second names that a newer, whole save has made useless.
    ///
    /// Where no save is whole, that may be because others renamed their files meanwhile. Only if it
    /// looks the same again are some of these saves given up.
    pub(crate) fn superseded(shelf: &dyn Shelf, step: usize) -> io::Result<Vec<String>> {
        let survey = Survey::of(shelf, step)?;
        if survey.kept.is_empty() {
            return Ok(Vec::new());
        }
        match survey.newest_whole() {
            Ok(save) => Ok(survey.older_than(&save)),
            Err(Unseen::System(error)) => Err(error),
            Err(Unseen::NotWhole(_)) => {
                let again = Survey::of(shelf, step)?;
                match again.newest_whole() {
                    Err(Unseen::NotWhole(_)) if again.is_same_as(&survey) => again.unfinished(),
                    _ => Ok(Vec::new()),
                }
            }
        }
    }

    fn older_than(&self, save: &Save) -> Vec<String> {
        let visible: BTreeSet<&str> = save.visible().collect();
        self.kept_names(|kept| {
            let mut names = self.kept[&kept].iter();
            kept != save.save_id && names.any(|name| visible.contains(name.as_str()))
        })
    }

    fn is_same_as(&self, other: &Survey<'_>) -> bool {
        (&self.visible, &self.kept, &self.marks) == (&other.visible, &other.kept, &other.marks)
    }

    /// The second names in a step that was never whole, except for those of the last saves.
    fn unfinished(&self) -> io::Result<Vec<String>> {
        let mut by_age = Vec::new();
        for (save_id, names) in &self.kept {
            let mut last = 0;
            for name in names {
                let time = self.shelf.write_time(&files::kept_name(*save_id, name))?;
                last = last.max(time);
            }
            by_age.push((last, *save_id));
        }
        by_age.sort_unstable();
        by_age.truncate(by_age.len().saturating_sub(MAX_UNFINISHED));
        Ok(self.kept_names(|save_id| by_age.iter().any(|(_, old)| *old == save_id)))
    }
}

impl Save {
    /// The names of those of its files that have not been replaced.
    fn visible(&self) -> impl Iterator<Item = &str> {
        let names = self.names.iter().map(String::as_str);
        names.filter(|name| !name.starts_with('.'))
    }
}
