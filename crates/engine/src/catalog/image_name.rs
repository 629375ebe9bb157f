//! What an image is called inside its pool.

use std::fmt;

/// A namespace of a pool: one that has a name, or the default one, which has none.
///
/// ```
/// use marcot::Namespace;
///
/// assert_eq!(Namespace::named("ci").name(), Some("ci"));
/// assert_eq!(Namespace::DEFAULT.name(), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Option<String>);

impl Namespace {
    /// The one that every pool has.
    pub const DEFAULT: Self = Self(None);

    /// The namespace with a name. Where a command line or a record of RBD's has an empty name, the default
    /// one is meant.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self(Some(name.into()).filter(|name| !name.is_empty()))
    }

    /// Its name; `None` for the default one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// True for the one that every pool has.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0.is_none()
    }

    /// As records have it: empty for the default one.
    pub(crate) fn in_records(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

/// As [`Namespace::named`].
impl From<&str> for Namespace {
    fn from(name: &str) -> Self {
        Self::named(name)
    }
}

/// As [`Namespace::named`].
impl From<String> for Namespace {
    fn from(name: String) -> Self {
        Self::named(name)
    }
}

impl From<&Self> for Namespace {
    fn from(namespace: &Self) -> Self {
        namespace.clone()
    }
}

/// Its name; nothing for the default one.
impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.in_records())
    }
}

/// What an image is called inside its pool: a namespace and a name.
///
/// Text alone is a name in the default namespace, so that most callers write `pool.find_in("vm-1")`.
///
/// ```
/// use marcot::ImageName;
///
/// let name = ImageName::new("vm-1").in_namespace("ci");
/// assert_eq!(name.to_string(), "ci/vm-1");
/// assert_eq!(ImageName::from("vm-1"), ImageName::new("vm-1"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    namespace: Namespace,
    name: String,
}

impl ImageName {
    /// A name in the default namespace.
    pub fn new(name: impl Into<String>) -> Self {
        Self { namespace: Namespace::DEFAULT, name: name.into() }
    }

    /// The same name in a namespace.
    #[must_use]
    pub fn in_namespace(self, namespace: impl Into<Namespace>) -> Self {
        Self { namespace: namespace.into(), ..self }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The name in it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl From<&str> for ImageName {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for ImageName {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl From<&String> for ImageName {
    fn from(name: &String) -> Self {
        Self::new(name)
    }
}

impl From<&Self> for ImageName {
    fn from(name: &Self) -> Self {
        name.clone()
    }
}

/// `NAMESPACE/NAME`, or `NAME` in the default one.
impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.name() {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_namespace_has_no_name_and_every_other_has_one() {
        let ci = Namespace::named("ci");
        for default in [Namespace::DEFAULT, Namespace::named(""), Namespace::from(String::new())] {
            assert!(default.is_default() && default == Namespace::default());
            assert_eq!((default.name(), &*default.to_string()), (None, ""));
        }
        for named in [Namespace::from("ci"), Namespace::from("ci".to_owned()), (&ci).into()] {
            assert!(!named.is_default() && named == ci);
            assert_eq!((named.name(), &*named.to_string()), (Some("ci"), "ci"));
        }
    }

    #[test]
    fn names_are_shown_as_people_write_them() {
        let plain = ImageName::new("vm");
        assert_eq!(plain.to_string(), "vm");
        assert_eq!(plain.clone().in_namespace("ci").to_string(), "ci/vm");
        for same in [ImageName::from("vm"), "vm".to_owned().into(), (&"vm".to_owned()).into()] {
            assert_eq!(same, plain);
        }
        assert_eq!(ImageName::from(&plain), plain);
    }
}
