//! The weighted average of tensors of several archives, a piece of one tensor at a time.
//!
//! Floating and complex elements are summed in float64, in the order of the archives, divided by the
//! sum of the weights and rounded once. Of all others, the last archive has the say. What is read of a
//! record is compared with its CRC; [`Average::run`] fails at the end where one did not agree.

use std::mem;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use fastckpt_format::pickle::Dtype;

use crate::elements::{Elements, Tensors, buffer_for};
use crate::error::Result;
use crate::job::{Job, Observer, default_threads, lock};
use crate::mapping::Mapping;
use crate::numeric::{self, Arithmetic, mean};
use crate::read::{Archive, Inspection, ReadOptions, Selection, Span};
use crate::source::{CHUNK_NBYTES, allocate, in_memory};
use crate::views::View;
use crate::write::StorageMaker;

/// All buffers of a worker together, whatever the number of archives (but see below).
const WINDOWS_NBYTES: usize = 16 << 20;
/// No read is smaller than this because of the number of archives.
const MIN_WINDOW_NBYTES: usize = 64 << 10;

/// Tensors of at least this size get memory of their own; smaller ones share some.
const OWN_MEMORY_NBYTES: u64 = 4 << 20;
const MAX_ARENA_NBYTES: u64 = 64 << 20;
/// Any element may begin at a multiple of this.
const ELEMENT_ALIGNMENT: u64 = 64;

/// One tensor in each archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Averaged {
    /// The dtype of all of them.
    pub dtype: Dtype,
    /// The key of its storage and where it lies there, for each archive. All have as many elements.
    pub places: Vec<(String, View)>,
}

/// Tensors of several archives that are to be averaged.
pub struct Average<'a> {
    inputs: Vec<Input<'a>>,
    total_weight: f64,
    tensors: Vec<Tensor<'a>>,
}

struct Input<'a> {
    archive: &'a Archive,
    weight: f64,
    /// The records that are checked while they are read.
    inspected: Selection,
    /// The keys of those that are read in parts, or more than once: they are checked before, once.
    checked_before: Vec<String>,
}

struct Tensor<'a> {
    dtype: Dtype,
    nbytes: u64,
    /// With the numbers of the archives that have a part in it.
    elements: Vec<(usize, Elements<'a>)>,
}

