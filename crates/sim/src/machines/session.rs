//! An image in use on one machine: every call goes to the engine and to the oracle.

use std::sync::Arc;

use marcot::{
    BlockDevice, CheckOptions, Completion, ErrorKind, Housekeeping, Image, ImageId, Pool, Read,
    Store, Write,
};

use super::Machines;
use super::lineage::{Lineage, ReignId};
use crate::model::{self, Bytes};
use crate::rules::{Rule, Violation, violation};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Bytes of a read in flight. Reads begin and end within blocks.
const READ_BYTES: usize = 5 * 4096 + 512;
/// Limit on the looks for what is to end. A job of a worker takes a few of them.
const LOOKS_MAX: u32 = 10_000;
/// Tells the data that is overwritten at once from other data.
const DRAFT: u64 = 1 << 62;

/// What an owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Writes some blocks.
    Write {
        /// The first of them.
        block: u64,
        /// How many.
        blocks: u64,
        /// Tells contents apart.
        salt: u64,
    },
    /// Flushes.
    Flush,
    /// Takes a checkpoint.
    Checkpoint,
    /// Takes a snapshot with this number in its name.
    Snapshot(u64),
    /// Removes a snapshot.
    RemoveSnapshot(u64),
    /// Protects a snapshot.
    Protect(u64),
    /// Takes the protection of a snapshot back.
    Unprotect(u64),
    /// Makes the image independent of its parent.
    Flatten,
    /// Compacts, and gives space back.
    Reclaim,
    /// Does background work.
    Background,
    /// Reads everything.
    Read,
    /// Gives memory back, so that pages have to be read again.
    Rest,
}

/// Why a session cannot go on.
pub enum Ended {
    /// An error of the engine.
    Error(marcot::Error),
    /// A rule is violated.
    Violation(Violation),
}

impl From<marcot::Error> for Ended {
    fn from(error: marcot::Error) -> Self {
        Self::Error(error)
    }
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl Ended {
    /// As a violation, for those who may not meet an error.
    #[must_use]
    pub fn must_not_be(self, what: &str) -> Violation {
        match self {
            Self::Violation(violation) => violation,
            Self::Error(error) => Violation {
                rule: Rule::Model,
                message: format!("{what}: {} ({:?})", error.sentence(), error.kind()),
            },
        }
    }
}

/// See the module.
pub struct Session {
    image: Image,
    lineage: Lineage,
    reign: ReignId,
    /// A flush alone makes promises: it is durable when the service has stored it.
    ships_flushes: bool,
    /// A write has failed, so nobody knows what this owner reads.
    blurred: bool,
}

/// Reads the whole content of an image.
///
/// # Errors
/// Those of the engine.
pub fn read_all(image: &mut Image) -> marcot::Result<Bytes> {
    let mut bytes = vec![0xAA; image.size_bytes() as usize];
    image.read_at(0, &mut bytes)?;
    Ok(Arc::new(bytes))
}

impl Session {
    /// Opens an image on a machine, whoever else has it open, and compares what it finds.
    ///
    /// # Errors
    /// Those of the engine, and violations.
    pub fn take_over(
        machines: &Machines,
        machine: usize,
        id: ImageId,
        lineage: &Lineage,
    ) -> Result<Self, Ended> {
        let pool = machines.pool(machine)?;
        Self::open(machines, machine, lineage, id, || pool.take_over(id))
    }

    /// As [`Self::take_over`], with the engine's `open` of the image.
    ///
    /// # Errors
    /// Those of the engine, and violations.
    pub fn open(
        machines: &Machines,
        machine: usize,
        lineage: &Lineage,
        id: ImageId,
        open: impl FnOnce() -> marcot::Result<Image>,
    ) -> Result<Self, Ended> {
        let host = machines.host(machine);
        lineage.claim(host);
        let mut image = open().inspect_err(|error| {
            if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Owned) {
                lineage.claim_refused(host);
            }
        })?;
        let content = read_all(&mut image)?;
        let is_named = machines.names(image.pool().name(), id, host);
        let reign = lineage.succeed(host, is_named, content)?;
        Ok(Self::of(machines, image, lineage, reign))
    }

