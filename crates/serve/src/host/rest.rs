//! When an image that nobody uses gives space and memory back.
//!
//! A few times after the last request, then never until the next one: an idle image is not woken for
//! this. (Background work has a timer of its own, see `pacer`.)

use std::time::{Duration, Instant};

use marcot::IdleOutcome;

/// Time without a request after which memory is given back. Long beside the pauses of a client that
/// works, whose pages would have to be read again; short beside the idle time after which a server
/// closes an image that has no client.
const REST_INTERVAL: Duration = Duration::from_secs(10);

/// Time without a request after which space on the medium is given back. Whoever has just trimmed a
/// file system, or removed an image, looks after some seconds whether it is there; a client that makes
/// shorter pauses is not to pay for it.
const SPACE_REST_INTERVAL: Duration = Duration::from_secs(2);

/// Times that a device may ask to be called again: once for a checkpoint that has to end first, and
/// once for background work that came after it.
const CALLS_MAX: u32 = 3;

/// Freed bytes from which on it is worth asking the allocator to give them to the system. It keeps
/// small pieces for itself, and looks at all of its memory to find them.
const FREED_BYTES_MIN: u64 = 1 << 20;

/// Decides when the device is told to rest.
pub(super) struct Rest {
    space_due: Option<Instant>,
    due: Option<Instant>,
    calls_left: u32,
    freed_bytes: u64,
}

impl Rest {
    /// Opening an image loads pages as well.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            space_due: Some(now + SPACE_REST_INTERVAL),
            due: Some(now + REST_INTERVAL),
            calls_left: CALLS_MAX,
            freed_bytes: 0,
        }
    }

    /// When to have it give space back, if at all.
    pub(super) fn space_due(&self) -> Option<Instant> {
        self.space_due
    }

    /// It has begun with that.
    pub(super) fn space_given_back(&mut self) {
        self.space_due = None;
    }

    /// When to tell it, if at all.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The device did something.
    pub(super) fn used(&mut self, now: Instant) {
        self.space_due = Some(now + SPACE_REST_INTERVAL);
        (self.due, self.calls_left) = (Some(now + REST_INTERVAL), CALLS_MAX);
    }

    /// The device was told; true where the allocator should give back what it has.
    pub(super) fn rested(&mut self, now: Instant, rested: IdleOutcome) -> bool {
        self.calls_left = self.calls_left.saturating_sub(1);
        let again = rested.unfinished && self.calls_left > 0;
        self.due = again.then(|| now + REST_INTERVAL);
        self.freed_bytes += rested.freed_bytes;
        let worth = self.freed_bytes >= FREED_BYTES_MIN;
        if worth {
            self.freed_bytes = 0;
        }
        worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_device_is_told_once_and_again_only_after_it_was_used() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        assert_eq!(rest.due(), Some(now + REST_INTERVAL));
        rest.rested(now, IdleOutcome::default());
        assert_eq!(rest.due(), None);
        rest.used(now);
        assert_eq!(rest.due(), Some(now + REST_INTERVAL));
    }

    #[test]
    fn space_is_given_back_once_after_each_use() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        assert_eq!(rest.space_due(), Some(now + SPACE_REST_INTERVAL));
        rest.space_given_back();
        rest.rested(now, IdleOutcome::default());
        assert_eq!(rest.space_due(), None);
        rest.used(now);
        assert_eq!(rest.space_due(), Some(now + SPACE_REST_INTERVAL));
    }

    #[test]
    fn a_device_that_never_finishes_is_left_alone_in_the_end() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        let calls = (0..100).take_while(|_| {
            rest.rested(now, IdleOutcome { unfinished: true, ..IdleOutcome::default() });
            rest.due().is_some()
        });
        assert_eq!(calls.count(), CALLS_MAX as usize - 1);
    }

    #[test]
    fn the_allocator_is_bothered_for_much_only() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        let freed = |freed_bytes| IdleOutcome { freed_bytes, ..IdleOutcome::default() };
        assert!(!rest.rested(now, freed(FREED_BYTES_MIN - 1)));
        assert!(rest.rested(now, freed(1)));
        assert!(!rest.rested(now, freed(1)));
    }
}
