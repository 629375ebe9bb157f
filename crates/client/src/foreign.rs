//! An image made of a disk that another program has made.
//!
//! The disk is a [`Source`]. Its states become snapshots, the oldest first: each is written over the one before, and
//! only where the two may differ.

use marcot::BLOCK_BYTES;
use marcot_foreign::{Extent, Source, next_data};

use crate::incoming::Incoming;
use crate::sparse;

/// Why a disk is not imported.
#[derive(Debug)]
pub enum Trouble {
    /// The disk cannot be read.
    Disk(marcot_foreign::Error),
    /// The image cannot be written.
    Image(marcot::Error),
}

impl From<marcot_foreign::Error> for Trouble {
    fn from(error: marcot_foreign::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<marcot::Error> for Trouble {
    fn from(error: marcot::Error) -> Self {
        Self::Image(error)
    }
}

/// In which steps a disk is taken.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// How much is read and written at a time, in bytes.
    pub piece_bytes: u64,
    /// From which length on runs of zeros are not stored, in bytes.
    pub grain_bytes: usize,
}

/// A snapshot of the disk whose content the image has, by its index, and its size in bytes.
type Before = Option<(usize, u64)>;

/// Most parts of a disk that are left to it one by one.
const RANGES_MAX: usize = 1 << 16;

type Outcome<T = ()> = std::result::Result<T, Trouble>;

impl Incoming {
    /// Writes the bytes of `disk`, from where an earlier run has come to ([`Self::done_bytes`]). The image has its size.
    /// `progress` gets the bytes that are done.
    ///
    /// # Errors
    /// Those of reading and writing, and `Interrupted`. What is there stays for a further run, if that may come further.
    pub fn take_disk(
        &mut self,
        disk: &dyn Source,
        steps: Steps,
        progress: &mut dyn FnMut(u64),
    ) -> Outcome {
        let outcome = self.write_disk(disk, steps, self.done_bytes(), progress);
        self.noted(outcome)
    }

    /// As [`Self::take_disk`], for a disk with snapshots, from its first byte: takes its snapshots too. `name` gives the
    /// one with an index its name. `progress` gets the bytes that are done of all states together.
    ///
    /// # Errors
    /// As [`Self::take_disk`], and `Invalid` for a name that a snapshot cannot have.
    pub fn take_states(
        &mut self,
        disk: &dyn Source,
        steps: Steps,
        name: &dyn Fn(usize) -> String,
        progress: &mut dyn FnMut(u64),
    ) -> Outcome {
        let outcome = self.write_states(disk, steps, name, progress);
        self.noted(outcome)
    }

    /// Makes the image the target of a migration from `disk`, which `spec` describes and which is in the state `state`:
    /// takes the snapshots of the disk, as [`Self::take_states`] does, and leaves the rest where it is. The image has the
    /// size of the first state. `progress` gets the bytes that are done of the snapshots.
    ///
    /// # Errors
    /// As [`Self::take_states`]; `Unsupported` for a pool in a bucket.
    pub fn leave_to_source(
        &mut self,
        disk: &dyn Source,
        (spec, state): (&str, &str),
        steps: Steps,
        name: &dyn Fn(usize) -> String,
        progress: &mut dyn FnMut(u64),
    ) -> Outcome {
        let outcome = self.write_snapshots(disk, steps, name, progress).and_then(|before| {
            self.set_size(disk.size_bytes())?;
            let ranges = self.what_is_left(disk, before)?;
            Ok(self.set_source(spec, state, &ranges)?)
        });
        self.noted(outcome)
    }

    /// The parts of `disk` that may differ from its last snapshot, in whole blocks; all of it where there is none.
    fn what_is_left(&self, disk: &dyn Source, before: Before) -> Outcome<Vec<(u64, u64)>> {
        let size_bytes = disk.size_bytes();
        let all = || if size_bytes == 0 { Vec::new() } else { vec![(0, size_bytes)] };
        let Some((snapshot, before_bytes)) = before else { return Ok(all()) };
        let common = before_bytes.min(size_bytes);
        let (mut ranges, mut offset): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
        let mut add = |from: u64, to: u64| {
            let (from, to) = (from / BLOCK_BYTES * BLOCK_BYTES, to.next_multiple_of(BLOCK_BYTES));
            let to = to.min(size_bytes);
            match ranges.last_mut() {
                Some((last, length)) if *last + *length >= from => *length = to - *last,
                _ if from < to => ranges.push((from, to - from)),
                _ => {}
            }
            ranges.len() > RANGES_MAX
        };
        while offset < common {
            self.check_interrupted()?;
            let start = offset;
            for part in disk.changes(snapshot, offset, common - offset)? {
                offset = part.offset + part.length;
                // Too many parts: all of it is read from the disk then, which has the same.
                if part.data && add(part.offset, offset) {
                    return Ok(all());
                }
            }
            if offset <= start {
                return Err(marcot_foreign::Error::damaged("its changes go nowhere").into());
            }
        }
        add(common, size_bytes);
        Ok(ranges)
    }

