//! Records that go to a device, by way of its slots.

use fastckpt_core::Error;
use fastckpt_core::job::{Observer, Stop, Unobserved};
use fastckpt_core::memory::Memory;
use fastckpt_core::read::{LoadStager, ReadOptions};
use proptest::prelude::*;

use crate::archives::{archive_of, keys, payloads};
use crate::{BLOCK, MIB, behaviours, in_memory, open, options, sizes};

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn staged_records_are_those_that_were_read(
        sizes in sizes(),
        behaviour in behaviours(),
        threads in 1_usize..6,
        slots in 1_usize..5,
        slot_nbytes in prop_oneof![Just(BLOCK), Just(9 * BLOCK), Just(MIB), Just(3 * MIB)],
        misaligned in prop_oneof![Just(0_usize), Just(8)],
    ) {
        let storages = payloads(&sizes);
        let archive = open(archive_of(&storages, 64), behaviour);
        let mut device = Device::new(&sizes, slots, slot_nbytes, misaligned);
        archive
            .read_staged(&keys(sizes.len()), &options(true, threads), &mut Unobserved, &mut device)
            .unwrap();
        prop_assert!(device.destinations == storages);
        prop_assert!(device.pending.is_empty(), "copies under way: {:?}", device.pending);
    }
}

#[test]
fn an_observer_can_stop_every_way_of_reading() {
    let storages = payloads(&[20 * MIB, 20 * MIB]);
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    for threads in [1, 4] {
        let options = options(true, threads);
        let mut device = Device::new(&[20 * MIB, 20 * MIB], 2, MIB, 0);
        for outcome in [
            archive.read(&keys(2), &options, &mut Stopping).map(drop),
            archive.map(&keys(2), &options, &mut Stopping).map(drop),
            archive.check(&keys(2), &options, &mut Stopping),
            archive.read_staged(&keys(2), &options, &mut Stopping, &mut device),
        ] {
            assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
        }
        assert!(device.pending.is_empty());
    }
}

#[test]
fn a_device_that_fails_ends_the_job_with_its_buffers_free() {
    let sizes = [7 * MIB, 100, 3 * MIB];
    let storages = payloads(&sizes);
    let archive = in_memory(archive_of(&storages, 64)).unwrap();
    for calls in 0..20 {
        let mut device = Device::new(&sizes, 2, MIB, 0);
        device.calls_until_failure = Some(calls);
        let outcome =
            archive.read_staged(&keys(3), &options(true, 3), &mut Unobserved, &mut device);
        assert!(
            matches!(outcome, Err(Error::Interrupted)),
            "call {calls}: {outcome:?}"
        );
        assert!(
            device.pending.is_empty(),
            "call {calls}: {:?}",
            device.pending
        );
    }
}

#[test]
fn a_damaged_record_is_found_while_it_is_staged() {
    let sizes = [7 * MIB, 100];
    let mut bytes = archive_of(&payloads(&sizes), 64);
    bytes[5 * MIB] ^= 1;
    let archive = in_memory(bytes).unwrap();
    let mut device = Device::new(&sizes, 2, MIB, 0);
    let outcome = archive.read_staged(
        &keys(2),
        &ReadOptions::default(),
        &mut Unobserved,
        &mut device,
    );
    let Err(Error::Checksum(mismatch)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        (mismatch.record.as_str(), mismatch.tensors),
        ("data/0", vec!["t0".to_owned()])
    );
    assert!(device.pending.is_empty());
}

/// A device that copies as late as it may: when the slot is released.
#[derive(Debug)]
pub(crate) struct Device {
    slots: Vec<Memory>,
    destinations: Vec<Vec<u8>>,
    /// Slot, offset in it, destination, offset there, size.
    pending: Vec<(usize, usize, usize, u64, usize)>,
    calls_until_failure: Option<usize>,
}

impl Device {
    pub(crate) fn new(
        sizes: &[usize],
        slots: usize,
        slot_nbytes: usize,
        misaligned: usize,
    ) -> Self {
        let slot = |_| {
            let memory = vec![0xee_u8; slot_nbytes + 2 * BLOCK].leak();
            let start = memory.as_ptr().addr().next_multiple_of(BLOCK) - memory.as_ptr().addr()
                + misaligned;
            // SAFETY: leaked, so valid from now on, and nobody else's.
            unsafe { Memory::new(memory[start..].as_mut_ptr(), slot_nbytes) }
        };
        Self {
            slots: (0..slots).map(slot).collect(),
            destinations: sizes.iter().map(|&nbytes| vec![0xdd; nbytes]).collect(),
            pending: Vec::new(),
            calls_until_failure: None,
        }
    }

    fn call(&mut self) -> Result<(), Stop> {
        match &mut self.calls_until_failure {
            Some(0) => Err(Stop),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl LoadStager for Device {
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
        self.call()?;
        self.pending
            .push((slot, slot_offset, index, offset, nbytes));
        Ok(())
    }

    fn release(&mut self, slot: usize) -> Result<(), Stop> {
        let (done, pending) = self.pending.drain(..).partition(|copy| copy.0 == slot);
        self.pending = pending;
        let done: Vec<(usize, usize, usize, u64, usize)> = done;
        for (slot, slot_offset, index, offset, nbytes) in done {
            let offset = usize::try_from(offset).unwrap();
            let into = &mut self.destinations[index][offset..offset + nbytes];
            let _crc = self.slots[slot].copy_checksummed(slot_offset, into);
        }
        self.call()
    }
}

struct Stopping;

impl Observer for Stopping {
    fn poll(&mut self, _done_nbytes: u64, _total_nbytes: u64) -> Result<(), Stop> {
        Err(Stop)
    }
}
