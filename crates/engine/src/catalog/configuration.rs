//! Configuration that users keep in the records of a store and of its pools.
//!
//! The engine stores keys and values, and gives them no meaning.

use marcot_backend::Part;
use marcot_format::frame::{FrameKind, encode_message};
use marcot_format::record::{ConfigRecord, MetaRecord, StoreRecord};

use super::level::refuse_newer;
use super::pool::Pool;
use super::store::{Store, decode_record};
use crate::error::{ErrorKind, IoContext, Result, fail};

/// Longest value in bytes. With some hundred keys, the records stay small.
const VALUE_BYTES_MAX: usize = 1 << 10;
/// Most values in a record.
const VALUES_MAX: usize = 1000;

/// A value that is set for all pools of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigEntry {
    /// For whom: `global`, `client`, `client.` and an id, or `mgr` for what the store does by itself.
    pub entity: String,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

fn check(key: &str, value: Option<&str>, count: usize) -> Result<()> {
    let long = |text: &str| text.len() > VALUE_BYTES_MAX;
    if key.is_empty() || long(key) || value.is_some_and(long) {
        return fail(ErrorKind::Invalid, "configuration keys and values have at most 1024 bytes");
    }
    if value.is_some() && count >= VALUES_MAX {
        return fail(ErrorKind::TooMany, format!("there are already {VALUES_MAX} values"));
    }
    Ok(())
}

impl Pool {
    /// The configuration of the pool's images: keys and values, by key.
    ///
    /// # Errors
    /// `Corrupt`, `NewerFormat`; what the operating system says.
    pub fn configuration(&self) -> Result<Vec<(String, String)>> {
        let config = self.record_now()?.0.config;
        let mut values: Vec<_> = config.into_iter().map(|m| (m.key, m.value)).collect();
        values.sort_unstable();
        Ok(values)
    }

    /// Sets a key of the configuration of the pool's images; `None` removes it.
    ///
    /// # Errors
    /// `NotFound` for a key to remove that is not set; `Invalid`, `TooMany`; `ReadOnly`; what the operating
    /// system says.
    pub fn configure(&self, key: &str, value: Option<&str>) -> Result<()> {
        self.change_configuration(key, |before| match (before, value) {
            (None, None) => fail(ErrorKind::NotFound, format!("{key} is not set")),
            _ => Ok(value.map(str::to_owned)),
        })
    }

    /// Changes a key in one step: `change` gets its value and returns the next one; `None` is a key that is not
    /// set. It is called again where another host has changed the record meanwhile.
    ///
    /// # Errors
    /// Those of `change`; `Invalid`, `TooMany`; `ReadOnly`; what the operating system says.
    pub fn change_configuration(
        &self,
        key: &str,
        mut change: impl FnMut(Option<&str>) -> Result<Option<String>>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        self.change_record(|record| {
            let before = record.config.iter().find(|m| m.key == key).map(|m| m.value.as_str());
            let next = change(before).and_then(|value| {
                check(key, value.as_deref(), record.config.len())?;
                Ok(value)
            });
            outcome = next.map(|value| {
                record.config.retain(|m| m.key != key);
                let value = value.map(|value| MetaRecord { key: key.to_owned(), value });
                record.config.extend(value);
            });
        })?;
        outcome
    }
}

impl Store {
    /// The configuration for all pools, by entity and key.
    ///
    /// # Errors
    /// `Corrupt`, `NewerFormat`; what the operating system says.
    pub fn configuration(&self) -> Result<Vec<ConfigEntry>> {
        let config = self.record_now()?.config;
        let entry = |ConfigRecord { entity, key, value }| ConfigEntry { entity, key, value };
        let mut entries: Vec<_> = config.into_iter().map(entry).collect();
        entries.sort_unstable_by(|a, b| (&a.entity, &a.key).cmp(&(&b.entity, &b.key)));
        Ok(entries)
    }

    /// Sets a key for all pools and `entity`; `None` removes it, if it is set.
    ///
    /// # Errors
    /// `Invalid`, `TooMany`; `PermissionDenied` in another user's store; what the operating system says.
    pub fn configure(&self, entity: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.change_configuration(entity, key, |_| Ok(value.map(str::to_owned)))
    }

    /// Changes a key in one step, as [`Pool::change_configuration`].
    ///
    /// # Errors
    /// Those of `change`, and of [`Self::configure`].
    pub fn change_configuration(
        &self,
        entity: &str,
        key: &str,
        change: impl FnOnce(Option<&str>) -> Result<Option<String>>,
    ) -> Result<()> {
        let _lock = self.lock("configure it")?;
        let before = self.record_now()?;
        let is_this = |c: &ConfigRecord| (c.entity.as_str(), c.key.as_str()) == (entity, key);
        let value = before.config.iter().find(|c| is_this(c)).map(|c| c.value.as_str());
        let value = change(value)?;
        check(key, value.as_deref(), before.config.len())?;
        let mut record = before.clone();
        record.config.retain(|c| !is_this(c));
        if let Some(value) = value {
            let (entity, key) = (entity.to_owned(), key.to_owned());
            record.config.push(ConfigRecord { entity, key, value });
        }
        if record == before {
            return Ok(());
        }
        let home = &self.inner.home;
        let stored = home.record().at(|| "cannot read the store's record".to_owned())?;
        refuse_newer(FrameKind::Store, &stored, &home.show(&Part::Record))?;
        let replaced = home.replace(&encode_message(FrameKind::Store, &record));
        replaced.at(|| "cannot change the store's record".to_owned())
    }

    fn record_now(&self) -> Result<StoreRecord> {
        let home = &*self.inner.home;
        decode_record(home, home.record())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_set_are_there_for_the_next_who_opens_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let pool = store.pool("rbd").unwrap();
        pool.configure("rbd_cache", Some("false")).unwrap();
        pool.configure("a", Some("1")).unwrap();
        pool.configure("a", Some("2")).unwrap();
        store.configure("client", "rbd_cache", Some("true")).unwrap();
        store.configure("global", "rbd_cache", Some("false")).unwrap();
        store.pool_init("rbd").unwrap();
        let again = Store::open(directory.path()).unwrap();
        let pairs = [("a", "2"), ("rbd_cache", "false")];
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(again.pool("rbd").unwrap().configuration().unwrap(), pairs);
        let entities: Vec<_> =
            again.configuration().unwrap().into_iter().map(|e| (e.entity, e.value)).collect();
        let global = ("global".to_owned(), "false".to_owned());
        assert_eq!(entities, [("client".to_owned(), "true".to_owned()), global]);
        pool.configure("a", None).unwrap();
        assert_eq!(pool.configure("a", None).unwrap_err().kind(), ErrorKind::NotFound);
        store.configure("client", "rbd_cache", None).unwrap();
        store.configure("client", "rbd_cache", None).unwrap();
        assert_eq!(again.configuration().unwrap().len(), 1);
        assert_eq!(again.pool("rbd").unwrap().configuration().unwrap().len(), 1);
    }

    #[test]
    fn long_values_and_too_many_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        for (key, value) in [("", "v"), (long.as_str(), "v"), ("k", long.as_str())] {
            let refused = pool.configure(key, Some(value)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Invalid);
        }
        assert!(check("k", Some("v"), VALUES_MAX).is_err());
        assert!(check("k", None, VALUES_MAX).is_ok());
    }
}
