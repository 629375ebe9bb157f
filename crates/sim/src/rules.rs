//! The rules that must hold, the settings of a run, and the store that it runs on.

use std::path::Path;
use std::sync::Arc;

use marcot::{Limits, Store, World};

use crate::clock::SimClock;
use crate::disk::{Machine, SimDisk};
use crate::operations::Profile;
use crate::random::{Rng, SimRandom};
use crate::workers::SimWorkers;

/// Directory of the simulated store.
pub const STORE: &str = "/store";
/// Simulated processes.
pub const PROCESSES: usize = 2;

/// Small enough for checkpoints in the background, for pages to be dropped, for compaction, for streams, and for
/// segments that are used again.
pub(crate) const LIMITS: Limits = Limits {
    map_memory_bytes: 64 << 10,
    checkpoint_log_bytes: 96 << 10,
    dead_bytes_min: 64 << 10,
    stream_bytes_min: 8 << 10,
    reserve_bytes: 64 << 10,
    segment_slots: 96,
    live_bytes_per_spare: 4 << 10,
    spare_bytes_min: 16 << 10,
    patience: marcot::Patience::Command,
};

/// A rule that can be violated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Durability: the content is a prefix that contains everything flushed.
    I1,
    /// Integrity: right bytes or an error.
    I2,
    /// Roots keep data alive.
    I5,
    /// One writer.
    I6,
    /// No child is forgotten.
    I7,
    /// One key, one content.
    I9,
    /// `check` has findings.
    Check,
    /// A command answers differently from the model.
    Model,
    /// A panic.
    Panic,
}

/// A violation: which rule, and how.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What was found.
    pub message: String,
}

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The seed of all choices.
    pub seed: u64,
    /// Kinds of trouble.
    pub profile: Profile,
    /// A crash is tried at one in this many I/Os that change something: with 1 at all, with 0 at none.
    pub crash_one_in: u64,
    /// Keep the lines of the trace.
    pub lines: bool,
}

pub(crate) fn violation<T>(rule: Rule, message: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { rule, message: message.into() })
}

/// Opens the store of a machine in a new life of a process.
pub(crate) fn open_store(
    machine: &Arc<Machine>,
    process: usize,
    seed: u64,
) -> marcot::Result<Store> {
    let world = World {
        disk: Arc::new(SimDisk::new(machine, process)),
        clock: Arc::new(SimClock::new(Arc::clone(machine))),
        random: Arc::new(SimRandom::new(Rng::with(seed, 100 + process as u64))),
        workers: Arc::new(SimWorkers::new(Rng::with(seed, 200 + process as u64))),
    };
    Store::open_with(world, Path::new(STORE), LIMITS)
}
