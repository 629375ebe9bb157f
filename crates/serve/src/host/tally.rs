//! What an image's clients have asked for since it was opened, for `perf image iostat`.
//!
//! The image's thread counts, and answers `status` with the counts. Requests that failed do not count.
//!
//! The clock is not looked at for each request: those of one turn of the thread were taken when the turn began, and
//! those that a round carries out are answered together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::operation::{Operation, OperationKind};
use crate::control::{IoCount, IoCounts};

/// Counts that one thread changes and any thread reads.
#[derive(Debug)]
pub(crate) struct Tally {
    created: Instant,
    /// When the thread's turn began, and the last time that was looked at, in nanoseconds since `created`.
    turn_ns: AtomicU64,
    now_ns: AtomicU64,
    reads: Counter,
    writes: Counter,
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

/// A request that is being carried out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    kind: OperationKind,
    bytes: u64,
    /// False for a part of a request that is not its last.
    counts: bool,
    at_ns: u64,
}

impl Begun {
    /// False for a part of a request that is not its last.
    pub(crate) fn counts(&self) -> bool {
        self.counts
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            created: Instant::now(),
            turn_ns: AtomicU64::default(),
            now_ns: AtomicU64::default(),
            reads: Counter::default(),
            writes: Counter::default(),
        }
    }
}

impl Tally {
    /// A turn of the thread begins.
    pub(crate) fn begin_turn(&self, now: Instant) {
        let now_ns = self.since_creation_ns(now);
        self.turn_ns.store(now_ns, Ordering::Relaxed);
        self.now_ns.store(now_ns, Ordering::Relaxed);
    }

    /// The device has done what was asked for: it is answered next.
    pub(crate) fn device_is_done(&self) {
        self.now_ns.store(self.since_creation_ns(Instant::now()), Ordering::Relaxed);
    }

    fn since_creation_ns(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.created).as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request that was taken in this turn. `counts` is false for a part of a request that is not its last.
    pub(crate) fn begun(&self, operation: &Operation, counts: bool) -> Begun {
        // Trimming carries no data.
        let bytes = match operation.kind {
            OperationKind::Discard => 0,
            _ => operation.length,
        };
        let at_ns = self.turn_ns.load(Ordering::Relaxed);
        Begun { kind: operation.kind, bytes, counts, at_ns }
    }

    /// Counts a request that has been answered without an error. Trimming counts as writing.
    pub(crate) fn done(&self, begun: &Begun) {
        let counter = match begun.kind {
            OperationKind::Read => &self.reads,
            OperationKind::Write | OperationKind::Discard => &self.writes,
            OperationKind::Status | OperationKind::Cache | OperationKind::Flush => return,
        };
        let took_ns = self.now_ns.load(Ordering::Relaxed).saturating_sub(begun.at_ns);
        // Only this thread adds.
        let add = |sum: &AtomicU64, more: u64| {
            sum.store(sum.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        };
        add(&counter.requests, u64::from(begun.counts));
        add(&counter.bytes, begun.bytes);
        add(&counter.nanoseconds, took_ns);
    }

    /// The counts so far.
    pub(crate) fn counts(&self) -> IoCounts {
        let count = |counter: &Counter| IoCount {
            requests: counter.requests.load(Ordering::Relaxed),
            bytes: counter.bytes.load(Ordering::Relaxed),
            nanoseconds: counter.nanoseconds.load(Ordering::Relaxed),
        };
        IoCounts { reads: count(&self.reads), writes: count(&self.writes) }
    }
}