impl<'a> Average<'a> {
    /// Plans an average. `weights` has one finite number for each archive, and their sum is finite and
    /// not 0; an archive of weight 0 has no part in it, but for the last, which has the say of integers.
    ///
    /// # Errors
    /// Where a record is missing or shorter than what is asked of it.
    ///
    /// # Panics
    /// Where the numbers of archives, weights and places differ, or tensors are of different sizes.
    pub fn new(archives: &[&'a Archive], weights: &[f64], averaged: &[Averaged]) -> Result<Self> {
        assert_eq!(archives.len(), weights.len(), "a weight for each archive");
        let mut inputs: Vec<_> = archives.iter().copied().map(Tensors::new).collect();
        let plan = |averaged| plan_tensor(&mut inputs, weights, averaged);
        let mut tensors = averaged.iter().map(plan).collect::<Result<Vec<_>>>()?;
        let inputs = archives.iter().zip(weights).enumerate();
        let inputs = inputs
            .map(|(number, (archive, weight))| Input::new(number, archive, *weight, &mut tensors))
            .collect();
        Ok(Self {
            inputs,
            total_weight: weights.iter().sum(),
            tensors,
        })
    }

    /// Sizes of the results in bytes.
    #[must_use]
    pub fn nbytes(&self) -> Vec<u64> {
        self.tensors.iter().map(|tensor| tensor.nbytes).collect()
    }

    /// Hands `with` the maker of the results, and checks that all that it read was what had been
    /// written. (What it returns is to be thrown away otherwise.)
    ///
    /// # Errors
    /// Those of `with`, and [`Error::Checksum`](crate::Error::Checksum) where a record is damaged.
    pub fn run<T>(
        &self,
        threads: Option<NonZeroUsize>,
        observer: &mut dyn Observer,
        with: impl FnOnce(&dyn StorageMaker, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let options = ReadOptions {
            verify: true,
            threads,
        };
        for input in &self.inputs {
            let keys = &input.checked_before;
            input.archive.check(keys, &options, observer)?;
        }
        let inspections = self.inputs.iter();
        let inspections = inspections
            .map(|input| Inspection::new(input.archive.index(), &input.inspected, true))
            .collect();
        let maker = Maker {
            average: self,
            inspections,
            scratch: Mutex::default(),
        };
        let made = with(&maker, observer)?;
        for (input, inspection) in self.inputs.iter().zip(maker.inspections) {
            input.archive.conclude(inspection.finish())?;
        }
        Ok(made)
    }

    /// Makes all results in memory.
    ///
    /// # Errors
    /// As [`Average::run`].
    pub fn to_memory(
        &self,
        threads: Option<NonZeroUsize>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Span>> {
        let nbytes = self.nbytes();
        let places = arenas(&nbytes);
        let sizes = places.iter().fold(Vec::new(), |mut sizes, place| {
            if place.arena == sizes.len() {
                sizes.push(0);
            }
            sizes[place.arena] = place.offset + place.nbytes;
            sizes
        });
        let mut arenas = sizes
            .into_iter()
            .map(allocate)
            .collect::<Result<Vec<_>>>()?;
        let pieces = cut(&places, &mut arenas);
        let job = Job::new(nbytes.iter().sum());
        self.run(threads, observer, |maker, observer| {
            job.run(
                threads.map_or_else(default_threads, NonZeroUsize::get),
                pieces.len(),
                observer,
                None,
                || Ok(()),
                |(), item| {
                    let piece = &pieces[item];
                    let mut memory = lock(&piece.memory);
                    maker.make(piece.tensor, piece.offset, &mut memory)?;
                    job.advance(memory.len() as u64);
                    Ok(())
                },
            )
        })?;
        drop(pieces);
        let arenas: Vec<_> = arenas.into_iter().map(Arc::new).collect();
        let span = |place: &Placed| Span {
            memory: Arc::clone(&arenas[place.arena]),
            offset: in_memory(place.offset),
            nbytes: in_memory(place.nbytes),
        };
        Ok(places.iter().map(span).collect())
    }
}

fn plan_tensor<'a>(
    inputs: &mut [Tensors<'a>],
    weights: &[f64],
    averaged: &Averaged,
) -> Result<Tensor<'a>> {
    assert_eq!(inputs.len(), averaged.places.len(), "a place in each");
    let dtype = averaged.dtype;
    let is_averaged = numeric::arithmetic(dtype) == Arithmetic::Floating;
    let mut elements = Vec::new();
    let last = inputs.len().saturating_sub(1);
    for (number, (input, (key, view))) in inputs.iter_mut().zip(&averaged.places).enumerate() {
        let has_part = if is_averaged {
            weights[number] != 0.0
        } else {
            number == last
        };
        if has_part {
            elements.push((number, input.elements(key, view, dtype)?));
        }
    }
    let nbytes = elements.first().map_or(0, |(_, first)| first.nbytes);
    assert!(
        elements.iter().all(|(_, of)| of.nbytes == nbytes),
        "tensors of one size"
    );
    Ok(Tensor {
        dtype,
        nbytes,
        elements,
    })
}

impl<'a> Input<'a> {
    /// Decides how each of the archive's records is checked.
    fn new(number: usize, archive: &'a Archive, weight: f64, tensors: &mut [Tensor<'a>]) -> Self {
        let entries = archive.index().entries();
        let mut uses = vec![0_u32; entries.len()];
        for_each_of(number, tensors, |_, record| uses[record] += 1);
        let (mut inspected, mut checked_before) = (Vec::new(), Vec::new());
        for_each_of(number, tensors, |elements, record| {
            if elements.is_strided() {
                return;
            }
            elements.is_inspected = elements.is_whole && uses[record] == 1;
            if elements.is_inspected {
                inspected.push(record);
            } else if let Some(key) = entries[record].name.strip_prefix("data/") {
                // A record in many parts is named once.
                if mem::replace(&mut uses[record], 0) > 0 {
                    checked_before.push(key.to_owned());
                }
            }
        });
        Self {
            archive,
            weight,
            inspected: archive.select(inspected),
            checked_before,
        }
    }
}

/// Calls `use_elements` with the elements of one archive, and their record.
fn for_each_of<'a>(
    number: usize,
    tensors: &mut [Tensor<'a>],
    mut use_elements: impl FnMut(&mut Elements<'a>, usize),
) {
    for tensor in tensors {
        for (of, elements) in &mut tensor.elements {
            if let Some(record) = elements.record.filter(|_| *of == number) {
                use_elements(elements, record);
            }
        }
    }
}

struct Maker<'a> {
    average: &'a Average<'a>,
    inspections: Vec<Inspection<'a>>,
    /// What workers compute with, between two pieces.
    scratch: Mutex<Vec<Scratch>>,
}

struct Scratch {
    /// One for each archive that has a part in a tensor.
    windows: Vec<Mapping>,
    window_nbytes: usize,
    sums: Vec<f64>,
    values: Vec<f64>,
}

impl StorageMaker for Maker<'_> {
    fn make(&self, tensor: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let tensor = &self.average.tensors[tensor];
        let free = lock(&self.scratch).pop();
        let mut scratch = match free {
            Some(scratch) => scratch,
            None => Scratch::new(self.average.inputs.len())?,
        };
        let mut at = offset;
        for window in out.chunks_mut(scratch.window_nbytes) {
            self.make_window(tensor, at, window, &mut scratch)?;
            at += window.len() as u64;
        }
        lock(&self.scratch).push(scratch);
        Ok(())
    }
}

