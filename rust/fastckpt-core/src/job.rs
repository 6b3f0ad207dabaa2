//! The threads of one job: workers that take its chunks in order, and the calling thread, which
//! looks after them: it reports progress, lets an interruption through and serves devices.
//!
//! Threads live as long as the job. There is no pool that outlives it, so a fork between jobs
//! finds nothing to repair, and starting them (some 50 microseconds each) is nothing beside the
//! megabytes that make a job use more than the calling thread.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often the calling thread looks up from waiting: an interruption is seen within this time.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// With fewer threads than this the disk is idle while they copy (measured on 2 cores: 1.8 GB/s
/// with two, 2.4 GB/s with four).
const MIN_DEFAULT_THREADS: usize = 4;
/// With more than this, memory for their buffers grows and no disk array measured gets faster.
const MAX_DEFAULT_THREADS: usize = 16;

/// How many workers to use where the caller does not say.
#[must_use]
pub fn default_threads() -> usize {
    let cores = thread::available_parallelism().map_or(MIN_DEFAULT_THREADS, NonZeroUsize::get);
    cores.clamp(MIN_DEFAULT_THREADS, MAX_DEFAULT_THREADS)
}

/// Looks at a job from outside, in the calling thread.
pub trait Observer {
    /// Called about every 50 ms, and at the end. `Err` stops the job with [`Error::Interrupted`]; the
    /// observer remembers why.
    fn poll(&mut self, done_nbytes: u64, total_nbytes: u64) -> std::result::Result<(), Stop>;
}

/// An observer's wish to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop;

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn poll(&mut self, _done_nbytes: u64, _total_nbytes: u64) -> std::result::Result<(), Stop> {
        Ok(())
    }
}

/// What the calling thread does for the workers, such as moving bytes from or to a device.
pub trait Attendant {
    /// Does one piece of work. `Ok(false)` where there is nothing to do now.
    fn attend(&mut self) -> Result<bool>;
}

/// What the threads of a job share.
#[derive(Debug)]
pub struct Job {
    total_nbytes: u64,
    done_nbytes: AtomicU64,
    next_item: AtomicUsize,
    running: AtomicUsize,
    cancelled: AtomicBool,
    failure: Mutex<Option<Error>>,
    changed: (Mutex<()>, Condvar),
}

impl Job {
    /// A job that moves `total_nbytes` bytes.
    #[must_use]
    pub fn new(total_nbytes: u64) -> Self {
        Self {
            total_nbytes,
            done_nbytes: AtomicU64::new(0),
            next_item: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            cancelled: AtomicBool::new(false),
            failure: Mutex::new(None),
            changed: (Mutex::new(()), Condvar::new()),
        }
    }

    /// Counts bytes as done.
    pub fn advance(&self, nbytes: u64) {
        self.done_nbytes.fetch_add(nbytes, Ordering::Relaxed);
    }