    /// Notes why the image is not finished.
    fn noted(&mut self, outcome: Outcome) -> Outcome {
        match &outcome {
            Err(Trouble::Image(error)) => self.give_up(error),
            Err(Trouble::Disk(error)) if error.kind() != marcot_foreign::ErrorKind::Io => {
                self.give_up_source();
            }
            _ => {}
        }
        outcome
    }

    fn write_disk(
        &mut self,
        disk: &dyn Source,
        steps: Steps,
        from: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Outcome {
        let size_bytes = disk.size_bytes();
        let (mut buffer, mut offset) = (Vec::new(), from);
        while offset < size_bytes {
            // A map of holes may be long.
            self.check_interrupted()?;
            let data = next_data(disk, offset)?;
            // A whole piece is read, with the holes in it.
            offset = match data < size_bytes {
                true => (data / steps.piece_bytes * steps.piece_bytes).max(offset),
                false => size_bytes,
            };
            let end = (offset / steps.piece_bytes + 1) * steps.piece_bytes;
            let length = end.min(size_bytes) - offset;
            buffer.resize(usize::try_from(length).unwrap_or(0), 0);
            disk.read_at(offset, &mut buffer)?;
            self.write(offset, &buffer, steps.grain_bytes)?;
            offset += length;
            progress(offset);
        }
        Ok(())
    }

    fn write_states(
        &mut self,
        disk: &dyn Source,
        steps: Steps,
        name: &dyn Fn(usize) -> String,
        progress: &mut dyn FnMut(u64),
    ) -> Outcome {
        let before = self.write_snapshots(disk, steps, name, progress)?;
        let done = disk.snapshots().iter().map(|snapshot| snapshot.size_bytes).sum::<u64>();
        self.write_state(disk, before, steps, &mut |offset| progress(done + offset))
    }

    /// Writes the snapshots of a disk, the oldest first. Returns the last one, and its size.
    fn write_snapshots(
        &mut self,
        disk: &dyn Source,
        steps: Steps,
        name: &dyn Fn(usize) -> String,
        progress: &mut dyn FnMut(u64),
    ) -> Outcome<Before> {
        let (mut before, mut done) = (None, 0);
        for index in 0..disk.snapshots().len() {
            let state = disk.at_snapshot(index)?;
            let mut report = |offset| progress(done + offset);
            self.write_state(state.as_ref(), before, steps, &mut report)?;
            self.snapshot(&name(index), false)?;
            (before, done) = (Some((index, state.size_bytes())), done + state.size_bytes());
        }
        Ok(before)
    }

    /// Makes the image, which has the state of the snapshot `before`, as `state` is. `before` has its size too.
    fn write_state(
        &mut self,
        state: &dyn Source,
        before: Before,
        steps: Steps,
        progress: &mut dyn FnMut(u64),
    ) -> Outcome {
        self.set_size(state.size_bytes())?;
        let Some((before, before_bytes)) = before else {
            return self.write_disk(state, steps, 0, progress);
        };
        let common = before_bytes.min(state.size_bytes());
        let mut offset = 0;
        while offset < common {
            self.check_interrupted()?;
            let start = offset;
            for part in state.changes(before, offset, common - offset)? {
                offset = part.offset + part.length;
                if part.data {
                    self.write_part(state, part, steps)?;
                    progress(offset);
                }
            }
            if offset == start {
                return Err(marcot_foreign::Error::damaged("its changes go nowhere").into());
            }
        }
        self.write_disk(state, steps, common, progress)
    }

    /// Writes a part of a state over another state.
    fn write_part(&mut self, state: &dyn Source, part: Extent, steps: Steps) -> Outcome {
        let end = part.offset + part.length;
        let (mut offset, mut buffer) = (part.offset, Vec::new());
        while offset < end {
            for extent in state.extents(offset, end - offset)? {
                let extent_end = extent.offset + extent.length;
                if !extent.data {
                    self.zero(extent.offset, extent.length)?;
                    offset = extent_end;
                }
                while offset < extent_end {
                    let length = steps.piece_bytes.min(extent_end - offset);
                    buffer.resize(usize::try_from(length).unwrap_or(0), 0);
                    state.read_at(offset, &mut buffer)?;
                    self.write_over(offset, &buffer, steps.grain_bytes)?;
                    offset += length;
                }
            }
        }
        Ok(())
    }

    /// Writes what is not the same already; zeros become holes.
    fn write_over(&mut self, offset: u64, data: &[u8], grain_bytes: usize) -> marcot::Result<()> {
        let mut at = 0;
        for run in sparse::data_runs(data, grain_bytes) {
            if at < run.start {
                self.zero(offset + at as u64, (run.start - at) as u64)?;
            }
            self.write_changed(offset + run.start as u64, &data[run.clone()], grain_bytes)?;
            at = run.end;
        }
        match at < data.len() {
            true => self.zero(offset + at as u64, (data.len() - at) as u64),
            false => Ok(()),
        }
    }
}
