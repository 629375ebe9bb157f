//! Simulated time. On one machine it passes only with I/O. Where several machines use one service, it passes
//! with the requests to the service, and with pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use marcot_store::Clock;

use crate::disk::Machine;

/// Start of simulated time, in seconds since 1970.
const START_S: i64 = 1_700_000_000;
/// I/Os in a simulated second.
const IOS_PER_SECOND: u64 = 64;

/// The clock of a simulated machine.
pub struct SimClock(Arc<Machine>);

impl SimClock {
    /// The clock of a machine.
    #[must_use]
    pub fn new(machine: Arc<Machine>) -> Self {
        Self(machine)
    }
}

impl Clock for SimClock {
    fn now_s(&self) -> i64 {
        START_S + (self.0.ios() / IOS_PER_SECOND) as i64
    }

    fn pause(&self, _: Duration) {}
}

/// Seconds since 1970 at a moment of simulated time.
pub(crate) fn seconds(moment_ms: u64) -> i64 {
    START_S + (moment_ms / 1000) as i64
}

/// The time that several machines share, in milliseconds.
#[derive(Default)]
pub struct Time(AtomicU64);

impl Time {
    /// Milliseconds since the start.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Lets time pass.
    pub fn pass(&self, duration: Duration) {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

/// The clock of one of several machines. It may be wrong.
pub struct SharedClock {
    time: Arc<Time>,
    wrong_by_s: i64,
}

impl SharedClock {
    /// A clock that is `wrong_by_s` seconds fast.
    #[must_use]
    pub fn new(time: Arc<Time>, wrong_by_s: i64) -> Self {
        Self { time, wrong_by_s }
    }
}

impl Clock for SharedClock {
    fn now_s(&self) -> i64 {
        seconds(self.time.now_ms()) + self.wrong_by_s
    }

    fn uptime(&self) -> Duration {
        Duration::from_millis(self.time.now_ms())
    }

    fn pause(&self, duration: Duration) {
        self.time.pass(duration);
    }
}