    /// Whether the job is to end early.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Ends the job early; the first error is the one that it reports.
    pub fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.cancelled.store(true, Ordering::Release);
        self.notify();
    }

    /// Wakes everybody who waits for a change.
    pub fn notify(&self) {
        let _held_so_that_no_waiter_misses_it = lock(&self.changed.0);
        self.changed.1.notify_all();
    }

    /// Waits until `ready`, which looks at what other threads change before they call `notify`.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where the job is to end early.
    pub fn wait_until(&self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let mut guard = lock(&self.changed.0);
        loop {
            if self.is_cancelled() {
                return Err(Error::Interrupted);
            }
            if ready() {
                return Ok(());
            }
            guard = self
                .changed
                .1
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs `work(scratch, item)` for each item below `items`, taken in order by up to `threads`
    /// workers, each with a scratch of its own.
    ///
    /// An item may wait (with [`Job::wait_until`]) for what items before it do, never for what
    /// later ones do. With an attendant there is at least one worker beside the calling thread;
    /// without, a job of one item or one thread runs in the calling thread itself.
    ///
    /// # Errors
    /// The first error of a worker or of the attendant, or [`Error::Interrupted`].
    ///
    /// # Panics
    /// Where the observer, the attendant or a worker does. The job is then cancelled, and all its
    /// workers have ended before the panic goes on.
    pub fn run<S>(
        &self,
        threads: usize,
        items: usize,
        observer: &mut dyn Observer,
        attendant: Option<&mut dyn Attendant>,
        scratch: impl Fn() -> Result<S> + Sync,
        work: impl Fn(&mut S, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        let threads = threads.clamp(1, items.max(1));
        let worker = || self.work_through(items, &scratch, &work, &mut || Ok(()));
        if threads == 1 && attendant.is_none() {
            self.work_here(items, observer, &scratch, &work);
        } else {
            thread::scope(|scope| {
                // The scope joins the workers also when this thread panics, and they may be waiting
                // for what it would have done.
                let _ends_the_job = CancelOnPanic(self);
                let mut started = 0;
                for _ in 0..threads {
                    self.running.fetch_add(1, Ordering::AcqRel);
                    match thread::Builder::new()
                        .name("fastckpt".into())
                        .spawn_scoped(scope, worker)
                    {
                        Ok(_joined_by_the_scope) => started += 1,
                        Err(error) => {
                            // Out of threads (a container's limit): fewer will do.
                            self.running.fetch_sub(1, Ordering::AcqRel);
                            if started == 0 && attendant.is_some() {
                                self.fail(Error::Threads { source: error });
                            }
                            break;
                        }
                    }
                }
                if started > 0 {
                    self.look_after(observer, attendant);
                } else if !self.is_cancelled() {
                    self.work_here(items, observer, &scratch, &work);
                }
            });
        }
        if let Some(error) = lock(&self.failure).take() {
            return Err(error);
        }
        self.poll(observer)
    }

    fn poll(&self, observer: &mut dyn Observer) -> Result<()> {
        let done_nbytes = self.done_nbytes.load(Ordering::Relaxed);
        observer
            .poll(done_nbytes, self.total_nbytes)
            .map_err(|Stop| Error::Interrupted)
    }

    fn work_here<S>(
        &self,
        items: usize,
        observer: &mut dyn Observer,
        scratch: &(impl Fn() -> Result<S> + Sync),
        work: &(impl Fn(&mut S, usize) -> Result<()> + Sync),
    ) {
        self.running.fetch_add(1, Ordering::AcqRel);
        let mut last_poll = Instant::now();
        self.work_through(items, scratch, work, &mut || {
            if last_poll.elapsed() < POLL_INTERVAL {
                return Ok(());
            }
            last_poll = Instant::now();
            self.poll(observer)
        });
    }

    fn work_through<S>(
        &self,
        items: usize,
        scratch: &(impl Fn() -> Result<S> + Sync),
        work: &(impl Fn(&mut S, usize) -> Result<()> + Sync),
        between: &mut dyn FnMut() -> Result<()>,
    ) {
        let _leaving = Leaving(self);
        let _ends_the_job = CancelOnPanic(self);
        let mut run = || -> Result<()> {
            let mut scratch = scratch()?;
            loop {
                let item = self.next_item.fetch_add(1, Ordering::Relaxed);
                if item >= items || self.is_cancelled() {
                    return Ok(());
                }
                work(&mut scratch, item)?;
                between()?;
            }
        };
        if let Err(error) = run() {
            self.fail(error);
        }
    }

    /// Attends to the workers until the last has ended, and to what they left to be done.
    fn look_after(&self, observer: &mut dyn Observer, mut attendant: Option<&mut dyn Attendant>) {
        let mut last_poll = Instant::now();
        loop {
            // Asked for first: what a worker did before it ended is then seen below.
            let running = self.running.load(Ordering::Acquire) > 0;
            if self.is_cancelled() {
                if !running {
                    return;
                }
                self.wait_for_change(false);
                continue;
            }
            let attended = attendant
                .as_mut()
                .map_or(Ok(false), |attendant| attendant.attend());
            match attended {
                Ok(true) => {}
                Ok(false) if running => self.wait_for_change(attendant.is_some()),
                Ok(false) => return,
                Err(error) => self.fail(error),
            }
            if last_poll.elapsed() >= POLL_INTERVAL {
                last_poll = Instant::now();
                if let Err(error) = self.poll(observer) {
                    self.fail(error);
                }
            }
        }
    }

    /// Waits for a worker to end, for a notification or for the next poll. With an attendant the
    /// wait is short: its work may have come up between its last look and now.
    fn wait_for_change(&self, attended: bool) {
        let guard = lock(&self.changed.0);
        if self.running.load(Ordering::Acquire) == 0 {
            return;
        }
        let timeout = if attended {
            Duration::from_millis(1)
        } else {
            POLL_INTERVAL
        };
        drop(
            self.changed
                .1
                .wait_timeout(guard, timeout)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

/// Cancels the job when its thread panics: then the others must not wait for it for ever.
struct CancelOnPanic<'a>(&'a Job);

impl Drop for CancelOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.cancelled.store(true, Ordering::Release);
            self.0.notify();
        }
    }
}

/// Counts a worker out, however it ends.
struct Leaving<'a>(&'a Job);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
        self.0.notify();
    }
}

/// Runs a call that cannot be interrupted, such as an fsync, in a thread that is left behind if
/// the observer asks to stop.
///
/// # Errors
/// What the call returns, or [`Error::Interrupted`].
pub fn run_detached<T: Send + 'static>(
    observer: &mut dyn Observer,
    total_nbytes: u64,
    call: impl FnOnce() -> io::Result<T> + Send + Clone + 'static,
) -> Result<io::Result<T>> {
    let (sender, receiver) = mpsc::channel();
    let in_thread = call.clone();
    let spawned = thread::Builder::new()
        .name("fastckpt-sync".into())
        .spawn(move || {
            // The receiver is gone if the observer asked to stop: then nobody wants the result.
            let _nobody_listens = sender.send(in_thread());
        });
    if spawned.is_err() {
        return Ok(call());
    }
    loop {
        match receiver.recv_timeout(POLL_INTERVAL) {
            Ok(result) => return Ok(result),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                observer
                    .poll(total_nbytes, total_nbytes)
                    .map_err(|Stop| Error::Interrupted)?;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Ok(Err(io::Error::other(
                    "the syncing thread ended without a result",
                )));
            }
        }
    }
}

/// Locks; a thread that panicked while it held the lock left nothing half-done under it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
