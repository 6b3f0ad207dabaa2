//! Any saves by any ranks in any order of their turns, with an operation that fails and a power cut
//! somewhere: a promised save or a newer one is whole, and the next save works.
//!
//! The disk, the ranks and what has to be true of them are those of the simulated power cuts among the
//! core's own tests. There, seeds choose; here, the fuzzer does, and learns which choices lead to new code.

#![no_main]

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;

use fastckpt_core::Result;
use libc::{EIO, ENOSPC};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[path = "../../fastckpt-core/tests/support/disk.rs"]
mod disk;
#[allow(dead_code)]
#[path = "../../fastckpt-core/tests/power/files.rs"]
mod files;
#[allow(dead_code)]
#[path = "../../fastckpt-core/tests/power/oracle.rs"]
mod oracle;
#[allow(dead_code)]
#[path = "../../fastckpt-core/tests/power/protocol.rs"]
mod protocol;
#[allow(dead_code)]
#[path = "../../fastckpt-core/tests/power/saves.rs"]
mod saves;
#[allow(unused_imports)]
#[path = "../../fastckpt-core/tests/support/simulated/mod.rs"]
mod simulated;

use files::DIRECTORY;
use oracle::{Found, Judge, Promise, View};
use saves::{StepSave, Writer, save_file};
use simulated::{Cursor, Effort, Entry, Fault, Random, Reach, SimulatedDisk, Stretch, Turns};

