//! The full name of an image or snapshot.

use std::fmt;
use std::str::FromStr;

use marcot::{Error, ErrorKind, ImageName, Namespace, Result};

use crate::spec::{self, Pattern, Spec};

/// The pool of a name without a pool.
pub const DEFAULT_POOL: &str = "rbd";

/// Pool, namespace, image, and perhaps a snapshot: `[pool/[namespace/]]image[@snapshot]`.
///
/// ```
/// use marcot_client::ImageSpec;
///
/// let spec = ImageSpec::parse("web/blue/vm-1@monday")?;
/// assert_eq!((spec.pool.as_str(), spec.namespace.name()), ("web", Some("blue")));
/// assert_eq!((spec.image.as_str(), spec.snapshot.as_deref()), ("vm-1", Some("monday")));
/// assert_eq!(ImageSpec::parse("vm-1")?.to_string(), "rbd/vm-1");
/// # Ok::<(), marcot_client::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageSpec {
    /// Pool.
    pub pool: String,
    /// Namespace.
    pub namespace: Namespace,
    /// Image.
    pub image: String,
    /// Snapshot; `None` for the image itself.
    pub snapshot: Option<String>,
}

impl ImageSpec {
    /// An image of a pool's default namespace.
    pub fn new(pool: impl Into<String>, image: impl Into<String>) -> Self {
        let (pool, image) = (pool.into(), image.into());
        Self { pool, namespace: Namespace::DEFAULT, image, snapshot: None }
    }

    /// Parses a name. Without a pool in it, the pool is [`DEFAULT_POOL`].
    ///
    /// # Errors
    /// `Invalid` for text that is no name of an image.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Invalid, format!("'{text}' names no image"));
        let spec = Spec::parse(text, Pattern::NewImage).ok_or_else(bad)?;
        Ok(Self {
            pool: spec.pool.unwrap_or_else(|| DEFAULT_POOL.to_owned()),
            namespace: spec.namespace.map(Namespace::named).unwrap_or_default(),
            image: spec.image,
            snapshot: spec.snap,
        })
    }

    /// The same image in a namespace.
    #[must_use]
    pub fn in_namespace(self, namespace: impl Into<Namespace>) -> Self {
        Self { namespace: namespace.into(), ..self }
    }

    /// A snapshot of the same image.
    #[must_use]
    pub fn at(self, snapshot: impl Into<String>) -> Self {
        Self { snapshot: Some(snapshot.into()), ..self }
    }

    /// What the image is called in its pool.
    #[must_use]
    pub fn name(&self) -> ImageName {
        ImageName::new(&*self.image).in_namespace(&self.namespace)
    }

    pub(crate) fn refuse_snapshot(&self) -> Result<()> {
        match self.snapshot {
            None => Ok(()),
            Some(_) => {
                let message = format!("'{self}' names a snapshot, where an image is wanted");
                Err(Error::new(ErrorKind::Invalid, message))
            }
        }
    }
}

impl FromStr for ImageSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot.as_deref().unwrap_or_default();
        f.write_str(&spec::show(&self.pool, &self.namespace, &self.image, snapshot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_displayed() {
        for (given, full) in [("vm", "rbd/vm"), ("p/vm@s", "p/vm@s"), ("p/n/vm", "p/n/vm")] {
            let spec = ImageSpec::parse(given).unwrap();
            assert_eq!(spec.to_string(), full);
            assert_eq!(full.parse::<ImageSpec>().unwrap(), spec);
        }
        let built = ImageSpec::new("p", "vm").in_namespace("n").at("s");
        assert_eq!(built.to_string(), "p/n/vm@s");
        for bad in ["", "/vm", "p/n/m/vm", "vm@", "a@b@c"] {
            assert_eq!(ImageSpec::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
