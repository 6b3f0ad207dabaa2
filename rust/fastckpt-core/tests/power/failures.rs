//! Every operation of a save fails, alone or with all that follow.

use std::collections::BTreeSet;

use fastckpt_core::{Error, Result};
use libc::{EIO, ENOSPC};

use crate::cuts::{QUICK, Tally};
use crate::files;
use crate::oracle::{Found, Judge, Promise, View};
use crate::runs::{Course, FILE, Scenario, new_save_id, run_ranks};
use crate::saves::{StepSave, save_file};
use crate::simulated::{Change, Contents, Entry, Fault, Random, Reach, SimulatedDisk, Turns};

const OLD_STEP: usize = 100;
const NEW_STEP: usize = 200;

/// How operations fail. Onwards is also how a process dies: whatever it would still do has no effect.
const FAILURES: [(i32, Reach); 4] = [
    (EIO, Reach::Once),
    (ENOSPC, Reach::Once),
    (EIO, Reach::Onwards),
    (EIO, Reach::AfterTheFact),
];

/// A save of which an operation fails, and what was there before.
#[derive(Debug)]
struct Subject {
    scenario: Scenario,
    /// One that is promised, one that fails, and one that has to work again.
    saves: Vec<Save>,
    /// How many saves have been promised before the one that fails: none or one.
    before: usize,
    /// What they have left.
    base: Contents,
    turns: u64,
}

#[derive(Debug, Clone, Copy)]
enum Save {
    File(u64),
    Step(StepSave),
}

/// What came of the failures.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    pub(crate) tried: usize,
    pub(crate) reported: usize,
    /// Names of the operations whose failing was not reported, since the save does not need them.
    pub(crate) ignored: BTreeSet<&'static str>,
    pub(crate) cuts: Tally,
    pub(crate) problems: Vec<String>,
}

impl Subject {
    fn new(scenario: Scenario, before: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let step = |number| match scenario.course {
            Course::NewSteps if number > 0 => NEW_STEP,
            _ => OLD_STEP,
        };
        let mut save = |number| match scenario.course {
            Course::OneFile => Save::File(new_save_id(&mut random)),
            _ => Save::Step(scenario.save_of(step(number), &mut random)),
        };
        let saves = vec![save(0), save(1), save(2)];
        let mut subject = Self {
            scenario,
            saves,
            before,
            base: scenario.disk().contents(),
            turns: random.draw(),
        };
        let disk = subject.disk();
        if scenario.course == Course::OneFile {
            let directory = std::path::Path::new(files::DIRECTORY);
            disk.files(0).create_directory(directory).unwrap();
        }
        for result in (0..before).flat_map(|number| subject.run(&disk, number)) {
            result.unwrap();
        }
        subject.base = disk.contents();
        subject
    }

    fn run(&self, disk: &SimulatedDisk, number: usize) -> Vec<Result<()>> {
        match self.saves[number] {
            Save::File(save_id) => vec![save_file(disk, FILE, save_id)],
            Save::Step(save) => {
                let turns = Turns::new(self.scenario.ranks, self.turns);
                run_ranks(disk, self.scenario.ranks, &[save], turns)
            }
        }
    }

    fn disk(&self) -> SimulatedDisk {
        self.scenario
            .prepare(SimulatedDisk::with(self.base.clone()))
    }

    /// What is promised when the saves up to this one, by its number from 1, have been.
    fn promises(&self, acknowledged: usize) -> Vec<Promise> {
        let is_new = self.scenario.course == Course::NewSteps;
        let save_ids = self.saves.iter().map(|save| match save {
            Save::File(save_id) => *save_id,
            Save::Step(save) => save.save_id,
        });
        let promise = |step, save_ids: Vec<u64>, acknowledged| Promise {
            acknowledged,
            ..self.scenario.promise(step, save_ids)
        };
        if is_new {
            let old = promise(OLD_STEP, save_ids.clone().take(1).collect(), 1);
            let new = promise(NEW_STEP, save_ids.skip(1).collect(), acknowledged - 1);
            vec![old, new]
        } else {
            vec![promise(OLD_STEP, save_ids.collect(), acknowledged)]
        }
    }

    /// Checks the disk as every process sees it; says what there is of the last promise.
    fn look(&self, judge: &Judge, disk: &SimulatedDisk, acknowledged: usize) -> Found {
        let contents = disk.contents();
        let view = View::of_contents(judge, &contents);
        let found = self.promises(acknowledged).into_iter().map(|promise| {
            if self.scenario.course == Course::OneFile {
                view.check_file(FILE, &promise)
            } else {
                view.check(&promise).map(|(found, _)| found)
            }
        });
        let found: std::result::Result<Vec<_>, _> = found.collect();
        *found.unwrap().last().unwrap()
    }
}

