//! `[pool/[namespace/]]image[@snap]`, read as `rbd` reads it.
//!
//! `rbd` matches the whole argument against one of three patterns, depending on whether it
//! must name something that exists, an image to create, or a snapshot to create. If a pattern matches in
//! several ways, pool and namespace are preferred over none. So `a/b/c/d` is image `c/d` of `a/b` if it
//! must exist, and no valid name of an image to create.

use marcot::{ImageName, Namespace};

/// Which pattern an argument must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Something that must exist: `a@b@c` is snapshot `b@c`.
    Existing,
    /// An image being created: no `/` or `@` in any name.
    NewImage,
    /// A snapshot being created: no `/` or `@` in its name.
    NewSnapshot,
}

/// The parts of a spec; `None` for a part that the argument did not have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    /// Pool.
    pub pool: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Image; never empty.
    pub image: String,
    /// Snapshot.
    pub snap: Option<String>,
}

impl Spec {
    /// The parts of `text`, or `None` if it does not match.
    pub fn parse(text: &str, pattern: Pattern) -> Option<Self> {
        let pool_ends = text.find('/').filter(|end| pool_valid(&text[..*end], pattern));
        if let Some(pool_end) = pool_ends {
            let pool = &text[..pool_end];
            let rest = &text[pool_end + 1..];
            let with_namespace = rest
                .split_once('/')
                .filter(|(ns, _)| !ns.is_empty() && !ns.contains('@'))
                .and_then(|(ns, tail)| {
                    Self::parse_image(tail, pattern).map(|s| s.within(pool, ns))
                });
            let in_pool = || Self::parse_image(rest, pattern).map(|s| s.within(pool, ""));
            if let Some(spec) = with_namespace.or_else(in_pool) {
                return Some(spec);
            }
        }
        Self::parse_image(text, pattern)
    }

    fn parse_image(text: &str, pattern: Pattern) -> Option<Self> {
        let (image, snap) = match text.split_once('@') {
            Some((image, snap)) => (image, Some(snap)),
            None => (text, None),
        };
        let image_bad = image.is_empty() || (pattern == Pattern::NewImage && image.contains('/'));
        let snap_bad = snap.is_some_and(|s| {
            s.is_empty() || (pattern != Pattern::Existing && s.contains(['/', '@']))
        });
        if image_bad || snap_bad {
            return None;
        }
        Some(Self { image: image.to_string(), snap: snap.map(str::to_string), ..Self::default() })
    }

    fn within(mut self, pool: &str, namespace: &str) -> Self {
        self.pool = Some(pool.to_string());
        self.namespace = (!namespace.is_empty()).then(|| namespace.to_string());
        self
    }
}

fn pool_valid(pool: &str, pattern: Pattern) -> bool {
    !pool.is_empty() && (pattern != Pattern::NewImage || !pool.contains('@'))
}

/// A pool with an optional namespace: `pool`, `pool/`, `pool/namespace`. The last slash divides, as with `rbd`; a
/// pool that still has one in its name is not found later.
///
/// # Errors
/// `rbd`'s sentence for an invalid namespace.
pub fn parse_pool(text: &str) -> Result<(String, Option<String>), String> {
    let (pool, namespace) = text.rsplit_once('/').unwrap_or((text, ""));
    check_namespace(namespace)?;
    Ok((pool.to_string(), (!namespace.is_empty()).then(|| namespace.to_string())))
}

/// Refuses a namespace that cannot be.
///
/// # Errors
/// `rbd`'s sentence.
pub fn check_namespace(namespace: &str) -> Result<(), String> {
    match namespace.contains(['/', '@']) {
        true => Err(format!("invalid namespace '{namespace}'")),
        false => Ok(()),
    }
}

/// `pool/[namespace/]image[@snap]`.
pub fn show(pool: &str, namespace: &Namespace, image: &str, snap: &str) -> String {
    let image = ImageName::new(image).in_namespace(namespace);
    let snap = if snap.is_empty() { String::new() } else { format!("@{snap}") };
    format!("{pool}/{image}{snap}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str, pattern: Pattern) -> Option<String> {
        Spec::parse(text, pattern).map(|s| {
            let or_dash = |o: Option<String>| o.unwrap_or_else(|| "-".into());
            format!("{} {} {} {}", or_dash(s.pool), or_dash(s.namespace), s.image, or_dash(s.snap))
        })
    }

    #[test]
    fn existing_things_are_matched_generously() {
        for (text, expected) in [
            ("a", Some("- - a -")),
            ("a@b@c", Some("- - a b@c")),
            ("rbd/", Some("- - rbd/ -")),
            ("/a", Some("- - /a -")),
            ("rbd//a", Some("rbd - /a -")),
            ("p/a@s", Some("p - a s")),
            ("a/b/c/d", Some("a b c/d -")),
            ("p/ns/i@s", Some("p ns i s")),
            ("a@", None),
            ("@a", None),
            ("", None),
        ] {
            assert_eq!(parts(text, Pattern::Existing).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn new_names_are_matched_strictly() {
        for text in ["rbd/", "/x", "@x", "x@", "a/b/c/d", "x@y@z"] {
            assert_eq!(parts(text, Pattern::NewImage), None, "{text}");
        }
        assert_eq!(parts("p/n/i", Pattern::NewImage).as_deref(), Some("p n i -"));
        for text in ["i@a@b", "i@"] {
            assert_eq!(parts(text, Pattern::NewSnapshot), None, "{text}");
        }
        assert_eq!(parts("i@a/b", Pattern::NewSnapshot).as_deref(), Some("i@a - b -"));
    }

    #[test]
    fn pools_take_a_namespace() {
        assert_eq!(parse_pool("p"), Ok(("p".into(), None)));
        assert_eq!(parse_pool("p/"), Ok(("p".into(), None)));
        assert_eq!(parse_pool("p/n"), Ok(("p".into(), Some("n".into()))));
        assert_eq!(parse_pool("rbd/a/b"), Ok(("rbd/a".into(), Some("b".into()))));
        assert_eq!(parse_pool("/"), Ok((String::new(), None)));
        assert_eq!(parse_pool("rbd/with@at"), Err("invalid namespace 'with@at'".into()));
        assert_eq!(show("p", &Namespace::named("n"), "i", "s"), "p/n/i@s");
    }
}