const MAX_RANKS: usize = 3;
const MAX_SAVES: usize = 3;
/// More turns than this many are one rank after the other.
const MAX_STRETCHES: usize = 12;
const STATES_AT_A_CUT: Effort = Effort {
    exhaustive: 2,
    sampled: 6,
};
const FILE: &str = "model_000100.pt";
/// Of an actor that does nothing, so it never comes.
const NO_FAULT: Fault = Fault {
    actor: usize::MAX,
    operation: 0,
    errno: EIO,
    reach: Reach::Once,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
enum What {
    OneFile,
    NewSteps,
    SameStep,
    WithoutLinks,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Failing {
    save: u8,
    rank: u8,
    operation: u8,
    out_of_space: bool,
    reach: u8,
}

impl Failing {
    /// The operation counts from the beginning of the save.
    fn fault(self, ranks: usize) -> Fault {
        let reaches = [Reach::Once, Reach::Onwards, Reach::AfterTheFact];
        Fault {
            actor: usize::from(self.rank) % ranks,
            operation: self.operation.into(),
            errno: if self.out_of_space { ENOSPC } else { EIO },
            reach: reaches[usize::from(self.reach) % reaches.len()],
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Script {
    what: What,
    ranks: u8,
    saves: u8,
    /// Of each save: a rank, and how many changes it makes before it is another one's turn.
    turns: Vec<(u8, u8)>,
    failing: Option<Failing>,
    /// Where the power is cut, counted back from the end.
    cut: u16,
    outcomes: u32,
}

/// A script, with every number within its limits.
struct Plan {
    what: What,
    ranks: usize,
    /// One more than is saved before the power cut.
    saves: Vec<StepSave>,
    stretches: Vec<Stretch>,
    /// With the number of the save in which it comes.
    fault: Option<(usize, Fault)>,
}

/// Hands the turn on, also when a rank panics: the others would wait for ever.
struct Leaving<'a>(&'a SimulatedDisk, usize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

impl Plan {
    fn of(script: &Script) -> Self {
        let what = script.what;
        let ranks = match what {
            What::OneFile => 1,
            _ => usize::from(script.ranks) % MAX_RANKS + 1,
        };
        let count = usize::from(script.saves) % MAX_SAVES + 1;
        let save = |number: usize| StepSave {
            step: match what {
                What::NewSteps => 100 * (number + 1),
                _ => 100,
            },
            save_id: 1000 + number as u64,
            ranks,
            writer: Writer::Careful,
        };
        let stretch =
            |(rank, changes): &(u8, u8)| (usize::from(*rank) % ranks, usize::from(*changes) + 1);
        let stretches = script.turns.iter().take(MAX_STRETCHES).map(stretch);
        Self {
            what,
            ranks,
            saves: (0..=count).map(save).collect(),
            stretches: stretches.collect(),
            fault: script.failing.map(|failing| {
                let save = usize::from(failing.save) % count;
                (save, failing.fault(ranks))
            }),
        }
    }

    /// The directory above that of the saves is there; that itself, if a file by itself is saved.
    fn disk(&self) -> SimulatedDisk {
        let disk = SimulatedDisk::new();
        let directory = Path::new(DIRECTORY);
        for path in directory.parent().into_iter().chain([directory]) {
            if path != directory || self.what == What::OneFile {
                let created = disk.files(0).create_directory(path);
                created.expect("what is above it is there");
            }
        }
        self.prepare(SimulatedDisk::with(disk.contents()))
    }

    fn prepare(&self, disk: SimulatedDisk) -> SimulatedDisk {
        if self.what == What::WithoutLinks {
            disk.refuse_links();
        }
        disk
    }

    fn save(&self, disk: &SimulatedDisk, number: usize) -> Vec<Result<()>> {
        let save = self.saves[number];
        if self.what == What::OneFile {
            return vec![save_file(disk, FILE, save.save_id)];
        }
        disk.take_turns(Turns::planned(self.ranks, &self.stretches));
        thread::scope(|scope| {
            let rank_of = |rank| {
                scope.spawn(move || {
                    let _leaving = Leaving(disk, rank);
                    save.save(disk, rank)
                })
            };
            let ranks: Vec<_> = (0..self.ranks).map(rank_of).collect();
            let join = |rank: thread::ScopedJoinHandle<'_, _>| rank.join().expect("no panic");
            ranks.into_iter().map(join).collect()
        })
    }

    /// All saves but the last. A rank that has failed is another process at the next save.
    fn save_all(&self, disk: &SimulatedDisk) {
        for number in 0..self.saves.len() - 1 {
            let fault = self.fault.filter(|(save, _)| *save == number);
            let planned = fault.map_or(NO_FAULT, |(_, fault)| Fault {
                operation: disk.count(fault.actor) + fault.operation,
                ..fault
            });
            disk.inject(planned);
            for result in self.save(disk, number) {
                assert!(result.is_ok() || fault.is_some(), "{result:?}");
            }
        }
    }

    /// What has been promised of each step, when so many ranks have been told of each save.
    fn promises(&self, told: &BTreeMap<u64, usize>) -> Vec<Promise> {
        let mut steps = BTreeMap::<usize, Vec<u64>>::new();
        for save in &self.saves {
            steps.entry(save.step).or_default().push(save.save_id);
        }
        let promise = |(step, save_ids): (usize, Vec<u64>)| {
            let is_promised = |save_id: &u64| told.get(save_id) == Some(&self.ranks);
            let last = save_ids.iter().rposition(is_promised);
            Promise {
                step,
                acknowledged: last.map_or(0, |last| last + 1),
                save_ids,
                in_place: self.what != What::WithoutLinks,
            }
        };
        steps.into_iter().map(promise).collect()
    }

    fn check(&self, view: &View<'_>, promise: &Promise) -> Found {
        let found = if self.what == What::OneFile {
            view.check_file(FILE, promise)
        } else {
            view.check(promise).map(|(found, _)| found)
        };
        match found {
            Ok(found) => found,
            Err(problem) => panic!("{problem}; there are {:?}", view.listed()),
        }
    }
}

/// How many ranks have been told that a save is durable.
fn note(told: &mut BTreeMap<u64, usize>, entry: &Entry) {
    if let Entry::Acknowledged { save_id, .. } = entry {
        *told.entry(*save_id).or_default() += 1;
    }
}

fuzz_target!(|script: Script| {
    let plan = Plan::of(&script);
    let judge = Judge::default();
    let disk = plan.disk();
    plan.save_all(&disk);

    let (base, record) = disk.recording();
    let position = record.len() - usize::from(script.cut) % (record.len() + 1);
    let mut cursor = Cursor::new(&base, &record);
    let mut told = BTreeMap::new();
    while cursor.position() < position {
        note(&mut told, cursor.advance().expect("the record is longer"));
    }
    let promises = plan.promises(&told);
    let mut random = Random::new(script.outcomes.into());
    let states = cursor.states(STATES_AT_A_CUT, &mut random);
    for state in &states {
        let view = View::of_state(&judge, state);
        for promise in &promises {
            plan.check(&view, promise);
        }
    }

    // The power is back: the next save works on what is left, and is found.
    let state = &states[random.below(states.len())];
    let disk = plan.prepare(SimulatedDisk::with(state.contents()));
    let last = plan.saves.len() - 1;
    for result in plan.save(&disk, last) {
        result.expect("nothing fails any more");
    }
    told.insert(plan.saves[last].save_id, plan.ranks);
    let contents = disk.contents();
    let view = View::of_contents(&judge, &contents);
    let newest = plan.promises(&told).pop().expect("there is a last step");
    assert_eq!(plan.check(&view, &newest), Found::Promised);
});