    /// The session of an image that was just opened.
    #[must_use]
    pub fn of(machines: &Machines, image: Image, lineage: &Lineage, reign: ReignId) -> Self {
        let (lineage, ships_flushes) = (lineage.clone(), machines.ships_flushes);
        Self { image, lineage, reign, ships_flushes, blurred: false }
    }

    /// Performs an act.
    ///
    /// # Errors
    /// Those of the engine, and violations.
    pub fn act(&mut self, act: Act) -> Result<(), Ended> {
        let last = self.lineage.last(self.reign);
        match act {
            Act::Write { block, blocks, salt } => self.write(block, blocks, salt)?,
            Act::Flush => {
                self.image.flush()?;
                match self.ships_flushes {
                    true => self.lineage.promise(self.reign, last, "a flush")?,
                    false => self.lineage.promise_here(self.reign, last),
                }
            }
            Act::Checkpoint => {
                self.image.take_checkpoint()?;
                self.lineage.promise(self.reign, last, "a checkpoint")?;
            }
            Act::Snapshot(number) => {
                let name = format!("s{number}");
                self.lineage.begin_snapshot(self.reign, &name);
                self.image.snapshot(&name)?;
                self.lineage.snapshot_taken(&name);
                self.lineage.promise(self.reign, last, "a snapshot")?;
            }
            Act::RemoveSnapshot(number) => {
                let name = format!("s{number}");
                self.lineage.begin_removal(&name);
                self.image.remove_snapshot(&name, true)?;
                self.lineage.snapshot_removed(&name);
            }
            Act::Protect(number) => self.image.protect(&format!("s{number}"))?,
            Act::Unprotect(number) => self.image.unprotect(&format!("s{number}"))?,
            Act::Flatten => {
                self.image.flatten()?;
                self.lineage.promise(self.reign, last, "a flatten")?;
            }
            Act::Reclaim => drop(self.image.reclaim()?),
            Act::Background => while self.image.background_step()? {},
            Act::Read => self.read()?,
            Act::Rest => drop(self.image.rest()?),
        }
        Ok(())
    }

    /// Writes blocks. A write that has to wait for the service is parked. Then a write of other data comes before it,
    /// and must be overwritten by it.
    fn write(&mut self, block: u64, blocks: u64, salt: u64) -> Result<(), Ended> {
        let (offset, length) = (block * BLOCK, blocks * BLOCK);
        let (draft, data) = (model::data(salt ^ DRAFT, length), model::data(salt, length));
        self.lineage.change(self.reign, offset as usize, &draft);
        let first = self.park(offset, &draft);
        if first.is_none() {
            self.lineage.change_failed(self.reign);
        }
        self.lineage.change(self.reign, offset as usize, &data);
        let second = self.park(offset, &data);
        let mut written = match second {
            Some(_) => Ok(()),
            None => self.image.write_at(offset, &data),
        };
        let mut drafted = Ok(());
        for (number, outcome) in self.await_parked(first.into_iter().chain(second))? {
            match Some(number) == first {
                true => drafted = outcome,
                false => written = outcome,
            }
        }
        if written.is_err() || drafted.is_err() {
            self.lineage.change_failed(self.reign);
        }
        if drafted.is_err() {
            self.lineage.change_failed(self.reign);
            if written.is_ok() {
                self.lineage.change(self.reign, offset as usize, &data);
            }
        }
        self.blurred |= written.is_err();
        written.map_err(Ended::from)
    }

    fn park(&mut self, offset: u64, data: &[u8]) -> Option<u64> {
        self.image.park_write(Write { offset, data })
    }

    /// Waits until these requests have ended, and returns their outcomes.
    fn await_parked(
        &mut self,
        parked: impl Iterator<Item = u64>,
    ) -> Result<Vec<(u64, marcot::Result<()>)>, Ended> {
        let (count, mut ended) = (parked.count(), Vec::new());
        for _ in 0..LOOKS_MAX {
            if ended.len() == count {
                return Ok(ended);
            }
            if let Some(Completion::Parked(number, outcome)) = self.image.take_completion() {
                ended.push((number, outcome));
            }
        }
        Ok(violation(Rule::Model, "a write that was parked never ends")?)
    }

