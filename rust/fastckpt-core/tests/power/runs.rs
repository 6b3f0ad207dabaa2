//! Saves on a simulated disk, and the power cut after each of their operations.

use std::fmt;
use std::ops::ControlFlow;
use std::thread;

use fastckpt_core::Result;

use crate::oracle::{Found, Judge, Promise, View};
use crate::saves::{StepSave, Writer, save_file};
use crate::simulated::{Contents, Cursor, Entry, Omitted, Random, SimulatedDisk};

/// The file of [`Course::OneFile`].
pub(crate) const FILE: &str = "model_000100.pt";
/// Where more than three operations may be lost, so many of their combinations are looked at.
const STATES_AT_A_CUT: usize = 8;
/// Save ids have fourteen digits, and 0 is none.
const MAX_SAVE_ID: u64 = 99_999_999_999_999;
/// More failures than this say nothing new.
const MAX_FAILURES: usize = 10;

/// What is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// One file, again and again.
    OneFile,
    /// A new step each time.
    NewSteps,
    /// The same step again and again, all ranks together.
    SameStep,
    /// The same, with ranks that do not wait for each other between two saves.
    RanksApart,
    /// The same step on a file system on which no file can have two names.
    WithoutLinks,
    /// The same step again, on what a power cut in the middle of a save has left.
    AfterPowerCut,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) course: Course,
    pub(crate) ranks: usize,
    pub(crate) writer: Writer,
    pub(crate) omitted: Option<Omitted>,
}

/// What was done, and what was promised.
#[derive(Debug)]
pub(crate) struct Recording {
    scenario: Scenario,
    seed: u64,
    base: Contents,
    record: Vec<Entry>,
    /// With what had been promised when the record began.
    promises: Vec<Promise>,
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

impl Scenario {
    pub(crate) fn new(course: Course, ranks: usize) -> Self {
        Self {
            course,
            ranks,
            writer: Writer::Careful,
            omitted: None,
        }
    }

    /// Does it once; the same seed does the same.
    pub(crate) fn record(self, seed: u64) -> Recording {
        let mut random = Random::new(seed);
        match self.course {
            Course::OneFile => self.record_one_file(seed, &mut random),
            Course::NewSteps => {
                let steps: Vec<_> = [100, 200, 300].map(|step| (step, 1)).to_vec();
                self.record_steps(seed, &mut random, &steps)
            }
            Course::SameStep | Course::WithoutLinks => {
                self.record_steps(seed, &mut random, &[(100, 3)])
            }
            Course::RanksApart => self.record_steps(seed, &mut random, &[(100, 4)]),
            Course::AfterPowerCut => self.record_after_power_cut(seed, &mut random),
        }
    }

    fn disk(self) -> SimulatedDisk {
        let disk = SimulatedDisk::new();
        disk.files(0)
            .create_directory(std::path::Path::new("/runs"))
            .unwrap();
        self.prepare(SimulatedDisk::with(disk.contents()))
    }

    fn prepare(self, disk: SimulatedDisk) -> SimulatedDisk {
        if self.course == Course::WithoutLinks {
            disk.refuse_links();
        }
        if let Some(omitted) = self.omitted {
            disk.omit(omitted);
        }
        disk
    }

    fn recording(self, seed: u64, disk: &SimulatedDisk, promises: Vec<Promise>) -> Recording {
        let (base, record) = disk.recording();
        Recording {
            scenario: self,
            seed,
            base,
            record,
            promises,
        }
    }

    fn promise(self, step: usize, save_ids: Vec<u64>) -> Promise {
        Promise {
            step,
            save_ids,
            acknowledged: 0,
            in_place: self.course != Course::WithoutLinks,
        }
    }

    fn record_one_file(self, seed: u64, random: &mut Random) -> Recording {
        let disk = self.disk();
        disk.files(0)
            .create_directory(std::path::Path::new(crate::files::DIRECTORY))
            .unwrap();
        let disk = self.prepare(SimulatedDisk::with(disk.contents()));
        let save_ids: Vec<_> = (0..4).map(|_| new_save_id(random)).collect();
        for save_id in &save_ids {
            save_file(&disk, FILE, *save_id).unwrap();
        }
        self.recording(seed, &disk, vec![self.promise(0, save_ids)])
    }

    fn record_steps(self, seed: u64, random: &mut Random, steps: &[(usize, usize)]) -> Recording {
        let disk = self.disk();
        let mut promises = Vec::new();
        let mut saves = Vec::new();
        for (step, count) in steps {
            let of_step: Vec<_> = (0..*count).map(|_| self.save_of(*step, random)).collect();
            promises.push(self.promise(*step, of_step.iter().map(|save| save.save_id).collect()));
            saves.extend(of_step);
        }
        if self.course == Course::RanksApart {
            self.run(&disk, &saves, random.draw());
        } else {
            for save in &saves {
                self.run(&disk, std::slice::from_ref(save), random.draw());
            }
        }
        self.recording(seed, &disk, promises)
    }

