//! How many clients a server has, and what becomes of one too many.
//!
//! A client takes a descriptor for as long as it is connected, and images need descriptors too: a
//! flood of clients must not take those. So there are `connections_max` seats; who finds none is
//! disconnected at once. Silence before the end of a negotiation is cheaper to make than to serve:
//! while `negotiating_max` clients negotiate, a new one takes the place of the one that has been at
//! it longest.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Log lines about clients that were turned away come no more often than this.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// A client's place; free again when the last copy is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat(Arc<Place>);

/// One count of those in [`Seats`].
#[derive(Debug, PartialEq, Eq)]
struct Place(Arc<()>);

/// All places.
pub(super) struct Seats {
    taken: Arc<()>,
    max: usize,
    refused: u64,
    replaced: u64,
    tell_after: Option<Instant>,
}

impl Seats {
    pub(super) fn new(max: usize) -> Self {
        Self { taken: Arc::new(()), max: max.max(1), refused: 0, replaced: 0, tell_after: None }
    }

    /// Seats taken.
    fn count(&self) -> usize {
        Arc::strong_count(&self.taken) - 1
    }

    /// A seat for a new client; `None` if all are taken.
    pub(super) fn take(&mut self) -> Option<Seat> {
        if self.count() >= self.max {
            self.refused += 1;
            return None;
        }
        Some(Seat(Arc::new(Place(Arc::clone(&self.taken)))))
    }

    /// Notes that a client was disconnected to make room for another.
    pub(super) fn note_replaced(&mut self) {
        self.replaced += 1;
    }

    /// Logs what happened since the last time, now and then.
    pub(super) fn tell(&mut self, now: Instant) {
        if self.refused + self.replaced == 0 || self.tell_after.is_some_and(|after| now < after) {
            return;
        }
        if self.refused > 0 {
            tracing::warn!(
                refused = self.refused,
                connections_max = self.max,
                "nbd clients refused: as many are connected as this server takes \
                 (--connections-max, ulimit -n)"
            );
        }
        if self.replaced > 0 {
            tracing::warn!(
                disconnected = self.replaced,
                "nbd clients that did not finish their negotiation made room for new ones"
            );
        }
        (self.refused, self.replaced) = (0, 0);
        self.tell_after = Some(now + TELL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_free_when_its_last_copy_is_gone() {
        let mut seats = Seats::new(2);
        let first = seats.take().unwrap();
        let copy = first.clone();
        drop(first);
        let second = seats.take();
        assert!(second.is_some());
        assert!(seats.take().is_none());
        drop(copy);
        assert!(seats.take().is_some());
    }
}
