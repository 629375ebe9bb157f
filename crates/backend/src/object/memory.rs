//! A service that keeps objects in the memory of the process, for tests. It never fails.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::service::{Condition, ListedObject, Object, ObjectService, Page, ServiceError, Version};

/// Objects in a list, as S3 does it.
const PAGE_OBJECTS: usize = 1000;

/// See the module.
#[derive(Default)]
pub struct MemoryService(Mutex<State>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    versions: u64,
}

impl MemoryService {
    /// A service without objects.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObjectService for MemoryService {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        let state = self.state();
        let (bytes, version) = state.objects.get(key).ok_or(ServiceError::Absent)?;
        Ok(Object { bytes: bytes.clone(), version: Version(version.to_string()) })
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        let state = self.state();
        let (bytes, _) = state.objects.get(key).ok_or(ServiceError::Absent)?;
        let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(bytes.len());
        let start = usize::try_from(range.start).unwrap_or(usize::MAX).min(end);
        Ok(bytes[start..end].to_vec())
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        let mut state = self.state();
        let found = state.objects.get(key).map(|(_, version)| version.to_string());
        let holds = match condition {
            Condition::None => true,
            Condition::Absent => found.is_none(),
            Condition::Is(version) => found.as_ref() == Some(&version.0),
        };
        if !holds {
            return Err(ServiceError::Conflict);
        }
        state.versions += 1;
        let version = state.versions;
        state.objects.insert(key.to_string(), (bytes.to_vec(), version));
        Ok(Version(version.to_string()))
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.state().objects.remove(key);
        Ok(())
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        let state = self.state();
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_string()),
            _ => Bound::Included(prefix.to_string()),
        };
        let below = state.objects.range((start, Bound::Unbounded));
        let mut found = below.take_while(|(key, _)| key.starts_with(prefix));
        let objects = found.by_ref().take(PAGE_OBJECTS).map(|(key, (bytes, _))| ListedObject {
            key: key.clone(),
            bytes: bytes.len() as u64,
            stored_s: 0,
        });
        let objects = objects.collect();
        Ok(Page { objects, more: found.next().is_some() })
    }

    fn show(&self, key: &str) -> String {
        format!("memory:{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_and_lists_go_on_behind_a_key() {
        let service = MemoryService::new();
        let first = service.put("a/1", b"x", &Condition::Absent).unwrap();
        assert_eq!(service.put("a/1", b"y", &Condition::Absent), Err(ServiceError::Conflict));
        let second = service.put("a/1", b"y", &Condition::Is(first.clone())).unwrap();
        assert_eq!(service.put("a/1", b"z", &Condition::Is(first)), Err(ServiceError::Conflict));
        assert_eq!(service.get("a/1").unwrap(), Object { bytes: b"y".into(), version: second });
        for i in 0..PAGE_OBJECTS + 5 {
            service.put(&format!("b/{i:05}"), b"", &Condition::None).unwrap();
        }
        let page = service.list("b/", None).unwrap();
        assert!(page.more);
        let last = page.objects.last().unwrap().key.clone();
        let rest = service.list("b/", Some(&last)).unwrap();
        assert!(!rest.more);
        assert_eq!(page.objects.len() + rest.objects.len(), PAGE_OBJECTS + 5);
        assert_eq!(service.list("a/", None).unwrap().objects.len(), 1);
        assert_eq!(service.get_range("a/1", 0..9).unwrap(), b"y");
        service.remove("a/1").unwrap();
        service.remove("a/1").unwrap();
        assert_eq!(service.get("a/1"), Err(ServiceError::Absent));
    }
}