impl Maker<'_> {
    fn make_window(
        &self,
        tensor: &Tensor<'_>,
        offset: u64,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut inputs = Vec::with_capacity(tensor.elements.len());
        for ((number, elements), window) in tensor.elements.iter().zip(&mut scratch.windows) {
            let inspection = &self.inspections[*number];
            let start = elements.load(offset, out.len(), window, Some(inspection))?;
            inputs.push((self.average.inputs[*number].weight, start));
        }
        let weighted: Vec<_> = inputs
            .iter()
            .zip(&scratch.windows)
            .map(|((weight, start), window)| {
                (*weight, &window.as_slice()[*start..*start + out.len()])
            })
            .collect();
        if numeric::arithmetic(tensor.dtype) == Arithmetic::Floating {
            let total_weight = self.average.total_weight;
            let tile = (&mut *scratch.sums, &mut *scratch.values);
            mean::average(tensor.dtype, &weighted, total_weight, tile, out);
        } else if let Some((_, last)) = weighted.last() {
            out.copy_from_slice(last);
        }
        Ok(())
    }
}

impl Scratch {
    fn new(inputs: usize) -> Result<Self> {
        let share = WINDOWS_NBYTES / inputs.max(1);
        let window_nbytes = share.clamp(MIN_WINDOW_NBYTES, CHUNK_NBYTES);
        // Whole elements, and pages that are not split between two windows.
        let window_nbytes = window_nbytes - window_nbytes % MIN_WINDOW_NBYTES;
        let windows = (0..inputs).map(|_| buffer_for(window_nbytes));
        Ok(Self {
            windows: windows.collect::<Result<_>>()?,
            window_nbytes,
            sums: vec![0.0; mean::TILE],
            values: vec![0.0; mean::TILE],
        })
    }
}

/// Where a result lies.
#[derive(Debug, PartialEq, Eq)]
struct Placed {
    arena: usize,
    offset: u64,
    nbytes: u64,
}

/// Places results one after the other, so that there are not many pieces of memory.
fn arenas(nbytes: &[u64]) -> Vec<Placed> {
    let mut places: Vec<Placed> = Vec::with_capacity(nbytes.len());
    for &nbytes in nbytes {
        let next = match places.last() {
            None => (0, 0),
            Some(last) => {
                let end = (last.offset + last.nbytes).next_multiple_of(ELEMENT_ALIGNMENT);
                let is_alone = nbytes >= OWN_MEMORY_NBYTES || last.nbytes >= OWN_MEMORY_NBYTES;
                if is_alone || end + nbytes > MAX_ARENA_NBYTES {
                    (last.arena + 1, 0)
                } else {
                    (last.arena, end)
                }
            }
        };
        places.push(Placed {
            arena: next.0,
            offset: next.1,
            nbytes,
        });
    }
    places
}

/// A part of a result that one worker makes. Nobody else's: the lock is never waited for.
struct Piece<'a> {
    tensor: usize,
    offset: u64,
    memory: Mutex<&'a mut [u8]>,
}

fn cut<'a>(places: &[Placed], arenas: &'a mut [Mapping]) -> Vec<Piece<'a>> {
    let mut rests: Vec<(u64, &'a mut [u8])> = arenas
        .iter_mut()
        .map(|arena| (0, arena.as_mut_slice()))
        .collect();
    let mut pieces = Vec::new();
    for (tensor, place) in places.iter().enumerate() {
        let (start, memory) = mem::take(&mut rests[place.arena]);
        let (_, memory) = memory.split_at_mut(in_memory(place.offset - start));
        let (own, rest) = memory.split_at_mut(in_memory(place.nbytes));
        rests[place.arena] = (place.offset + place.nbytes, rest);
        for (number, memory) in own.chunks_mut(CHUNK_NBYTES).enumerate() {
            pieces.push(Piece {
                tensor,
                offset: (number * CHUNK_NBYTES) as u64,
                memory: Mutex::new(memory),
            });
        }
    }
    pieces
}
