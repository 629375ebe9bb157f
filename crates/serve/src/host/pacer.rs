//! Decides when an image's thread does background work.
//!
//! The work is done in small steps. While there are no requests, the steps follow each other without pause.
//! Under load they get a limited share of the time. While there is nothing to do, they come more and more
//! rarely.

use std::time::{Duration, Instant};

/// Under load, a step of length t is followed by at least this many t of serving.
const SERVE_SHARE: u32 = 9;

/// First pause after a step that found nothing to do. Each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest pause. A thousand idle images then cause a hundred wake-ups a second.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Decides when the next step is due.
pub(super) struct Pacer {
    due: Instant,
    pause: Duration,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now + PAUSE_MIN, pause: PAUSE_MIN }
    }

    /// When to step next.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Notes that requests were served, so there may be work again.
    pub(super) fn served(&mut self, now: Instant) {
        self.pause = PAUSE_MIN;
        self.due = self.due.min(now + PAUSE_MIN);
    }

    /// Notes a step: `more` says whether work is left, `busy` whether requests wait.
    pub(super) fn stepped(&mut self, start: Instant, end: Instant, more: bool, busy: bool) {
        if more {
            self.pause = PAUSE_MIN;
            self.due = if busy { end + (end - start) * SERVE_SHARE } else { end };
        } else {
            self.due = end + self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_there_is_nothing_to_do_and_shrink_with_requests() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        for _ in 0..20 {
            pacer.stepped(now, now, false, false);
        }
        assert_eq!(pacer.due() - now, PAUSE_MAX);
        pacer.served(now);
        assert_eq!(pacer.due() - now, PAUSE_MIN);
    }

    #[test]
    fn load_leaves_a_tenth_of_the_time_to_background_work() {
        let now = Instant::now();
        let end = now + Duration::from_millis(1);
        let mut pacer = Pacer::new(now);
        pacer.stepped(now, end, true, true);
        assert_eq!(pacer.due() - end, Duration::from_millis(9));
        pacer.stepped(now, end, true, false);
        assert_eq!(pacer.due(), end);
    }
}
