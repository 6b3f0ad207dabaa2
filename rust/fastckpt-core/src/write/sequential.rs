//! Writing an archive in sequence, to something that has no positions: a pipe, a socket, an
//! object of the caller's. Workers compose ahead, the calling thread hands the chunks on in order.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::compose::Image;
use super::plan::ArchivePlan;
use super::staging::{SaveStager, Stage, Staging};
use super::{WriteOptions, buffer};
use crate::error::{Error, Result};
use crate::job::{Attendant, Job, Observer, Stop, lock};
use crate::mapping::Mapping;

/// Composed chunks that may wait to be handed on, to bound the memory they take.
const MAX_AHEAD: usize = 8;

/// Takes the bytes of an archive in order. Called in the calling thread only.
pub trait Sink {
    /// Takes the next bytes, all of them.
    fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), Stop>;
}

/// Writes the archive to `sink`.
pub fn write_to_sink(
    sink: &mut dyn Sink,
    plan: &ArchivePlan,
    options: &WriteOptions,
    observer: &mut dyn Observer,
    stager: Option<&mut dyn SaveStager>,
) -> Result<()> {
    let job = Job::new(plan.nbytes());
    let chunk_nbytes = options.chunk_nbytes();
    let staging = stager.as_deref().map(|stager| Staging::new(plan, stager));
    let image = Image::new(plan, chunk_nbytes, staging.as_ref(), None);
    let queue = Mutex::new(Queue {
        next: 0,
        composed: BTreeMap::new(),
    });
    let stage = staging
        .as_ref()
        .zip(stager)
        .map(|(staging, stager)| staging.attendant(stager, &job));
    let mut writer = Writer {
        queue: &queue,
        image: &image,
        sink,
        job: &job,
        stage,
    };
    job.run(
        options.threads(),
        image.chunks(),
        observer,
        Some(&mut writer),
        || Ok(()),
        |(), chunk| {
            job.wait_until(|| chunk < lock(&queue).next + MAX_AHEAD)?;
            let range = image.range(chunk);
            let filled = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let mut bytes = buffer(filled)?;
            image.compose(&job, chunk, bytes.as_mut_slice())?;
            lock(&queue).composed.insert(chunk, bytes);
            job.notify();
            Ok(())
        },
    )
}

struct Queue {
    next: usize,
    composed: BTreeMap<usize, Mapping>,
}

struct Writer<'a> {
    queue: &'a Mutex<Queue>,
    image: &'a Image<'a>,
    sink: &'a mut dyn Sink,
    job: &'a Job,
    stage: Option<Stage<'a>>,
}

impl Attendant for Writer<'_> {
    fn attend(&mut self) -> Result<bool> {
        let staged = self.stage.as_mut().map_or(Ok(false), Attendant::attend)?;
        let (chunk, bytes) = {
            let mut queue = lock(self.queue);
            let next = queue.next;
            match queue.composed.remove(&next) {
                Some(bytes) => (next, bytes),
                None => return Ok(staged),
            }
        };
        self.sink
            .write(bytes.as_slice())
            .map_err(|Stop| Error::Interrupted)?;
        let range = self.image.range(chunk);
        self.job.advance(range.end - range.start);
        lock(self.queue).next = chunk + 1;
        self.job.notify();
        Ok(true)
    }
}
