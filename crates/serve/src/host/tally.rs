//! What an image's clients have asked for since it was opened, for `perf image iostat`.
//!
//! The image's thread counts, and answers `status` with the counts. Requests that failed do not count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::operation::{Operation, OperationKind};
use crate::control::{IoCount, IoCounts};

/// Counts that one thread changes and any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Tally {
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
    at: Instant,
}

impl Begun {
    /// The request of an operation. `counts` is false for a part of a request that is not its last.
    pub(crate) fn of(operation: &Operation, counts: bool) -> Self {
        // Trimming carries no data.
        let bytes = match operation.kind {
            OperationKind::Discard => 0,
            _ => operation.length,
        };
        Self { kind: operation.kind, bytes, counts, at: operation.at }
    }
}

impl Tally {
    /// Counts a request that has been answered without an error. Trimming counts as writing.
    pub(crate) fn done(&self, begun: &Begun) {
        let counter = match begun.kind {
            OperationKind::Read => &self.reads,
            OperationKind::Write | OperationKind::Discard => &self.writes,
            OperationKind::Status | OperationKind::Cache | OperationKind::Flush => return,
        };
        counter.requests.fetch_add(u64::from(begun.counts), Ordering::Relaxed);
        counter.bytes.fetch_add(begun.bytes, Ordering::Relaxed);
        let took = u64::try_from(begun.at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        counter.nanoseconds.fetch_add(took, Ordering::Relaxed);
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
