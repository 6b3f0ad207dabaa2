//! Python objects that move bytes to and from a device, as the core sees them.

use fastckpt_core::job::Stop;
use fastckpt_core::memory::Memory;
use fastckpt_core::read::LoadStager;
use fastckpt_core::write::SaveStager;
use pyo3::intern;
use pyo3::prelude::*;

use crate::buffers::HeldStorage;
use crate::detach::Raised;

/// A Python stager and its host buffers.
pub(crate) struct PyStager {
    object: Py<PyAny>,
    _buffers: Vec<HeldStorage>,
    slots: Vec<Memory>,
    raised: Raised,
}

impl PyStager {
    pub(crate) fn new(object: &Bound<'_, PyAny>, raised: &Raised) -> PyResult<Self> {
        let buffers = object
            .getattr(intern!(object.py(), "buffers"))?
            .try_iter()?
            .map(|buffer| HeldStorage::new(&buffer?))
            .collect::<PyResult<Vec<_>>>()?;
        let slots = buffers.iter().map(HeldStorage::memory).collect();
        Ok(Self {
            object: object.clone().unbind(),
            _buffers: buffers,
            slots,
            raised: raised.clone(),
        })
    }
}

impl SaveStager for PyStager {
    fn slots(&self) -> &[Memory] {
        &self.slots
    }

    fn start(
        &mut self,
        slot: usize,
        storage: usize,
        offset: u64,
        nbytes: usize,
    ) -> Result<(), Stop> {
        self.raised.catch(|py| {
            self.object
                .call_method1(py, intern!(py, "start"), (slot, storage, offset, nbytes))?;
            Ok(())
        })
    }

    fn finish(&mut self, slot: usize) -> Result<(), Stop> {
        self.raised.catch(|py| {
            self.object
                .call_method1(py, intern!(py, "finish"), (slot,))?;
            Ok(())
        })
    }
}

impl LoadStager for PyStager {
    fn slots(&self) -> &[Memory] {
        &self.slots
    }

    fn place(
        &mut self,
        slot: usize,
        slot_offset: usize,
        index: usize,
        offset: u64,
        nbytes: usize,
    ) -> Result<(), Stop> {
        self.raised.catch(|py| {
            self.object.call_method1(
                py,
                intern!(py, "place"),
                (slot, slot_offset, index, offset, nbytes),
            )?;
            Ok(())
        })
    }

    fn release(&mut self, slot: usize) -> Result<(), Stop> {
        self.raised.catch(|py| {
            self.object
                .call_method1(py, intern!(py, "release"), (slot,))?;
            Ok(())
        })
    }
}
