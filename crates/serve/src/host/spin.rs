//! Spinning for a moment before going to sleep.
//!
//! A client with one request in flight sends the next one as soon as it has its answer. Waking a sleeping
//! thread costs more than the whole request. So while requests come that fast, the loop spins for a moment:
//! it polls again and yields to other threads meanwhile. It stops spinning as soon as nothing comes in that
//! moment.

use std::time::{Duration, Instant};

/// How long to spin. It is longer than a client takes between an answer and its next request, and short
/// beside a request over a network.
const SPIN_TIME_MAX: Duration = Duration::from_micros(60);

/// Decides whether spinning is worth it.
#[derive(Default)]
pub(super) struct Spin {
    since: Option<Instant>,
    worth: bool,
}

impl Spin {
    /// Notes that there is nothing to do from now on.
    pub(super) fn idle(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// True if the loop should poll again and not sleep yet.
    pub(super) fn should_spin(&self, now: Instant) -> bool {
        self.worth && self.since.is_some_and(|since| now - since < SPIN_TIME_MAX)
    }

    /// Notes that something has come.
    pub(super) fn woken(&mut self, now: Instant) {
        self.worth = self.since.take().is_some_and(|since| now - since < SPIN_TIME_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_spins_only_while_requests_follow_each_other_closely() {
        let mut spin = Spin::default();
        let (start, step) = (Instant::now(), Duration::from_micros(10));
        spin.idle(start);
        assert!(!spin.should_spin(start + step), "nothing is known yet");
        spin.woken(start + step);
        spin.idle(start + step);
        assert!(spin.should_spin(start + step + step));
        assert!(!spin.should_spin(start + step + SPIN_TIME_MAX), "not for long");
        spin.woken(start + step + SPIN_TIME_MAX);
        spin.idle(start + step + SPIN_TIME_MAX);
        assert!(!spin.should_spin(start + 2 * step + SPIN_TIME_MAX), "it was not worth it");
    }
}
