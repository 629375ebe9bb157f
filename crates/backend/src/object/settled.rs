//! Requests whose outcome is always known.
//!
//! A service may lose an answer, or say "error" after it stored an object. Here such a request is settled
//! before anything else is done: reads, lists and removals are sent again; the creation of an object is read
//! back. No outcome is guessed.
//!
//! Invariants:
//! - [`Settled::create`] returns `Ok` only where the object has these bytes, and `Exists` only with the other
//!   bytes that it has.
//! - A creation that was given up may still take effect later. By the rule "one key, one content" that
//!   hurts nobody: its bytes are the only ones that this key may have from this writer.

use std::ops::Range;
use std::sync::Arc;

use super::retry::Retry;
use super::service::{Condition, ListedObject, Object, ObjectService, Page, ServiceError, Version};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Settled {
    service: Arc<dyn ObjectService>,
    retry: Retry,
}

/// Why an object could not be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateError {
    /// The key has an object with other bytes: this one.
    Exists(Object),
    /// The service could not be asked.
    Service(ServiceError),
}

impl From<ServiceError> for CreateError {
    fn from(error: ServiceError) -> Self {
        Self::Service(error)
    }
}

impl Settled {
    /// Settles the requests to a service.
    #[must_use]
    pub fn new(service: Arc<dyn ObjectService>, retry: Retry) -> Self {
        Self { service, retry }
    }

    /// The service below, for conditional requests that others settle.
    #[must_use]
    pub fn service(&self) -> &Arc<dyn ObjectService> {
        &self.service
    }

    /// How attempts are repeated here.
    #[must_use]
    pub fn retry(&self) -> &Retry {
        &self.retry
    }

    /// The same service, with other patience.
    #[must_use]
    pub fn with_retry(&self, retry: Retry) -> Self {
        Self { service: Arc::clone(&self.service), retry }
    }

    /// An object and its version; `None` if there is none.
    ///
    /// # Errors
    /// `Refused`, `Invalid`, `Unknown` after the policy's time.
    pub fn get(&self, key: &str) -> Result<Option<Object>, ServiceError> {
        present(self.retry.run(|_| self.service.get(key)))
    }

    /// Bytes of an object, fewer than asked only at its end; `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Vec<u8>>, ServiceError> {
        present(self.retry.run(|_| self.service.get_range(key, range.clone())))
    }

    /// Removes an object. An object that does not exist is no error.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.retry.run(|_| self.service.remove(key))
    }

    /// A part of a list, as [`ObjectService::list`].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.retry.run(|_| self.service.list(prefix, after))
    }

    /// All objects whose keys begin with `prefix`, in the order of their keys. They are all in memory at once:
    /// use [`Self::list`] where there may be many.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn list_all(&self, prefix: &str) -> Result<Vec<ListedObject>, ServiceError> {
        let mut objects: Vec<ListedObject> = Vec::new();
        loop {
            let after = objects.last().map(|object| object.key.clone());
            let page = self.list(prefix, after.as_deref())?;
            let more = page.more && !page.objects.is_empty();
            objects.extend(page.objects);
            if !more {
                return Ok(objects);
            }
        }
    }

    /// Stores an object that must be new. Bytes that are there already count as stored, whoever stored them.
    ///
    /// # Errors
    /// `Exists` for other bytes; those of [`Self::get`].
    pub fn create(&self, key: &str, bytes: &[u8]) -> Result<Version, CreateError> {
        // A request that was sent and not settled is read back before anything is sent again.
        let mut unsettled = None;
        let outcome = self.retry.run(|_| {
            if unsettled.is_none() {
                match self.service.put(key, bytes, &Condition::Absent) {
                    Err(error @ (ServiceError::Conflict | ServiceError::Unknown(_))) => {
                        unsettled = Some(error);
                    }
                    outcome => return outcome.map(Ok),
                }
            }
            match self.service.get(key) {
                Ok(object) if object.bytes == bytes => Ok(Ok(object.version)),
                Ok(object) => Ok(Err(CreateError::Exists(object))),
                // Nothing was stored until now, so the same bytes are sent again.
                Err(ServiceError::Absent) => Err(again(unsettled.take())),
                Err(error) => Err(error),
            }
        });
        outcome?
    }

    /// Stores an object in place of whatever the key has. Only for keys that never have two contents: a
    /// request that seemed to fail may take effect after a later one.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<Version, ServiceError> {
        self.retry.run(|_| match self.service.put(key, bytes, &Condition::None) {
            Err(error @ ServiceError::Conflict) => Err(again(Some(error))),
            outcome => outcome,
        })
    }

    /// How messages name an object.
    #[must_use]
    pub fn show(&self, key: &str) -> String {
        self.service.show(key)
    }
}

/// The error with which an attempt is repeated after another one that stored nothing.
fn again(error: Option<ServiceError>) -> ServiceError {
    match error {
        Some(error @ ServiceError::Unknown(_)) => error,
        _ => ServiceError::Unknown(
            "the service refuses to store an object because of one that does not exist".to_string(),
        ),
    }
}

fn present<T>(outcome: Result<T, ServiceError>) -> Result<Option<T>, ServiceError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(ServiceError::Absent) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "settled_tests.rs"]
mod tests;
