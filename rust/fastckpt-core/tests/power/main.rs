//! Power cuts, crashes and errors at every operation, on a simulated disk that keeps no more than it
//! has to: some save that was promised, or a newer one, is always there and whole.
//!
//! `FASTCKPT_STATES` says how many states to look at, `FASTCKPT_SEED` which ones.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../support/disk.rs"]
mod disk;
mod files;
mod oracle;
mod protocol;
mod runs;
mod saves;
#[path = "../support/simulated/mod.rs"]
mod simulated;

use oracle::Judge;
use runs::{Course, Scenario, Tally};
use saves::Writer;
use simulated::{Omitted, Random};

const DEFAULT_STATES: usize = 20_000;
const DEFAULT_SEED: u64 = 1;
/// A careless writer has to be found out within so many states.
const MAX_STATES_UNTIL_FOUND: usize = 20_000;

fn number_from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

fn seed() -> u64 {
    number_from_environment("FASTCKPT_SEED").unwrap_or(DEFAULT_SEED)
}

/// Everything that saves do, on one rank and on many.
fn scenarios() -> Vec<Scenario> {
    let courses = [
        (Course::OneFile, &[1][..]),
        (Course::NewSteps, &[1, 2, 4]),
        (Course::SameStep, &[1, 2, 4]),
        (Course::RanksApart, &[2, 4]),
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
    let states = number_from_environment("FASTCKPT_STATES")
        .map_or(DEFAULT_STATES, |states| usize::try_from(states).unwrap());
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

fn careless(writer: Writer, courses: &[(Course, usize)]) -> Vec<Scenario> {
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
        assert_found_faulty(&omitting(Omitted::FileSyncs, &[(course, 1)]), "");
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
        let scenarios = careless(Writer::ModelFirst, &[(course, 1), (course, 2)]);
        assert_found_faulty(&scenarios, "model_");
    }
}

#[test]
fn a_writer_that_keeps_no_replaced_file_is_found_out() {
    for ranks in [1, 4] {
        let scenarios = careless(Writer::KeepsNothing, &[(Course::SameStep, ranks)]);
        assert_found_faulty(&scenarios, "a promised save is lost");
    }
}

#[test]
fn a_writer_whose_kept_names_are_not_durable_is_found_out() {
    let scenarios = careless(Writer::KeepsUnsynced, &[(Course::SameStep, 1)]);
    assert_found_faulty(&scenarios, "a promised save is lost");
}

#[test]
fn a_writer_that_discards_before_the_step_is_whole_is_found_out() {
    let scenarios = careless(Writer::DiscardsUnseen, &[(Course::SameStep, 2)]);
    assert_found_faulty(&scenarios, "a promised save is lost");
}

#[test]
fn a_writer_that_discards_before_what_others_did_is_durable_is_found_out() {
    let scenarios = careless(Writer::DiscardsUnsynced, &[(Course::SameStep, 4)]);
    assert_found_faulty(&scenarios, "a promised save is lost");
}