    /// Reads everything, as a front end does: reads that have to wait are in flight, while background work goes on.
    fn read_in_flight(&mut self) -> Result<Bytes, Ended> {
        let size = self.image.size_bytes() as usize;
        let mut bytes = vec![0xAA; size];
        let mut waiting = 0;
        for (number, piece) in (0..).zip(bytes.chunks_mut(READ_BYTES)) {
            let read = Read::new(number * READ_BYTES as u64, piece);
            let mut reads = [Read { in_flight: Some(number), ..read }];
            self.image.read_batch(&mut reads);
            let [Read { result, in_flight, .. }] = reads;
            result?;
            waiting += u64::from(in_flight.is_some());
        }
        // An owner that was replaced meets an error.
        let _ = self.image.background_step();
        for _ in 0..LOOKS_MAX {
            if waiting == 0 {
                return Ok(Arc::new(bytes));
            }
            if let Some(Completion::Read(read)) = self.image.take_completion() {
                let (at, data) = (read.number as usize * READ_BYTES, read.result?);
                bytes[at..at + data.len()].copy_from_slice(&data);
                waiting -= 1;
            }
        }
        Ok(violation(Rule::Model, "a read in flight never ends")?)
    }

    /// Reads everything. An owner reads what it has written, also after it was replaced, or an error.
    fn read(&mut self) -> Result<(), Ended> {
        let content = self.read_in_flight()?;
        if !self.blurred && content != self.lineage.content(self.reign) {
            violation(Rule::I2, "an owner reads otherwise than it wrote")?;
        }
        Ok(())
    }

    /// The content as this owner sees it.
    #[must_use]
    pub fn content(&self) -> Bytes {
        self.lineage.content(self.reign)
    }

    /// The process is killed. What it has acknowledged stays, while the host lives.
    pub fn was_killed(&self) {
        self.lineage.killed(self.reign);
    }

    /// Closes the image.
    ///
    /// # Errors
    /// Those of the engine, and violations.
    pub fn close(self) -> Result<(), Ended> {
        let last = self.lineage.last(self.reign);
        self.image.close()?;
        Ok(self.lineage.promise(self.reign, last, "the close")?)
    }
}

/// Compares what a reader sees, and the image's snapshots.
///
/// # Errors
/// Those of the engine, and violations.
pub fn look_at(pool: &Pool, machine: usize, id: ImageId, lineage: &Lineage) -> Result<(), Ended> {
    let began = lineage.begin_to_look();
    let content = read_all(&mut pool.open_read_only(id)?)?;
    lineage.compare_reader(machine, &began, &content)?;
    let mut found = Vec::new();
    for snap in pool.info(id)?.snapshots.into_iter().filter(|snap| !snap.trashed) {
        let bytes = read_all(&mut pool.open_snapshot(id, &snap.name)?)?;
        found.push((snap.name, bytes));
    }
    Ok(lineage.compare_snapshots(&began, &found)?)
}

/// As [`look_at`], where nothing may go wrong.
///
/// # Errors
/// A violation.
pub fn look(
    machines: &Machines,
    machine: usize,
    id: ImageId,
    lineage: &Lineage,
) -> Result<(), Violation> {
    let pool = machines.pool(machine).map_err(Ended::from);
    let looked = pool.and_then(|pool| look_at(&pool, machine, id, lineage));
    looked.map_err(|ended| ended.must_not_be(&format!("a reader on machine {machine}")))
}

/// Collects a pool, and checks it.
///
/// # Errors
/// A violation where that fails, or finds something.
pub fn collect_and_check(store: &Store, pool: &Pool) -> Result<(), Violation> {
    collect_and_check_except(store, pool, |_| false)
}

/// As [`collect_and_check`]; some messages are no violations.
///
/// # Errors
/// A violation.
pub fn collect_and_check_except(
    store: &Store,
    pool: &Pool,
    is_accepted: impl Fn(&str) -> bool,
) -> Result<(), Violation> {
    let failed = |what: &'static str, rule| {
        move |e: marcot::Error| Violation { rule, message: format!("{what}: {}", e.sentence()) }
    };
    store.gc(pool, &mut |_, _| {}).map_err(failed("gc", Rule::I5))?;
    let report = store.check(pool, &CheckOptions::default(), &mut |_, _| {});
    let report = report.map_err(failed("check", Rule::Check))?;
    let mut findings = report.findings.iter();
    match findings.find(|finding| finding.serious && !is_accepted(&finding.message)) {
        Some(finding) => violation(Rule::Check, format!("{}: {}", finding.image, finding.message)),
        None => Ok(()),
    }
}
