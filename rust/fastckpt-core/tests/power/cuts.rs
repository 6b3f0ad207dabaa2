//! The power cut after each operation of a recording, and what has to be there then.

use std::fmt;

use crate::oracle::{Found, Judge, Promise, View};
use crate::runs::{Course, FILE, Scenario};
use crate::simulated::{Contents, Cursor, Effort, Entry, Random, SimulatedDisk};

const THOROUGH: Effort = Effort {
    exhaustive: 3,
    sampled: 8,
};
/// Where many recordings differ little from each other.
pub(crate) const QUICK: Effort = Effort {
    exhaustive: 1,
    sampled: 3,
};
/// More failures than this say nothing new.
const MAX_FAILURES: usize = 10;

/// What was done, and what was promised.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) scenario: Scenario,
    pub(crate) seed: u64,
    pub(crate) base: Contents,
    pub(crate) record: Vec<Entry>,
    /// With what had been promised when the record began.
    pub(crate) promises: Vec<Promise>,
}

/// What came of the power cuts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) recordings: usize,
    pub(crate) cuts: usize,
    pub(crate) states: usize,
    /// Steps (or files) of which there was nothing, the promised save, a newer one.
    pub(crate) nothing: usize,
    pub(crate) promised: usize,
    pub(crate) newer: usize,
    /// Saves that were whole only because replaced files had been kept.
    pub(crate) by_kept_files: usize,
    /// Temporary files that were torn, and that no reader would take for whole.
    pub(crate) torn: usize,
    pub(crate) failures: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            recordings,
            cuts,
            states,
            nothing,
            promised,
            newer,
            by_kept_files,
            torn,
            failures,
        } = self;
        write!(
            f,
            "{states} states, {cuts} cuts, {recordings} recordings, {nothing} nothing, \
             {promised} promised, {newer} newer, {by_kept_files} by kept files, {torn} torn, \
             {} failures",
            failures.len()
        )
    }
}

/// Which ranks have been told that a save is durable.
#[derive(Debug, Default)]
struct Acknowledged(Vec<(u64, usize)>);

impl Acknowledged {
    fn note(&mut self, entry: &Entry) {
        if let Entry::Acknowledged { actor, save_id } = entry {
            self.0.push((*save_id, *actor));
        }
    }

    /// How many saves of a step have been promised by then: all up to the last one of which every
    /// rank has been told.
    fn saves(&self, promise: &Promise, ranks: usize) -> usize {
        let is_promised = |save_id: &u64| {
            let told = self.0.iter().filter(|(told, _)| told == save_id).count();
            told == ranks
        };
        let last = promise.save_ids.iter().rposition(is_promised);
        last.map_or(promise.acknowledged, |last| {
            promise.acknowledged.max(last + 1)
        })
    }
}

impl Recording {
    /// Cuts the power before the first operation and after each, and checks all that may be left.
    pub(crate) fn cut_everywhere(&self, judge: &Judge, tally: &mut Tally) {
        self.cut_from(0, THOROUGH, judge, tally);
    }

    /// The same, from a position in the record on.
    pub(crate) fn cut_from(&self, first: usize, effort: Effort, judge: &Judge, tally: &mut Tally) {
        tally.recordings += 1;
        let mut random = Random::of_part(self.seed, 2);
        let mut cursor = Cursor::new(&self.base, &self.record);
        let mut acknowledged = Acknowledged::default();
        let mut promises = self.promises.clone();
        let mut latest = None;
        loop {
            if let Some(entry) = latest {
                acknowledged.note(entry);
            }
            if cursor.position() >= first && latest.is_none_or(Entry::matters) {
                for promise in &mut promises {
                    promise.acknowledged = acknowledged.saves(promise, self.scenario.ranks);
                }
                tally.cuts += 1;
                for state in cursor.states(effort, &mut random) {
                    let view = View::of_state(judge, &state);
                    self.check(&view, &promises, cursor.position(), tally);
                    if random.in_eighths(1) {
                        tally.torn += view.count_torn();
                    }
                }
            }
            latest = cursor.advance();
            if latest.is_none() || tally.failures.len() >= MAX_FAILURES {
                return;
            }
        }
    }

    fn check(&self, view: &View<'_>, promises: &[Promise], position: usize, tally: &mut Tally) {
        tally.states += 1;
        for promise in promises {
            let checked = if self.scenario.course == Course::OneFile {
                view.check_file(FILE, promise).map(|found| (found, 0))
            } else {
                view.check(promise)
            };
            match checked {
                Ok((found, kept)) => tally.count(found, kept),
                Err(problem) => tally.failures.push(format!(
                    "{:?} with seed {}, cut at {position} (after {:?}), step {}: {problem}; there \
                     are {:?}",
                    self.scenario,
                    self.seed,
                    position.checked_sub(1).map(|last| &self.record[last]),
                    promise.step,
                    view.listed()
                )),
            }
        }
    }

    /// The disk after a power cut somewhere, and what had been promised by then.
    pub(crate) fn cut_once(&self, random: &mut Random) -> (SimulatedDisk, Promise) {
        let mut promise = self.promises[0].clone();
        let position = random.below(self.record.len());
        let mut cursor = Cursor::new(&self.base, &self.record);
        let mut acknowledged = Acknowledged::default();
        while cursor.position() < position {
            acknowledged.note(cursor.advance().unwrap());
        }
        promise.acknowledged = acknowledged.saves(&promise, self.scenario.ranks);
        let mut states = cursor.states(THOROUGH, random);
        let state = states.swap_remove(random.below(states.len()));
        let disk = self.scenario.prepare(SimulatedDisk::with(state.contents()));
        (disk, promise)
    }
}

impl Tally {
    fn count(&mut self, found: Found, kept: usize) {
        match found {
            Found::Nothing => self.nothing += 1,
            Found::Promised => self.promised += 1,
            Found::Newer => self.newer += 1,
        }
        self.by_kept_files += usize::from(kept > 0);
    }
}
