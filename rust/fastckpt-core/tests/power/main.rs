//! Power cuts, crashes and errors at every operation, on a simulated disk that keeps no more than it
//! has to: some save that was promised, or a newer one, is always there and whole.
//!
//! `FASTCKPT_STATES` says how many states to look at, `FASTCKPT_SEED` which ones.
#![allow(missing_docs, clippy::unwrap_used)]

mod cuts;
#[path = "../support/disk.rs"]
mod disk;
mod failures;
mod files;
mod oracle;
mod protocol;
mod runs;
mod saves;
#[path = "../support/simulated/mod.rs"]
mod simulated;
mod simulation;

use cuts::Tally;
use failures::{Failures, fail_everywhere};
use oracle::Judge;
use runs::{Course, MOST_CHANGES, Scenario};
use saves::Writer;
use simulated::{Omitted, Random};

const DEFAULT_STATES: usize = 20_000;
const DEFAULT_SEED: u64 = 1;
/// Of the failures of several ranks one in so many is tried, unless more states than these are
/// asked for.
const SAMPLED: usize = 4;
/// A careless writer has to be found out within so many states, always the same.
const MAX_STATES_UNTIL_FOUND: usize = 200_000;

fn number_from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

fn seed() -> u64 {
    number_from_environment("FASTCKPT_SEED").unwrap_or(DEFAULT_SEED)
}

fn states() -> usize {
    let states = number_from_environment("FASTCKPT_STATES");
    states.map_or(DEFAULT_STATES, |states| usize::try_from(states).unwrap())
}

/// Everything that saves do, on one rank and on many.
fn scenarios() -> Vec<Scenario> {
    let courses = [
        (Course::OneFile, &[1][..]),
        (Course::NewSteps, &[1, 2, 4]),
        (Course::SameStep, &[1, 2, 4]),
        (Course::RanksApart, &[2, 4]),
        (Course::TwoSwitches(None), &[2]),
        (Course::WithoutLinks, &[1, 2]),
        (Course::AfterPowerCut, &[1, 2, 4]),
    ];
    let with_ranks = |(course, ranks): (Course, &'static [usize])| {
        ranks.iter().map(move |ranks| Scenario::new(course, *ranks))
    };
    courses.into_iter().flat_map(with_ranks).collect()
}

/// Goes through the scenarios in turn, with other seeds each time.
fn cut_power(scenarios: &[Scenario], seed: u64, enough: impl Fn(&Tally) -> bool) -> Tally {
    let judge = Judge::default();
    let mut tally = Tally::default();
    for number in 0.. {
        for scenario in scenarios {
            if enough(&tally) || !tally.failures.is_empty() {
                return tally;
            }
            let seed = Random::of_part(seed, number).draw();
            scenario.record(seed).cut_everywhere(&judge, &mut tally);
        }
    }
    tally
}

#[test]
fn a_promised_save_or_a_newer_one_is_whole_after_every_power_cut() {
    let states = states();
    let scenarios = scenarios();
    let tally = cut_power(&scenarios, seed(), |tally| {
        tally.states >= states && tally.recordings >= scenarios.len()
    });
    println!("simulated power cuts: seed {}, {tally}", seed());
    assert_eq!(tally.failures, Vec::<String>::new(), "seed {}", seed());
    assert!(tally.states >= states);
    for seen in [
        tally.nothing,
        tally.promised,
        tally.newer,
        tally.by_kept_files,
        tally.torn,
    ] {
        assert!(seen > 100, "{tally}");
    }
}

fn assert_found_faulty(scenarios: &[Scenario], problem: &str) {
    let tally = cut_power(scenarios, seed(), |tally| {
        tally.states >= MAX_STATES_UNTIL_FOUND
    });
    println!("found: {tally}");
    assert!(
        tally
            .failures
            .iter()
            .any(|failure| failure.contains(problem)),
        "seed {}, {tally}: {:?}",
        seed(),
        tally.failures
    );
}

fn with_writer(writer: Writer, courses: &[(Course, usize)]) -> Vec<Scenario> {
    let scenario = |(course, ranks): &(Course, usize)| Scenario {
        writer,
        ..Scenario::new(*course, *ranks)
    };
    courses.iter().map(scenario).collect()
}

fn omitting(omitted: Omitted, courses: &[(Course, usize)]) -> Vec<Scenario> {
    let scenario = |(course, ranks): &(Course, usize)| Scenario {
        omitted: Some(omitted),
        ..Scenario::new(*course, *ranks)
    };
    courses.iter().map(scenario).collect()
}

#[test]
fn a_writer_that_does_not_fsync_its_files_is_found_out() {
    for course in [Course::OneFile, Course::NewSteps, Course::SameStep] {
        assert_found_faulty(&omitting(Omitted::FileSyncs, &[(course, 1)]), "amaged");
    }
}

#[test]
fn a_writer_that_does_not_fsync_the_directory_is_found_out() {
    for course in [Course::OneFile, Course::NewSteps, Course::SameStep] {
        assert_found_faulty(&omitting(Omitted::DirectorySyncs, &[(course, 1)]), "");
    }
}

