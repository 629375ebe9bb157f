//! qcow2, versions 2 and 3: packed clusters, subclusters, data files, backing files, internal snapshots. [`writer`] writes
//! version 3.

pub mod header;
mod map;
pub mod writer;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mapped::{Map as _, Mapped, Place};
use crate::pages::Pages;
use crate::source::{Extent, Snapshot, Source, push};
use header::{Header, L1};
use map::State;

/// How many runs one call of `changes` compares.
const RUNS_MAX: usize = 1 << 13;

/// A qcow2 disk, in its present state or in that of a snapshot.
pub struct Qcow2 {
    mapped: Mapped<State>,
    data: Arc<dyn Source>,
    snapshots: Vec<Snapshot>,
    /// Their first tables, in the same order.
    tables: Vec<L1>,
}

impl Qcow2 {
    /// The disk in a container whose header was read. `data` is its data file, `below` its backing file.
    ///
    /// # Errors
    /// `Damaged`, and those of reading.
    pub fn open(
        pages: Pages,
        header: Header,
        data: Option<Arc<dyn Source>>,
        below: Option<Arc<dyn Source>>,
    ) -> Result<Self> {
        let (snapshots, tables) = header.read_snapshots(&pages)?.into_iter().unzip();
        let data = data.unwrap_or_else(|| Arc::clone(pages.container()));
        let (l1, size_bytes) = (header.l1, header.size_bytes);
        let (pages, header) = (Arc::new(pages), Arc::new(header));
        let state = State { pages, header, l1, size_bytes };
        let mapped = Mapped::new(state, Arc::clone(&data), below);
        Ok(Self { mapped, data, snapshots, tables })
    }

    fn state(&self, index: usize) -> Result<State> {
        let none = || Error::invalid(format!("there is no snapshot {index}"));
        let (snapshot, l1) =
            self.snapshots.get(index).zip(self.tables.get(index)).ok_or_else(none)?;
        let now = &self.mapped.map;
        let (pages, header) = (Arc::clone(&now.pages), Arc::clone(&now.header));
        Ok(State { pages, header, l1: *l1, size_bytes: snapshot.size_bytes })
    }
}

impl Source for Qcow2 {
    fn size_bytes(&self) -> u64 {
        self.mapped.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.mapped.read_at(offset, buf)
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.mapped.extents(offset, length)
    }

    fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    fn at_snapshot(&self, index: usize) -> Result<Arc<dyn Source>> {
        let below = self.mapped.below().cloned();
        let mapped = Mapped::new(self.state(index)?, Arc::clone(&self.data), below);
        let (snapshots, tables) = (self.snapshots.clone(), self.tables.clone());
        Ok(Arc::new(Self { mapped, data: Arc::clone(&self.data), snapshots, tables }))
    }

    /// States share a cluster until one of them writes it. So the same place means the same bytes.
    fn changes(&self, snapshot: usize, offset: u64, length: u64) -> Result<Vec<Extent>> {
        let (earlier, end) = (self.state(snapshot)?, offset + length);
        let (mut parts, mut at) = (Vec::new(), offset);
        for _ in 0..RUNS_MAX {
            if at >= end {
                break;
            }
            let (now, then) = (self.mapped.run(at, end)?, earlier.run(at)?);
            let length = now.length.min(then.length);
            let same = now.place == then.place
                // A state that is larger than the disk below was before shows zeros there.
                || matches!((now.place, then.place), (Place::Below | Place::Zero, Place::Below | Place::Zero))
                    && self.mapped.below().is_none();
            push(&mut parts, at, length, !same);
            at += length;
        }
        Ok(parts)
    }
}
