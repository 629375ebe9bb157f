//! Configuration in RBD's four levels: for all pools, for a pool, for an image, and for one command.

mod keys;
mod value;

use marcot::{ConfigEntry, Error, ErrorKind, Result};

use crate::client::Client;
use crate::image::Image;
use crate::operation::Operation;
use crate::pool::Pool;

pub use keys::{ConfigKey, Scope};
pub use value::Kind;

/// What the metadata keys of an image's configuration begin with, as with RBD.
pub const METADATA_PREFIX: &str = "conf_";
/// The entity for all who use the store.
pub const EVERYBODY: &str = "global";
/// The entity for all clients; those for one client begin with this and a dot.
pub const CLIENTS: &str = "client";

fn refused(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

/// The key with a name, if it can be set for `scope` and takes the value.
///
/// # Errors
/// `Invalid`, in Ceph's words.
pub fn check(name: &str, scope: Scope, value: &str) -> Result<&'static ConfigKey> {
    let key = ConfigKey::named(name).filter(|key| key.scope <= scope);
    let level = if scope == Scope::Image { "image" } else { "pool" };
    let key = key.ok_or_else(|| refused(format!("not allowed {level} level override")))?;
    key.kind.normal(value).map_err(refused)?;
    Ok(key)
}

/// True for an entity that configuration can be set for: `global`, `client`, or `client.` and an id.
#[must_use]
pub fn is_entity(text: &str) -> bool {
    text == EVERYBODY || text == CLIENTS || text.strip_prefix("client.").is_some()
}

impl Client {
    /// The configuration for all pools, by entity and key.
    ///
    /// # Errors
    /// `Corrupt`, `NewerFormat`; errors of the operating system.
    pub fn configuration(&self) -> Result<Vec<ConfigEntry>> {
        let read = || self.store().configuration();
        self.operate(Operation::ReadConfiguration, "", None, read)
    }

    /// Sets a key for all pools and an entity; `None` removes it, if it is set.
    ///
    /// # Errors
    /// `Invalid` for key, entity and value; `TooMany`; `PermissionDenied` in another user's store.
    pub fn configure(&self, entity: &str, name: &str, value: Option<&str>) -> Result<()> {
        self.operate(Operation::Configure, "", None, || {
            let key = ConfigKey::named(name)
                .ok_or_else(|| refused(format!("there is no configuration key '{name}'")))?;
            let value = value.map(|value| key.kind.normal(value).map_err(refused)).transpose()?;
            self.store().configure(entity, name, value.as_deref())
        })
    }
}

impl Pool {
    /// The configuration of the pool's images: keys and values, by key.
    ///
    /// # Errors
    /// `Corrupt`, `NewerFormat`; errors of the operating system.
    pub fn configuration(&self) -> Result<Vec<(String, String)>> {
        self.operate(Operation::ReadConfiguration, || self.engine().configuration())
    }

    /// Sets a key for the pool's images; `None` removes it.
    ///
    /// # Errors
    /// `Invalid` for key and value; `NotFound` for a key to remove that is not set; `ReadOnly`.
    pub fn configure(&self, name: &str, value: Option<&str>) -> Result<()> {
        self.operate(Operation::Configure, || {
            if let Some(value) = value {
                check(name, Scope::Pool, value)?;
            }
            self.engine().configure(name, value)
        })
    }
}

impl Image {
    /// Sets a key for the image; `None` removes it. RBD keeps it as metadata, and so does this.
    ///
    /// # Errors
    /// `Invalid` for key and value; `NotFound` for a key to remove that is not set; those of
    /// [`Image::set_metadata`].
    pub fn configure(&self, name: &str, value: Option<&str>) -> Result<()> {
        let metadata = format!("{METADATA_PREFIX}{name}");
        match value {
            Some(value) => self.set_metadata(&metadata, value),
            None => self.remove_metadata(&metadata),
        }
    }
}
