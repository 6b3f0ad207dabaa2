//! Saves on a simulated disk: of what, by how many ranks, in which order.

use std::path::Path;
use std::thread;

use fastckpt_core::Result;

use crate::cuts::Recording;
use crate::files::DIRECTORY;
use crate::oracle::Promise;
use crate::saves::{StepSave, Writer, save_file};
use crate::simulated::{Omitted, Random, SimulatedDisk, Stretch, Turns};

/// The file of [`Course::OneFile`].
pub(crate) const FILE: &str = "model_000100.pt";
/// Save ids have fourteen digits, and 0 is none.
const MAX_SAVE_ID: u64 = 99_999_999_999_999;
/// What rank 0, and any other, changes in one save at most.
pub(crate) const MOST_CHANGES: [usize; 2] = [36, 18];

/// What is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// One file, again and again.
    OneFile,
    /// A new step each time.
    NewSteps,
    /// The same step again and again, all ranks together.
    SameStep,
    /// The same, with ranks that do not wait for each other between two saves. One may be two saves
    /// ahead of another; three, and it no longer keeps the files that the other comes to need.
    RanksApart,
    /// The same step on a file system on which no file can have two names.
    WithoutLinks,
    /// The same step once more, by two ranks: one of them up to so many changes, the other one up to so
    /// many, then the first to its end. The seed says how many where this does not.
    TwoSwitches(Option<[Stretch; 2]>),
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

impl Scenario {
    /// What a disk was used for, outside of any of the courses.
    pub(crate) fn recorded(
        self,
        seed: u64,
        disk: &SimulatedDisk,
        promises: Vec<Promise>,
    ) -> Recording {
        let (base, record) = disk.recording();
        Recording {
            scenario: self,
            seed,
            base,
            record,
            promises,
        }
    }

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
            Course::SameStep | Course::RanksApart | Course::WithoutLinks => {
                self.record_steps(seed, &mut random, &[(100, 3)])
            }
            Course::TwoSwitches(stretches) => {
                let first = random.below(2);
                let changes = |rank, random: &mut Random| (rank, random.below(MOST_CHANGES[rank]));
                let drawn = [changes(first, &mut random), changes(1 - first, &mut random)];
                self.record_switches(seed, &mut random, &stretches.unwrap_or(drawn))
            }
            Course::AfterPowerCut => self.record_after_power_cut(seed, &mut random),
        }
    }

    /// A disk on which the directory is not there yet, but the one above it.
    pub(crate) fn disk(self) -> SimulatedDisk {
        let disk = SimulatedDisk::new();
        let parent = Path::new(DIRECTORY).parent().unwrap();
        disk.files(0).create_directory(parent).unwrap();
        self.prepare(SimulatedDisk::with(disk.contents()))
    }

    pub(crate) fn prepare(self, disk: SimulatedDisk) -> SimulatedDisk {
        if self.course == Course::WithoutLinks {
            disk.refuse_links();
        }
        if let Some(omitted) = self.omitted {
            disk.omit(omitted);
        }
        disk
    }

    pub(crate) fn promise(self, step: usize, save_ids: Vec<u64>) -> Promise {
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
            .create_directory(Path::new(DIRECTORY))
            .unwrap();
        let disk = self.prepare(SimulatedDisk::with(disk.contents()));
        let save_ids: Vec<_> = (0..4).map(|_| new_save_id(random)).collect();
        for save_id in &save_ids {
            save_file(&disk, FILE, *save_id).unwrap();
        }
        self.recorded(seed, &disk, vec![self.promise(0, save_ids)])
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
        self.recorded(seed, &disk, promises)
    }

    fn record_switches(self, seed: u64, random: &mut Random, stretches: &[Stretch]) -> Recording {
        let disk = self.disk();
        let saves = [self.save_of(100, random), self.save_of(100, random)];
        self.run(&disk, &saves[..1], random.draw());
        let disk = self.prepare(SimulatedDisk::with(disk.contents()));
        let turns = Turns::planned(self.ranks, stretches);
        for result in run_ranks(&disk, self.ranks, &saves[1..], turns) {
            result.unwrap();
        }
        let mut promise = self.promise(100, saves.iter().map(|save| save.save_id).collect());
        promise.acknowledged = 1;
        self.recorded(seed, &disk, vec![promise])
    }

    /// Up to three lives that end in a power cut, and one in which it can be cut everywhere.
    fn record_after_power_cut(self, seed: u64, random: &mut Random) -> Recording {
        let mut last = self.record_steps(seed, random, &[(100, 3)]);
        for _ in 0..=random.below(3) {
            let (disk, mut promise) = last.cut_once(random);
            let saves = [self.save_of(100, random), self.save_of(100, random)];
            promise.save_ids.extend(saves.map(|save| save.save_id));
            if random.in_eighths(4) {
                self.run(&disk, &saves, random.draw());
            } else {
                self.run(&disk, &saves[..1], random.draw());
                self.run(&disk, &saves[1..], random.draw());
            }
            last = self.recorded(seed, &disk, vec![promise]);
        }
        last
    }

    pub(crate) fn save_of(self, step: usize, random: &mut Random) -> StepSave {
        StepSave {
            step,
            save_id: new_save_id(random),
            ranks: self.ranks,
            writer: self.writer,
        }
    }

    fn run(self, disk: &SimulatedDisk, saves: &[StepSave], seed: u64) {
        for result in run_ranks(disk, self.ranks, saves, Turns::new(self.ranks, seed)) {
            result.unwrap();
        }
    }
}

pub(crate) fn new_save_id(random: &mut Random) -> u64 {
    1 + random.draw() % MAX_SAVE_ID
}

/// Lets every rank do its part of these saves. A rank ends with its first error.
pub(crate) fn run_ranks(
    disk: &SimulatedDisk,
    ranks: usize,
    saves: &[StepSave],
    turns: Turns,
) -> Vec<Result<()>> {
    disk.take_turns(turns);
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
