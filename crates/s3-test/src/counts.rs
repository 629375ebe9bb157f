//! Requests as a bill counts them.

use std::ops::Add;

use super::faults::Kind;

/// Requests by kind, and the bytes of their bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects stored, and attempts to.
    pub puts: u64,
    /// Objects and ranges read.
    pub gets: u64,
    /// Questions about objects.
    pub heads: u64,
    /// Lists.
    pub lists: u64,
    /// Removals.
    pub deletes: u64,
    /// All others.
    pub others: u64,
    /// Bytes received in bodies.
    pub received_bytes: u64,
    /// Bytes sent in bodies.
    pub sent_bytes: u64,
}

impl Counts {
    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.puts + self.gets + self.heads + self.lists + self.deletes + self.others
    }

    /// Counts a request of a kind, with the bytes of its body.
    pub(crate) fn add(&mut self, kind: Kind, received_bytes: usize) {
        *match kind {
            Kind::Put => &mut self.puts,
            Kind::Get => &mut self.gets,
            Kind::Head => &mut self.heads,
            Kind::Delete => &mut self.deletes,
            Kind::List => &mut self.lists,
            Kind::Other => &mut self.others,
        } += 1;
        self.received_bytes += received_bytes as u64;
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            puts: self.puts + more.puts,
            gets: self.gets + more.gets,
            heads: self.heads + more.heads,
            lists: self.lists + more.lists,
            deletes: self.deletes + more.deletes,
            others: self.others + more.others,
            received_bytes: self.received_bytes + more.received_bytes,
            sent_bytes: self.sent_bytes + more.sent_bytes,
        }
    }
}
