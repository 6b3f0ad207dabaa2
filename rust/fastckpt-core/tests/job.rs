//! A panic in one thread of a job ends the job: nobody is left waiting for that thread.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "support/saving.rs"]
mod saving;
mod support;

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use fastckpt_core::Result;
use fastckpt_core::job::{Attendant, Job, Observer, Stop, Unobserved, run_detached};
use fastckpt_core::write::{self, Sink, WriteOptions};
use saving::{payloads, plan_of};

/// A job whose threads wait for each other for ever has failed.
const PATIENCE: Duration = Duration::from_secs(60);

type Panic = Box<dyn Any + Send>;

/// Runs a call that is to panic; returns with what, or fails if it never ends.
fn panic_of<T>(call: impl FnOnce() -> T + Send + 'static) -> Panic {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let outcome = panic::catch_unwind(AssertUnwindSafe(call)).map(drop);
        sender.send(outcome).unwrap();
    });
    let outcome = receiver.recv_timeout(PATIENCE);
    outcome.expect("it never ends").expect_err("no panic")
}

fn message(panic: &Panic) -> &str {
    panic.downcast_ref::<&str>().unwrap()
}

struct Panicking;

impl Observer for Panicking {
    fn poll(&mut self, _done_nbytes: u64, _total_nbytes: u64) -> std::result::Result<(), Stop> {
        panic!("the observer")
    }
}

impl Attendant for Panicking {
    fn attend(&mut self) -> Result<bool> {
        panic!("the attendant")
    }
}

impl Sink for Panicking {
    fn write(&mut self, _bytes: &[u8]) -> std::result::Result<(), Stop> {
        panic!("the sink")
    }
}

/// Has nothing to do.
struct Idle;

impl Attendant for Idle {
    fn attend(&mut self) -> Result<bool> {
        Ok(false)
    }
}

/// Counts the workers that are at work.
struct AtWork<'a>(&'a AtomicUsize);

impl<'a> AtWork<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs a job whose workers wait for something that nobody does; checks that they have ended.
fn wait_for_nothing(
    threads: usize,
    observer: &mut dyn Observer,
    attendant: Option<&mut dyn Attendant>,
) {
    let job = Job::new(0);
    let at_work = AtomicUsize::new(0);
    let run = || {
        job.run(
            threads,
            100,
            observer,
            attendant,
            || Ok(AtWork::new(&at_work)),
            |_at_work, _item| job.wait_until(|| false),
        )
    };
    let panicked = panic::catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    assert_eq!(at_work.load(Ordering::SeqCst), 0, "workers are left");
    panic::resume_unwind(panicked)
}

#[test]
fn an_observer_that_panics_ends_workers_that_wait() {
    for threads in [2, 4] {
        let panicked = panic_of(move || wait_for_nothing(threads, &mut Panicking, None));
        assert_eq!(message(&panicked), "the observer");
    }
    let panicked = panic_of(|| wait_for_nothing(1, &mut Panicking, Some(&mut Idle)));
    assert_eq!(message(&panicked), "the observer");
}

#[test]
fn an_attendant_that_panics_ends_workers_that_wait_for_it() {
    for threads in [1, 4] {
        let panicked = panic_of(move || {
            wait_for_nothing(threads, &mut Unobserved, Some(&mut Panicking));
        });
        assert_eq!(message(&panicked), "the attendant");
    }
}

#[test]
fn a_worker_that_panics_ends_those_that_wait_for_it() {
    for threads in [1, 2, 4] {
        let panicked = panic_of(move || {
            let job = Job::new(0);
            job.run(
                threads,
                100,
                &mut Unobserved,
                Some(&mut Idle),
                || Ok(()),
                |(), item| {
                    assert!(item > 0, "the worker");
                    job.wait_until(|| false)
                },
            )
        });
        drop(panicked);
    }
}

#[test]
fn a_scratch_that_panics_ends_the_job() {
    drop(panic_of(|| {
        let job = Job::new(0);
        job.run(
            2,
            100,
            &mut Unobserved,
            Some(&mut Idle),
            || -> Result<()> { panic!("the scratch") },
            |(), _item| Ok(()),
        )
    }));
}

#[test]
fn a_sink_that_panics_ends_the_workers_that_compose_ahead() {
    // More chunks than may wait for the sink.
    let plan = plan_of(&payloads(&[64 << 20]), 64);
    let panicked = panic_of(move || {
        let options = WriteOptions::default();
        write::write_to_sink(&mut Panicking, &plan, &options, &mut Unobserved, None)
    });
    assert_eq!(message(&panicked), "the sink");
}

#[test]
fn an_observer_that_panics_waits_for_no_call_that_cannot_be_interrupted() {
    let (release, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let panicked = panic_of(move || {
        run_detached(&mut Panicking, 0, move || {
            // Until the sender is gone.
            let _disconnected = wait.lock().unwrap().recv();
            Ok(())
        })
    });
    assert_eq!(message(&panicked), "the observer");
    drop(release);
}