    fn record_after_power_cut(self, seed: u64, random: &mut Random) -> Recording {
        let before = self.record_steps(seed, random, &[(100, 3)]);
        let mut promise = before.promises[0].clone();
        let position = random.below(before.record.len());
        let mut cursor = Cursor::new(&before.base, &before.record);
        let mut acknowledged = Acknowledged::default();
        while cursor.position() < position {
            acknowledged.note(cursor.advance());
        }
        promise.acknowledged = acknowledged.saves(&promise, self.ranks);
        let mut states = cursor.states(STATES_AT_A_CUT, random);
        let state = states.swap_remove(random.below(states.len()));
        let disk = self.prepare(SimulatedDisk::with(state.contents()));
        for _ in 0..2 {
            let save = self.save_of(100, random);
            promise.save_ids.push(save.save_id);
            self.run(&disk, &[save], random.draw());
        }
        self.recording(seed, &disk, vec![promise])
    }

    fn save_of(self, step: usize, random: &mut Random) -> StepSave {
        StepSave {
            step,
            save_id: new_save_id(random),
            ranks: self.ranks,
            writer: self.writer,
        }
    }

    fn run(self, disk: &SimulatedDisk, saves: &[StepSave], seed: u64) {
        for result in run_ranks(disk, self.ranks, saves, seed) {
            result.unwrap();
        }
    }
}

pub(crate) fn new_save_id(random: &mut Random) -> u64 {
    1 + random.draw() % MAX_SAVE_ID
}

/// Lets every rank do its part of these saves, their operations in an order that `seed` decides.
/// A rank ends with its first error.
pub(crate) fn run_ranks(
    disk: &SimulatedDisk,
    ranks: usize,
    saves: &[StepSave],
    seed: u64,
) -> Vec<Result<()>> {
    disk.take_turns(ranks, seed);
    thread::scope(|scope| {
        let rank_of = |rank| {
            scope.spawn(move || {
                let _leaving = Leaving(disk, rank);
                saves.iter().try_for_each(|save| save.save(disk, rank))
            })
        };
        let ranks: Vec<_> = (0..ranks).map(rank_of).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Hands the turn on, also when a rank panics: the others would wait for ever.
struct Leaving<'a>(&'a SimulatedDisk, usize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

/// Which ranks have been told that a save is durable.
#[derive(Debug, Default)]
struct Acknowledged(Vec<(u64, usize)>);

impl Acknowledged {
    fn note(&mut self, entry: Option<&Entry>) {
        if let Some(Entry::Acknowledged { actor, save_id }) = entry {
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
        tally.recordings += 1;
        let mut random = Random::of_part(self.seed, 2);
        let mut cursor = Cursor::new(&self.base, &self.record);
        let mut acknowledged = Acknowledged::default();
        let mut promises = self.promises.clone();
        let mut latest = None;
        loop {
            if latest.is_none_or(Entry::matters) {
                acknowledged.note(latest);
                for promise in &mut promises {
                    promise.acknowledged = acknowledged.saves(promise, self.scenario.ranks);
                }
                if self
                    .cut(judge, &cursor, &promises, &mut random, tally)
                    .is_break()
                {
                    return;
                }
            }
            latest = cursor.advance();
            if latest.is_none() {
                return;
            }
        }
    }

    fn cut(
        &self,
        judge: &Judge,
        cursor: &Cursor<'_>,
        promises: &[Promise],
        random: &mut Random,
        tally: &mut Tally,
    ) -> ControlFlow<()> {
        tally.cuts += 1;
        for (number, state) in cursor.states(STATES_AT_A_CUT, random).iter().enumerate() {
            tally.states += 1;
            let view = View::of_state(judge, state);
            for promise in promises {
                let checked = if self.scenario.course == Course::OneFile {
                    view.check_file(FILE, promise).map(|found| (found, 0))
                } else {
                    view.check(promise)
                };
                match checked {
                    Ok((found, kept)) => tally.count(found, kept),
                    Err(problem) => {
                        let (position, seed) = (cursor.position(), self.seed);
                        let before = position.checked_sub(1).map(|last| &self.record[last]);
                        tally.failures.push(format!(
                            "{:?} with seed {seed}, cut at {position} (after {before:?}), state \
                             {number}, step {}: {problem}; there are {:?}",
                            self.scenario,
                            promise.step,
                            view.listed()
                        ));
                    }
                }
            }
            if tally.failures.len() >= MAX_FAILURES {
                return ControlFlow::Break(());
            }
            if random.in_eighths(1) {
                tally.torn += view.count_torn();
            }
        }
        ControlFlow::Continue(())
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
