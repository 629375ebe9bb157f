//! Decides when an idle image gives space and memory back.
//!
//! That happens a few times after the last request, and then never until the next one: an idle image is not
//! woken up for this. (Background work has a timer of its own, see `pacer`.)

use std::time::{Duration, Instant};

use marcot::IdleOutcome;

/// Time without a request after which memory is given back. It is long beside the pauses of a working
/// client, whose pages would have to be read again. It is short beside the idle time after which a server
/// closes an image without a client.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// Time without a request after which space on the medium is given back. A user who has trimmed a file
/// system, or removed an image, expects the space after some seconds. A client with shorter pauses must not
/// be slowed down by this.
const SPACE_IDLE_INTERVAL: Duration = Duration::from_secs(2);

/// Limit on the calls after one use. A device may ask for another call: once for a checkpoint that has to end
/// first, and once for background work that came after it.
const CALLS_MAX: u32 = 3;

/// From this many freed bytes on, the allocator is asked to give memory back to the system. It searches all
/// of its memory for that, and keeps small pieces.
const FREED_BYTES_MIN: u64 = 1 << 20;

/// The timers of an idle device.
pub(super) struct IdleTimers {
    space_due: Option<Instant>,
    due: Option<Instant>,
    calls_left: u32,
    freed_bytes: u64,
}

impl IdleTimers {
    /// Starts as after a use, because opening an image loads pages as well.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            space_due: Some(now + SPACE_IDLE_INTERVAL),
            due: Some(now + IDLE_INTERVAL),
            calls_left: CALLS_MAX,
            freed_bytes: 0,
        }
    }

    /// When the device should give space back, if at all.
    pub(super) fn space_due(&self) -> Option<Instant> {
        self.space_due
    }

    /// Notes that the device has begun to give space back.
    pub(super) fn space_given_back(&mut self) {
        self.space_due = None;
    }

    /// When the device should give memory back, if at all.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Notes that the device was used.
    pub(super) fn used(&mut self, now: Instant) {
        self.space_due = Some(now + SPACE_IDLE_INTERVAL);
        (self.due, self.calls_left) = (Some(now + IDLE_INTERVAL), CALLS_MAX);
    }

    /// Notes that the device was called. Returns true where the allocator should give memory back to the
    /// system.
    pub(super) fn called(&mut self, now: Instant, outcome: IdleOutcome) -> bool {
        self.calls_left = self.calls_left.saturating_sub(1);
        let again = outcome.unfinished && self.calls_left > 0;
        self.due = again.then(|| now + IDLE_INTERVAL);
        self.freed_bytes += outcome.freed_bytes;
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
    fn an_idle_device_is_called_once_and_again_only_after_it_was_used() {
        let now = Instant::now();
        let mut timers = IdleTimers::new(now);
        assert_eq!(timers.due(), Some(now + IDLE_INTERVAL));
        timers.called(now, IdleOutcome::default());
        assert_eq!(timers.due(), None);
        timers.used(now);
        assert_eq!(timers.due(), Some(now + IDLE_INTERVAL));
    }

    #[test]
    fn space_is_given_back_once_after_each_use() {
        let now = Instant::now();
        let mut timers = IdleTimers::new(now);
        assert_eq!(timers.space_due(), Some(now + SPACE_IDLE_INTERVAL));
        timers.space_given_back();
        timers.called(now, IdleOutcome::default());
        assert_eq!(timers.space_due(), None);
        timers.used(now);
        assert_eq!(timers.space_due(), Some(now + SPACE_IDLE_INTERVAL));
    }

    #[test]
    fn a_device_that_never_finishes_is_left_alone_in_the_end() {
        let now = Instant::now();
        let mut timers = IdleTimers::new(now);
        let calls = (0..100).take_while(|_| {
            timers.called(now, IdleOutcome { unfinished: true, ..IdleOutcome::default() });
            timers.due().is_some()
        });
        assert_eq!(calls.count(), CALLS_MAX as usize - 1);
    }

    #[test]
    fn the_allocator_is_asked_only_where_much_was_freed() {
        let now = Instant::now();
        let mut timers = IdleTimers::new(now);
        let freed = |freed_bytes| IdleOutcome { freed_bytes, ..IdleOutcome::default() };
        assert!(!timers.called(now, freed(FREED_BYTES_MIN - 1)));
        assert!(timers.called(now, freed(1)));
        assert!(!timers.called(now, freed(1)));
    }
}
