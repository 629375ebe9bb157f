//! Numbers of requests to a service, by kind.

use std::ops::{Add, Sub};

/// What counters showed at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Objects stored, and attempts to.
    pub puts: u64,
    /// Objects and ranges read.
    pub gets: u64,
    /// Parts of lists.
    pub lists: u64,
    /// Objects removed.
    pub removes: u64,
    /// Bytes of objects sent.
    pub sent_bytes: u64,
    /// Bytes of objects received.
    pub received_bytes: u64,
}

impl Requests {
    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.puts + self.gets + self.lists + self.removes
    }
}

impl Sub for Requests {
    type Output = Self;

    /// What came between two moments.
    fn sub(self, before: Self) -> Self {
        Self {
            puts: self.puts - before.puts,
            gets: self.gets - before.gets,
            lists: self.lists - before.lists,
            removes: self.removes - before.removes,
            sent_bytes: self.sent_bytes - before.sent_bytes,
            received_bytes: self.received_bytes - before.received_bytes,
        }
    }
}

impl Add for Requests {
    type Output = Self;

    /// Both together.
    fn add(self, more: Self) -> Self {
        Self {
            puts: self.puts.saturating_add(more.puts),
            gets: self.gets.saturating_add(more.gets),
            lists: self.lists.saturating_add(more.lists),
            removes: self.removes.saturating_add(more.removes),
            sent_bytes: self.sent_bytes.saturating_add(more.sent_bytes),
            received_bytes: self.received_bytes.saturating_add(more.received_bytes),
        }
    }
}