/// Makes each operation of the second save fail, each in every way.
///
/// With `before` there is one before it, which has been promised. Of all failures one in `sample` is
/// tried.
pub(crate) fn fail_everywhere(
    scenario: Scenario,
    before: usize,
    seed: u64,
    sample: usize,
) -> Failures {
    let ranks = scenario.ranks;
    let subject = Subject::new(scenario, before, seed);
    let judge = Judge::default();
    let mut failures = Failures::default();
    let disk = subject.disk();
    for result in subject.run(&disk, 1) {
        result.unwrap();
    }
    let mut random = Random::of_part(seed, 3);
    for actor in 0..ranks {
        for operation in 0..disk.count(actor) {
            for (errno, reach) in FAILURES {
                let fault = Fault {
                    actor,
                    operation,
                    errno,
                    reach,
                };
                if random.below(sample) == 0 {
                    fail(&subject, &judge, fault, &mut failures);
                }
            }
        }
    }
    failures
}

fn fail(subject: &Subject, judge: &Judge, fault: Fault, failures: &mut Failures) {
    failures.tried += 1;
    let disk = subject.disk();
    disk.inject(fault);
    let results = subject.run(&disk, 1);
    let (_, record) = disk.recording();
    let failed = failed_operations(&record);
    let context = format!("{:?}, {fault:?} ({failed:?})", subject.scenario);
    for (rank, result) in results.iter().enumerate() {
        match result {
            Err(error) if errno_of(error) == Some(fault.errno) => failures.reported += 1,
            Err(error) => failures.problems.push(format!("{context}: {error:?}")),
            Ok(()) if rank == fault.actor => failures.ignored.extend(failed.first()),
            Ok(()) => {}
        }
    }
    if let Some(object) = synced_again(&record) {
        failures
            .problems
            .push(format!("{context}: fsync was tried again: {object}"));
    }
    let all_right = results.iter().all(Result::is_ok);
    let acknowledged = if all_right { 2 } else { subject.before };
    subject.look(judge, &disk, acknowledged);
    let left = temps(&disk);
    if fault.reach == Reach::Once && failed.first() != Some(&"unlink") && !left.is_empty() {
        failures.problems.push(format!("{context}: left {left:?}"));
    }
    save_again(subject, judge, &disk, &context, failures);
    let first = record.iter().position(is_failed).unwrap_or_default();
    let recording =
        subject
            .scenario
            .recorded(subject.turns, &disk, subject.promises(subject.before));
    recording.cut_from(first, QUICK, judge, &mut failures.cuts);
}

/// The next save works, and cleans up. Nobody has cut the power meanwhile: it finds what the failed
/// one did, durable or not.
fn save_again(
    subject: &Subject,
    judge: &Judge,
    disk: &SimulatedDisk,
    context: &str,
    failures: &mut Failures,
) {
    disk.heal();
    for result in subject.run(disk, 2) {
        if let Err(error) = result {
            failures
                .problems
                .push(format!("{context}: the next save: {error:?}"));
        }
    }
    subject.look(judge, disk, 3);
    let hidden = View::of_contents(judge, &disk.contents()).listed();
    let hidden: Vec<_> = hidden
        .into_iter()
        .filter(|name| name.starts_with('.'))
        .collect();
    if !hidden.is_empty() {
        failures
            .problems
            .push(format!("{context}: the next save left {hidden:?}"));
    }
}

fn temps(disk: &SimulatedDisk) -> Vec<String> {
    let judge = Judge::default();
    let listed = View::of_contents(&judge, &disk.contents()).listed();
    listed
        .into_iter()
        .filter(|name| files::is_temp_name(name))
        .collect()
}

fn errno_of(error: &Error) -> Option<i32> {
    match error {
        Error::Io { source, .. }
        | Error::NoSpace { source, .. }
        | Error::CommitUnknown { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

fn is_failed(entry: &Entry) -> bool {
    matches!(
        entry,
        Entry::Operation {
            errno: Some(EIO | ENOSPC),
            ..
        }
    )
}

fn failed_operations(record: &[Entry]) -> Vec<&'static str> {
    let failed = record.iter().filter(|entry| is_failed(entry));
    let name = |entry: &Entry| match entry {
        Entry::Operation { name, .. } => Some(*name),
        Entry::Acknowledged { .. } => None,
    };
    failed.filter_map(name).collect()
}

/// A file of which an fsync was tried again after one had failed.
fn synced_again(record: &[Entry]) -> Option<String> {
    let mut failed = BTreeSet::new();
    for entry in record {
        if let Entry::Operation {
            change: Some(Change::SyncFile { inode, succeeded }),
            ..
        } = entry
        {
            if failed.contains(inode) {
                return Some(format!("{entry:?}"));
            }
            if !succeeded {
                failed.insert(*inode);
            }
        }
    }
    None
}
