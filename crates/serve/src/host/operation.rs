//! One block operation of a round, and the order in which a round carries operations out.
//!
//! By protocol, requests in flight at the same time have no order. So a round may gather them: all reads,
//! then all writes as one batch, then the discards. A client that sends a write and a read of the same bytes
//! one after the other still sees them in order, where that is cheap: operations that must not be swapped go
//! to a later *stage* of the round.
//!
//! Invariant: within one lane, an operation never runs before an overlapping earlier one. CACHE and FLUSH
//! have no place in that order.

use marcot::{BlockDevice, Result, Write};

use super::round::only_fatal;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperationKind {
    /// Read bytes.
    Read,
    /// Write bytes.
    Write,
    /// Make a range read as zeros.
    Discard,
    /// Say which ranges are holes and which are data.
    Status,
    /// Read ahead.
    Cache,
    /// Make everything acknowledged durable.
    Flush,
}

/// One operation of a round.
#[derive(Debug)]
pub(crate) struct Operation {
    /// What is to be done.
    pub(crate) kind: OperationKind,
    /// First byte on the device.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// Acknowledge only when durable.
    pub(crate) fua: bool,
    /// Set by [`Stages::place`].
    pub(crate) stage: u32,
    /// Its outcome so far.
    pub(crate) outcome: Result<()>,
    /// The device has parked it under this number, and tells when it has ended.
    pub(crate) parked: Option<u64>,
}

impl Operation {
    pub(crate) fn new(kind: OperationKind, offset: u64, length: u64, fua: bool) -> Self {
        let fua = fua && matches!(kind, OperationKind::Write | OperationKind::Discard);
        Self { kind, offset, length, fua, stage: 0, outcome: Ok(()), parked: None }
    }

    /// True if a flush must follow before this may be acknowledged.
    pub(crate) fn waits_for_flush(&self) -> bool {
        let due = self.fua || self.kind == OperationKind::Flush;
        due && self.outcome.is_ok() && self.parked.is_none()
    }

    /// True if it is to be carried out in `stage`, has not failed before and is not parked.
    pub(crate) fn runs_in(&self, stage: u32, kind: OperationKind) -> bool {
        let runs = self.stage == stage && self.kind == kind;
        runs && self.outcome.is_ok() && self.parked.is_none()
    }

    /// Lets the device park a write of `data`, where that would have to wait for a service.
    pub(crate) fn park_write(&mut self, data: &[u8], device: &mut dyn BlockDevice) {
        self.parked = device.park_write(Write { offset: self.offset, data });
    }

    /// Discards the range, or lets the device park that, and notes the outcome. Fails if the image cannot be used any more.
    pub(crate) fn discard(&mut self, device: &mut dyn BlockDevice) -> Result<()> {
        self.parked = device.park_discard(self.offset, self.length);
        if self.parked.is_some() {
            return Ok(());
        }
        self.outcome = device.discard(self.offset, self.length);
        only_fatal(self.outcome.clone())
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset.saturating_add(other.length)
            && other.offset < self.offset.saturating_add(self.length)
    }

    /// True if `self`, which came first, would run after `later` in the same stage and must not.
    fn must_precede(&self, later: &Self) -> bool {
        let swapped = match later.kind {
            OperationKind::Read | OperationKind::Status => {
                matches!(self.kind, OperationKind::Write | OperationKind::Discard)
            }
            OperationKind::Write => self.kind == OperationKind::Discard,
            OperationKind::Discard | OperationKind::Cache | OperationKind::Flush => false,
        };
        swapped && self.overlaps(later)
    }
}

/// Assigns stages to the operations of one lane, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    current: u32,
    writes: bool,
    discards: bool,
}

impl Stages {
    /// Gives `operation` its stage. `earlier` yields the operations before it, latest first.
    pub(crate) fn place<'a>(
        &mut self,
        operation: &mut Operation,
        earlier: impl Iterator<Item = &'a Operation>,
    ) {
        let stage = self.current;
        let may_conflict = match operation.kind {
            OperationKind::Read | OperationKind::Status => self.writes || self.discards,
            OperationKind::Write => self.discards,
            _ => false,
        };
        if may_conflict
            && earlier.take_while(|e| e.stage == stage).any(|e| e.must_precede(operation))
        {
            *self = Self { current: stage + 1, ..Self::default() };
        }
        self.writes |= operation.kind == OperationKind::Write;
        self.discards |= operation.kind == OperationKind::Discard;
        operation.stage = self.current;
    }

    /// Number of stages the lane's operations need.
    pub(crate) fn count(&self) -> u32 {
        self.current + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages_of(operations: &[(OperationKind, u64, u64)]) -> Vec<u32> {
        let mut stages = Stages::default();
        let mut placed: Vec<Operation> = Vec::new();
        for &(kind, offset, length) in operations {
            let mut operation = Operation::new(kind, offset, length, false);
            stages.place(&mut operation, placed.iter().rev());
            placed.push(operation);
        }
        placed.iter().map(|o| o.stage).collect()
    }

    #[test]
    fn unrelated_operations_share_a_stage() {
        use OperationKind::{Discard, Flush, Read, Write};
        let operations = [
            (Write, 0, 4096),
            (Read, 4096, 512),
            (Discard, 8192, 9),
            (Write, 10, 9),
            (Flush, 0, 0),
        ];
        assert_eq!(stages_of(&operations), [0; 5]);
    }

    #[test]
    fn a_read_after_an_overlapping_write_comes_later() {
        use OperationKind::{Read, Write};
        let operations = [(Write, 0, 10), (Read, 9, 1), (Write, 9, 1), (Read, 0, 9), (Read, 9, 9)];
        assert_eq!(stages_of(&operations), [0, 1, 1, 1, 2]);
    }

    #[test]
    fn a_write_after_an_overlapping_discard_comes_later() {
        use OperationKind::{Discard, Write};
        let operations = [(Write, 0, 10), (Discard, 0, 10), (Write, 5, 10), (Discard, 0, 10)];
        assert_eq!(stages_of(&operations), [0, 0, 1, 1]);
    }
}
