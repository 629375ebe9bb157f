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

/// Bytes of [`Requests`] in a file: six numbers of eight bytes, little endian, in the order of the fields.
pub(super) const BYTES: usize = 6 * 8;

impl Requests {
    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.puts + self.gets + self.lists + self.removes
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let Self { puts, gets, lists, removes, sent_bytes, received_bytes } = self;
        let numbers = [puts, gets, lists, removes, sent_bytes, received_bytes];
        numbers.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    pub(super) fn decode(bytes: &[u8; BYTES]) -> Self {
        let number = |index: usize| {
            let mut part = [0; 8];
            part.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_le_bytes(part)
        };
        Self {
            puts: number(0),
            gets: number(1),
            lists: number(2),
            removes: number(3),
            sent_bytes: number(4),
            received_bytes: number(5),
        }
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
