//! Looking again for a moment before going to sleep.
//!
//! A client with one request in flight sends the next as soon as it has its answer. Waking a
//! sleeping thread costs more than the whole request, so while requests come that fast the loop
//! stays awake for a moment. It gives way to every other thread that wants to run meanwhile, and
//! stops doing so as soon as nothing came in that moment.

use std::time::{Duration, Instant};

/// How long to look again. Longer than a client takes between an answer and its next request;
/// short beside what a request from farther away takes.
const EAGER_TIME_MAX: Duration = Duration::from_micros(60);

/// Tells whether looking again is worth it.
#[derive(Default)]
pub(super) struct Spin {
    since: Option<Instant>,
    worth: bool,
}

impl Spin {
    /// There is nothing to do from now on.
    pub(super) fn idle(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// True if the loop should look again and not sleep yet.
    pub(super) fn looks_again(&self, now: Instant) -> bool {
        self.worth && self.since.is_some_and(|since| now - since < EAGER_TIME_MAX)
    }

    /// Something has come.
    pub(super) fn woken(&mut self, now: Instant) {
        self.worth = self.since.take().is_some_and(|since| now - since < EAGER_TIME_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_again_only_while_requests_follow_each_other_closely() {
        let mut spin = Spin::default();
        let (start, step) = (Instant::now(), Duration::from_micros(10));
        spin.idle(start);
        assert!(!spin.looks_again(start + step), "nothing is known yet");
        spin.woken(start + step);
        spin.idle(start + step);
        assert!(spin.looks_again(start + step + step));
        assert!(!spin.looks_again(start + step + EAGER_TIME_MAX), "not for long");
        spin.woken(start + step + EAGER_TIME_MAX);
        spin.idle(start + step + EAGER_TIME_MAX);
        assert!(!spin.looks_again(start + 2 * step + EAGER_TIME_MAX), "it was not worth it");
    }
}