#[test]
fn a_writer_that_renames_the_model_first_is_found_out() {
    for course in [Course::NewSteps, Course::SameStep] {
        let scenarios = with_writer(Writer::ModelFirst, &[(course, 1), (course, 2)]);
        assert_found_faulty(&scenarios, "model_");
    }
}

#[test]
fn a_writer_that_keeps_no_replaced_file_is_found_out() {
    for ranks in [1, 4] {
        let scenarios = with_writer(Writer::KeepsNothing, &[(Course::SameStep, ranks)]);
        assert_found_faulty(&scenarios, "a promised save is lost");
    }
}

#[test]
fn a_writer_whose_kept_names_are_not_durable_is_found_out() {
    let scenarios = with_writer(Writer::KeepsUnsynced, &[(Course::SameStep, 1)]);
    assert_found_faulty(&scenarios, "a promised save is lost");
}

#[test]
fn a_writer_that_discards_before_the_step_is_whole_is_found_out() {
    let scenarios = with_writer(Writer::DiscardsUnseen, &[(Course::SameStep, 2)]);
    assert_found_faulty(&scenarios, "a promised save is lost");
}

/// Rank 0 is done but for looking around, or nearly; then rank 1 gets as far as its rename, or nearly.
/// The turns of a seed seldom fall so.
fn one_looks_around_while_the_other_renames() -> Vec<(Course, usize)> {
    let [of_rank_0, of_rank_1] = MOST_CHANGES;
    let switches = |rank_0| (1..of_rank_1).map(move |rank_1| [(0, rank_0), (1, rank_1)]);
    (of_rank_0 - 10..of_rank_0)
        .rev()
        .flat_map(switches)
        .map(|stretches| (Course::TwoSwitches(Some(stretches)), 2))
        .collect()
}

#[test]
fn a_rank_that_looks_around_while_another_renames_removes_nothing_that_is_needed() {
    let scenarios = with_writer(Writer::Careful, &one_looks_around_while_the_other_renames());
    let tally = cut_power(&scenarios, seed(), |tally| {
        tally.recordings >= scenarios.len()
    });
    assert_eq!(tally.failures, Vec::<String>::new(), "seed {}", seed());
    assert!(tally.promised > 0 && tally.newer > 0, "{tally}");
}

#[test]
fn a_writer_that_discards_before_what_others_did_is_durable_is_found_out() {
    let courses = one_looks_around_while_the_other_renames();
    let scenarios = with_writer(Writer::DiscardsUnsynced, &courses);
    assert_found_faulty(&scenarios, "a promised save is lost");
}

/// Looking around and cleaning up: the save does not need it.
const MAY_FAIL_UNSEEN: [&str; 14] = [
    "names",
    "is_local",
    "open",
    "open_at",
    "metadata",
    "read_at",
    "stat",
    "inspect",
    "inspect_at",
    "lock",
    "lock_shared",
    "sync_directory",
    "unlink",
    "unlock",
];

fn assert_failures_are_harmless(failures: &Failures) {
    println!(
        "{} failures, {} reported, ignored {:?}; then power cuts: {}",
        failures.tried, failures.reported, failures.ignored, failures.cuts
    );
    assert_eq!(failures.problems, Vec::<String>::new());
    assert_eq!(failures.cuts.failures, Vec::<String>::new());
    assert!(failures.reported > failures.tried / 4);
}

#[test]
fn a_file_whose_saving_fails_anywhere_is_the_old_one_or_the_new_one() {
    let failures = fail_everywhere(Scenario::new(Course::OneFile, 1), 1, seed(), 1);
    assert_failures_are_harmless(&failures);
    assert_eq!(
        failures.ignored.iter().copied().collect::<Vec<_>>(),
        ["is_local", "lock_shared", "names", "unlock"]
    );
}

#[test]
fn a_step_whose_saving_fails_anywhere_leaves_what_was_promised() {
    for (course, ranks, sample) in [
        (Course::NewSteps, 1, 1),
        (Course::SameStep, 1, 1),
        (Course::WithoutLinks, 1, 1),
        (Course::NewSteps, 2, SAMPLED),
        (Course::SameStep, 2, SAMPLED),
    ] {
        let sample = if states() > DEFAULT_STATES { 1 } else { sample };
        let failures = fail_everywhere(Scenario::new(course, ranks), 1, seed(), sample);
        assert_failures_are_harmless(&failures);
        for name in &failures.ignored {
            assert!(MAY_FAIL_UNSEEN.contains(name), "{course:?}: {name}");
        }
    }
}

#[test]
fn a_first_save_that_fails_anywhere_does_not_harm_the_next() {
    for (ranks, sample) in [(1, 1), (2, SAMPLED)] {
        let scenario = Scenario::new(Course::SameStep, ranks);
        assert_failures_are_harmless(&fail_everywhere(scenario, 0, seed(), sample));
    }
}
