//! What users note about an image: metadata, features, a limit for snapshots, advisory locks.

use marcot::{Error, ErrorKind, LockInfo, Result};
use marcot_serve::control::{Command, Execute as _};

use crate::configuration::{METADATA_PREFIX, Scope, check};
use crate::image::Image;
use crate::operation::Operation;

/// With this feature, an image has one writer at a time.
const EXCLUSIVE_LOCK: &str = "exclusive-lock";

/// The name of the lock that a process holds while it has an image open for writing. The process's number
/// follows.
const AUTOMATIC: &str = "auto ";

impl Image {
    /// Sets a key of the image's metadata. Keys that begin with [`METADATA_PREFIX`] are configuration. An empty
    /// value removes the key.
    ///
    /// # Errors
    /// `Invalid` for an empty or too long key or value, and for configuration that RBD refuses; `ReadOnly` for
    /// an image that is locked; `Owned` for an owner that cannot be reached; `Interrupted`.
    pub fn set_metadata(&self, key: &str, value: &str) -> Result<()> {
        let command = Command::MetaSet { key: key.to_owned(), value: value.to_owned() };
        self.operate(Operation::SetMetadata, || {
            if let Some(name) = key.strip_prefix(METADATA_PREFIX) {
                check(name, Scope::Image, value)?;
            }
            self.run(&command, &mut |_, _| {})
        })
    }

    /// Removes a key of the image's metadata.
    ///
    /// # Errors
    /// `NotFound`; those of [`Self::set_metadata`].
    pub fn remove_metadata(&self, key: &str) -> Result<()> {
        self.operate(Operation::SetMetadata, || {
            let metadata = self.engine_pool().info(self.id())?.metadata;
            if !metadata.iter().any(|(there, _)| there == key) {
                let message = format!("no existing metadata key {key} of image");
                return Err(Error::new(ErrorKind::NotFound, message));
            }
            let command = Command::MetaSet { key: key.to_owned(), value: String::new() };
            self.run(&command, &mut |_, _| {})
        })
    }

    /// The image's metadata: keys and values.
    ///
    /// # Errors
    /// As [`Self::info`].
    pub fn metadata(&self) -> Result<Vec<(String, String)>> {
        Ok(self.info()?.metadata)
    }

    /// Enables or disables features by name.
    ///
    /// # Errors
    /// `Invalid` as RBD refuses it; `ReadOnly` for an image that is locked; `Owned` for an owner that cannot be
    /// reached; `Interrupted`.
    pub fn change_features(&self, names: &[String], enable: bool) -> Result<()> {
        let command = Command::FeaturesChange { names: names.to_vec(), enable };
        self.operate(Operation::ChangeFeatures, || self.run(&command, &mut |_, _| {}))
    }

    /// Sets the most snapshots that there may be; `None`: as many as the format allows.
    ///
    /// # Errors
    /// `OutOfRange` where there are more already; `ReadOnly` for an image that is locked; `Owned` for an owner
    /// that cannot be reached; `Interrupted`.
    pub fn limit_snapshots(&self, limit: Option<u64>) -> Result<()> {
        let command = Command::SnapLimit { limit };
        self.operate(Operation::LimitSnapshots, || self.run(&command, &mut |_, _| {}))
    }

    /// The locks of the image: those that were added, or the one that its owner holds while the image is open
    /// for writing.
    ///
    /// # Errors
    /// As [`Self::info`] and [`Self::status`].
    pub fn locks(&self) -> Result<Vec<LockInfo>> {
        self.operate(Operation::ListLocks, || {
            let info = self.engine_pool().info(self.id())?;
            if !info.locks.is_empty() || !has_exclusive_lock(&info.features) {
                return Ok(info.locks);
            }
            Ok(info.owned_by.map(automatic).into_iter().collect())
        })
    }

    /// Notes an advisory lock. While an image with the feature `exclusive-lock` has one, nobody writes it.
    ///
    /// # Errors
    /// `Busy`, `Owned` where somebody has another lock or the image open; `Exists`; `Interrupted`.
    pub fn add_lock(&self, lock: &LockInfo) -> Result<()> {
        let command = Command::LockAdd { lock: lock.clone().into() };
        self.operate(Operation::ChangeLocks, || {
            let info = self.engine_pool().info(self.id())?;
            if !has_exclusive_lock(&info.features) {
                return self.run(&command, &mut |_, _| {});
            }
            // Who has the image open holds its lock.
            let mut image = self.for_itself(|| self.engine_pool().open(self.id()))?;
            let outcome = image.execute(&command, &mut |_, _| {}).map(drop);
            outcome.and(image.close())
        })
    }

    /// Removes an advisory lock, whoever holds it. The lock that an owner holds stays until it closes the image.
    ///
    /// # Errors
    /// `NotFound`; `Owned` for the lock of an owner; `Interrupted`.
    pub fn remove_lock(&self, client: u64, cookie: &str) -> Result<()> {
        let command = Command::LockRemove { client, cookie: cookie.to_owned() };
        self.operate(Operation::ChangeLocks, || {
            let owner = self.engine_pool().info(self.id())?.owned_by.map(automatic);
            if owner.is_some_and(|held| held.client == client && held.cookie == cookie) {
                let message =
                    format!("process {client} has the image open; end it, or unmap its device");
                return Err(Error::new(ErrorKind::Owned, message));
            }
            self.run(&command, &mut |_, _| {})
        })
    }
}

fn has_exclusive_lock(features: &str) -> bool {
    features.split(',').any(|name| name == EXCLUSIVE_LOCK)
}

/// The lock of a process that has an image open for writing.
fn automatic(pid: u32) -> LockInfo {
    LockInfo {
        client: u64::from(pid),
        cookie: format!("{AUTOMATIC}{pid}"),
        address: address_of(pid),
        shared: false,
        tag: String::new(),
    }
}

/// Stands in the place of a network address, since the process is on this host.
#[must_use]
pub fn address_of(pid: u32) -> String {
    format!("127.0.0.1:0/{pid}")
}
