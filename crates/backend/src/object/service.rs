//! A service that keeps objects, such as S3: the few requests that a pool in a bucket needs.
//!
//! A request may fail in a way that says nothing about its effect: the answer may be lost, or say "error" after
//! the change was made. [`ServiceError::Unknown`] is the only answer for that. What the callers make of it
//! stands in [`super`].

use std::fmt;
use std::io;
use std::ops::Range;

/// Keeps objects: byte strings by key. All keys lie below the prefix of one pool.
///
/// Invariants that a service keeps, and that are probed before a pool is used:
/// - A request that was answered with success is durable, and every later request sees it.
/// - Of several requests with the condition [`Condition::Absent`] for one key, one succeeds at most, until the
///   key is removed.
/// - A request with [`Condition::Is`] succeeds only while the object has that version.
/// - A list shows every object that was stored before it began and not removed before it ended.
pub trait ObjectService: Send + Sync {
    /// An object and its version.
    ///
    /// # Errors
    /// `Absent`, `Refused`, `Invalid`, `Unknown`.
    fn get(&self, key: &str) -> Result<Object, ServiceError>;

    /// Bytes of an object; fewer than asked only at its end.
    ///
    /// # Errors
    /// `Absent`, `Refused`, `Invalid`, `Unknown`.
    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError>;

    /// Stores an object, if the condition holds. It is sent once: nothing below this call tries again.
    ///
    /// # Errors
    /// `Conflict` where the condition did not hold. `Unknown` also where the object may have been stored.
    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError>;

    /// Removes an object. An object that does not exist is no error.
    ///
    /// # Errors
    /// `Refused`, `Invalid`, `Unknown`.
    fn remove(&self, key: &str) -> Result<(), ServiceError>;

    /// Some of the objects whose keys begin with `prefix`, in the order of their keys, beginning behind the
    /// key `after`.
    ///
    /// # Errors
    /// `Refused`, `Invalid`, `Unknown`.
    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError>;

    /// How messages name an object: `s3://bucket/prefix/key`.
    fn show(&self, key: &str) -> String;

    /// True where the service has never answered this process, and has refused the last connection.
    fn is_unreached(&self) -> bool {
        false
    }
}

/// What must hold for an object to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: an object that exists is replaced.
    None,
    /// The object does not exist.
    Absent,
    /// The object has this version.
    Is(Version),
}

/// The version of an object: an ETag, or a generation. Only the service that gave it can read it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its version.
    pub version: Version,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was stored, in seconds since 1970, by the service's clock.
    pub stored_s: i64,
}

/// A part of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order of their keys.
    pub objects: Vec<ListedObject>,
    /// There are more behind the last one.
    pub more: bool,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceError {
    /// There is no such object.
    Absent,
    /// The condition did not hold. This request has changed nothing. (An earlier one that was answered with
    /// `Unknown` may be the reason.)
    Conflict,
    /// The service refuses this user or these credentials. One sentence.
    Refused(String),
    /// The request can never succeed as it is: no such bucket, wrong region, wrong endpoint. One sentence.
    Invalid(String),
    /// It is not known what became of the request. It may succeed when it is sent again. One sentence.
    Unknown(String),
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no such object"),
            Self::Conflict => f.write_str("the object was changed meanwhile"),
            Self::Refused(why) | Self::Invalid(why) | Self::Unknown(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ServiceError {}

impl From<ServiceError> for io::Error {
    fn from(error: ServiceError) -> Self {
        let kind = match &error {
            ServiceError::Absent => io::ErrorKind::NotFound,
            ServiceError::Conflict => io::ErrorKind::AlreadyExists,
            ServiceError::Refused(_) => io::ErrorKind::PermissionDenied,
            ServiceError::Invalid(_) => io::ErrorKind::InvalidInput,
            ServiceError::Unknown(_) => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}
