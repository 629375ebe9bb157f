//! The nearest pool, namespace, image or snapshot, where a command line names one that does not exist.
//!
//! This looks only after a command has failed, so it may take the time to read lists of names.

use marcot_client::spec::{self, Pattern, Spec};
use marcot_client::{Client, DEFAULT_POOL, Namespace, Pool};

use crate::args::suggest::nearest_of;
use crate::args::{Args, CommandSpec};
use crate::session::Session;

/// What a word of the command line names; empty where it names nothing of the kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Pool.
    pub pool: String,
    /// Namespace.
    pub namespace: String,
    /// Image.
    pub image: String,
    /// Snapshot.
    pub snap: String,
}

/// A line that names the nearest, if something does not exist that the command line names.
pub fn hint(session: &Session, command: &CommandSpec, args: &Args) -> Option<String> {
    let client = session.quiet_client()?;
    named(command, args).iter().find_map(|named| nearest(client, named))
}

/// The names on a command line, from those that the tables of commands call a specification.
pub fn named(command: &CommandSpec, args: &Args) -> Vec<Named> {
    let option = |name: &str| args.text(name).unwrap_or_default().to_string();
    let by_option = || Named {
        pool: option("pool"),
        namespace: option("namespace"),
        image: String::new(),
        snap: option("snap"),
    };
    let mut all = Vec::new();
    if let Some(image) = args.text("image") {
        all.push(by_option().with(image));
    }
    for (positional, word) in command.positionals.iter().zip(args.positionals()) {
        all.push(match positional.name {
            "pool-name" => Named { pool: word.clone(), ..Named::default() },
            "pool-spec" => {
                let Ok((pool, namespace)) = spec::parse_pool(word) else { continue };
                Named { pool, namespace: namespace.unwrap_or_default(), ..Named::default() }
            }
            // What is to be made does not exist.
            name if name.starts_with("dest-") => Named { image: String::new(), ..of_pool(word) },
            name if name.ends_with("image-spec") || name.contains("snap-spec") => {
                by_option().with(word)
            }
            _ => continue,
        });
    }
    if all.is_empty() {
        all.push(by_option());
    }
    all
}

/// Only the pool and namespace of a specification.
fn of_pool(word: &str) -> Named {
    let named = Named::default().with(word);
    Named { image: String::new(), snap: String::new(), ..named }
}

impl Named {
    /// The pool, or the default one.
    pub fn pool_or_default(&self) -> &str {
        if self.pool.is_empty() { DEFAULT_POOL } else { &self.pool }
    }

    /// The same with the parts of a specification, `[POOL/[NAMESPACE/]]IMAGE[@SNAP]`.
    fn with(mut self, word: &str) -> Self {
        let Some(spec) = Spec::parse(word, Pattern::Existing) else { return self };
        if let Some(pool) = spec.pool {
            (self.pool, self.namespace) = (pool, spec.namespace.unwrap_or_default());
        }
        self.image = spec.image;
        self.snap = spec.snap.unwrap_or(self.snap);
        self
    }
}

fn nearest(client: &Client, named: &Named) -> Option<String> {
    let said = |what: &str, name: String| Some(format!("did you mean the {what} '{name}'?"));
    let pool = named.pool_or_default();
    let pools = client.pools().ok()?;
    if !pools.iter().any(|name| name == pool) {
        return said("pool", nearest_of(pool, pools)?);
    }
    let pool = client.pool(pool).ok()?;
    if !named.namespace.is_empty() {
        let namespaces = pool.namespaces().ok()?;
        if !namespaces.contains(&named.namespace) {
            return said("namespace", nearest_of(&named.namespace, namespaces)?);
        }
    }
    nearest_in(&pool, named)
}

fn nearest_in(pool: &Pool, named: &Named) -> Option<String> {
    if named.image.is_empty() {
        return None;
    }
    let namespace = Namespace::named(named.namespace.as_str());
    let images = pool.images(&namespace).ok()?;
    let Some((name, id)) = images.iter().find(|(name, _)| *name == named.image) else {
        let names = images.into_iter().map(|(name, _)| name).collect();
        return Some(format!("did you mean the image '{}'?", nearest_of(&named.image, names)?));
    };
    if named.snap.is_empty() {
        return None;
    }
    let name = marcot_client::ImageName::new(name.as_str()).in_namespace(namespace);
    let snapshots = pool.known_image(name, *id).info().ok()?.snapshots;
    let names: Vec<String> = snapshots.into_iter().map(|snap| snap.name).collect();
    if names.contains(&named.snap) {
        return None;
    }
    Some(format!("did you mean the snapshot '{}'?", nearest_of(&named.snap, names)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_specification_are_told_apart() {
        let named = |word: &str| {
            let Named { pool, namespace, image, snap } = Named::default().with(word);
            [pool, namespace, image, snap].join("|")
        };
        assert_eq!(named("vm"), "||vm|");
        assert_eq!(named("rbd/vm@s"), "rbd||vm|s");
        assert_eq!(named("rbd/ns/vm"), "rbd|ns|vm|");
        assert_eq!(
            of_pool("rbd/ns/vm"),
            Named { pool: "rbd".into(), namespace: "ns".into(), ..Named::default() }
        );
    }
}
