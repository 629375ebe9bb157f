//! Counts the requests to a service, by kind. A request costs money, so users want to see them, and tests
//! limit them.

use std::ops::{Range, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::service::{Condition, Object, ObjectService, Page, ServiceError, Version};

/// Counts every request to the service below, also those that failed: they cost the same.
pub struct Counted {
    service: Arc<dyn ObjectService>,
    counts: Arc<Counts>,
}

/// Counters that go on while they are read.
#[derive(Debug, Default)]
pub struct Counts {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    removes: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

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

impl Counts {
    /// The counts now.
    #[must_use]
    pub fn now(&self) -> Requests {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Requests {
            puts: read(&self.puts),
            gets: read(&self.gets),
            lists: read(&self.lists),
            removes: read(&self.removes),
            sent_bytes: read(&self.sent_bytes),
            received_bytes: read(&self.received_bytes),
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Counted {
    /// Counts the requests to a service.
    #[must_use]
    pub fn new(service: Arc<dyn ObjectService>) -> Self {
        Self { service, counts: Arc::default() }
    }

    /// The counters.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }
}

impl ObjectService for Counted {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        add(&self.counts.gets, 1);
        let outcome = self.service.get(key);
        outcome.inspect(|object| add(&self.counts.received_bytes, object.bytes.len()))
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        // Nothing is sent for no bytes.
        add(&self.counts.gets, usize::from(!range.is_empty()));
        let outcome = self.service.get_range(key, range);
        outcome.inspect(|bytes| add(&self.counts.received_bytes, bytes.len()))
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        add(&self.counts.puts, 1);
        add(&self.counts.sent_bytes, bytes.len());
        self.service.put(key, bytes, condition)
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        add(&self.counts.removes, 1);
        self.service.remove(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        add(&self.counts.lists, 1);
        self.service.list(prefix, after)
    }

    fn show(&self, key: &str) -> String {
        self.service.show(key)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryService;
    use super::*;

    #[test]
    fn every_request_counts_also_one_that_fails() {
        let service = Counted::new(Arc::new(MemoryService::new()));
        service.put("a", b"12345", &Condition::Absent).unwrap();
        service.put("a", b"123", &Condition::Absent).unwrap_err();
        service.get("a").unwrap();
        let before = service.counts().now();
        service.get("b").unwrap_err();
        service.get_range("a", 1..3).unwrap();
        service.get_range("a", 1..1).unwrap();
        service.list("", None).unwrap();
        service.remove("a").unwrap();
        let all = service.counts().now();
        let expected =
            Requests { puts: 2, gets: 3, lists: 1, removes: 1, sent_bytes: 8, received_bytes: 7 };
        assert_eq!((all, all.total()), (expected, 7));
        assert_eq!((all - before).total(), 4);
    }
}
