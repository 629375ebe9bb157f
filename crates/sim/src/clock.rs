//! Simulated time. It passes only with I/O.

use std::sync::Arc;
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
