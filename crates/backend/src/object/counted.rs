//! Counts the requests to a service, by kind. A request costs money, so users want to see them, and tests
//! limit them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::keys;
pub use super::requests::Requests;
use super::service::{Condition, Object, ObjectService, Page, ServiceError, Version};
use super::tally::Tally;

/// Counts every request to the service below, also those that failed: they cost the same.
pub struct Counted {
    service: Arc<dyn ObjectService>,
    counts: Arc<Counts>,
    tally: OnceLock<Arc<Tally>>,
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

impl Counts {
    fn add(&self, more: Requests) {
        let add = |counter: &AtomicU64, count: u64| {
            counter.fetch_add(count, Ordering::Relaxed);
        };
        add(&self.puts, more.puts);
        add(&self.gets, more.gets);
        add(&self.lists, more.lists);
        add(&self.removes, more.removes);
        add(&self.sent_bytes, more.sent_bytes);
        add(&self.received_bytes, more.received_bytes);
    }

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

impl Counted {
    /// Counts the requests to a service.
    #[must_use]
    pub fn new(service: Arc<dyn ObjectService>) -> Self {
        Self { service, counts: Arc::default(), tally: OnceLock::new() }
    }

    /// From now on requests count in this tally too, as well as those before. Only the first call counts.
    pub fn tell(&self, tally: &Arc<Tally>) {
        if self.tally.set(Arc::clone(tally)).is_ok() {
            // An image is not looked at before the tally is known.
            tally.add(None, self.counts.now());
        }
    }

    /// Counts a request that is sent, and what came of it.
    fn count<T>(
        &self,
        key: &str,
        sent: Requests,
        received_bytes: impl FnOnce(&T) -> usize,
        request: impl FnOnce() -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        self.counts.add(sent);
        let outcome = request();
        let received = outcome.as_ref().map_or(0, received_bytes) as u64;
        let received = Requests { received_bytes: received, ..Requests::default() };
        self.counts.add(received);
        if let Some(tally) = self.tally.get() {
            tally.add(keys::image_of(key), sent + received);
        }
        outcome
    }

    /// The counters.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }
}

impl ObjectService for Counted {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        let sent = Requests { gets: 1, ..Requests::default() };
        self.count(key, sent, |object: &Object| object.bytes.len(), || self.service.get(key))
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        // Nothing is sent for no bytes.
        if range.is_empty() {
            return self.service.get_range(key, range);
        }
        let sent = Requests { gets: 1, ..Requests::default() };
        self.count(key, sent, Vec::len, || self.service.get_range(key, range))
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        let sent = Requests { puts: 1, sent_bytes: bytes.len() as u64, ..Requests::default() };
        self.count(key, sent, |_| 0, || self.service.put(key, bytes, condition))
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        let sent = Requests { removes: 1, ..Requests::default() };
        self.count(key, sent, |()| 0, || self.service.remove(key))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        let sent = Requests { lists: 1, ..Requests::default() };
        self.count(prefix, sent, |_| 0, || self.service.list(prefix, after))
    }

    fn show(&self, key: &str) -> String {
        self.service.show(key)
    }

    fn is_unreached(&self) -> bool {
        self.service.is_unreached()
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
