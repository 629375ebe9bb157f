//! Names in the store, for the place behind the cursor.

use std::path::Path;

use marcot_client::{Client, DEFAULT_POOL, Image, Namespace, Pool};

use super::line::{Name, Snap, Wanted};
use crate::session::Session;

/// The names that are wanted. Where something cannot be read, it has none.
pub fn of(session: &Session, wanted: &Wanted) -> Vec<String> {
    let prefix = wanted.prefix.strip_prefix(&wanted.before).unwrap_or(&wanted.prefix);
    let mut found = Vec::new();
    for name in &wanted.names {
        if *name == Name::File {
            found.extend(files(prefix));
        } else if let Some(client) = session.quiet_client() {
            let look = Look { client, wanted, prefix };
            found.extend(look.names(*name).unwrap_or_default());
        }
    }
    found.into_iter().map(|name| format!("{}{name}", wanted.before)).collect()
}

struct Look<'a> {
    client: &'a Client,
    wanted: &'a Wanted,
    prefix: &'a str,
}

/// Where a name is looked up, and what stands before it in the word.
struct Place {
    pool: String,
    namespace: String,
    before: String,
}

impl Look<'_> {
    fn names(&self, name: Name) -> Option<Vec<String>> {
        match name {
            Name::Pool => self.client.pools().ok(),
            Name::PoolOrNamespace => self.pools_and_namespaces(),
            Name::Namespace => self.pool(self.pool_name())?.namespaces().ok(),
            Name::Image(snap) => self.specs(snap, &|pool, place| {
                let images = pool.images(&Namespace::named(place.namespace.as_str())).ok()?;
                Some(images.into_iter().map(|(name, _)| name).collect())
            }),
            Name::Group(snap) => self.specs(snap, &|pool, place| {
                pool.groups(&Namespace::named(place.namespace.as_str())).ok()
            }),
            Name::Snapshot => {
                let spec = self.wanted.image.as_deref()?;
                let (place, image) = self.place(spec.split('@').next().unwrap_or(spec));
                Some(snapshots(&self.image(&place, image)?))
            }
            Name::Trashed => {
                let (place, _) = self.place(self.prefix);
                let namespace = Namespace::named(place.namespace.as_str());
                let trash = self.pool(&place.pool)?.trash(&namespace).ok()?;
                Some(trash.iter().map(|image| format!("{}{}", place.before, image.id)).collect())
            }
            Name::Tail => {
                let pool = self.wanted.pool.as_deref().or(self.wanted.image.as_deref())?;
                let tails = self.pool(pool)?.tails().ok()?;
                Some(tails.into_iter().map(|tail| tail.name).collect())
            }
            Name::File => None,
        }
    }

    fn pool_name(&self) -> &str {
        self.wanted.pool.as_deref().unwrap_or(DEFAULT_POOL)
    }

    fn pool(&self, name: &str) -> Option<Pool> {
        self.client.pool(name).ok()
    }

    fn pools_and_namespaces(&self) -> Option<Vec<String>> {
        let Some((name, _)) = self.prefix.split_once('/') else { return self.client.pools().ok() };
        let namespaces = self.pool(name)?.namespaces().ok()?;
        Some(namespaces.iter().map(|namespace| format!("{name}/{namespace}")).collect())
    }

    /// Where a name like `POOL/NAMESPACE/NAME` lies, and its last part.
    fn place<'s>(&self, spec: &'s str) -> (Place, &'s str) {
        let parts: Vec<&str> = spec.split('/').collect();
        let place = |pool: &str, namespace: &str, before: String| Place {
            pool: pool.to_owned(),
            namespace: namespace.to_owned(),
            before,
        };
        match parts[..] {
            [pool, name] => (place(pool, "", format!("{pool}/")), name),
            [pool, namespace, name, ..] => {
                (place(pool, namespace, format!("{pool}/{namespace}/")), name)
            }
            _ => {
                let namespace = self.wanted.namespace.as_deref().unwrap_or_default();
                (place(self.pool_name(), namespace, String::new()), spec)
            }
        }
    }

    fn image(&self, place: &Place, name: &str) -> Option<Image> {
        let namespace = Namespace::named(place.namespace.as_str());
        let name = marcot_client::ImageName::new(name).in_namespace(namespace);
        self.pool(&place.pool)?.image(name).ok()
    }

    /// Names in a pool, with pools and namespaces as their beginnings.
    fn specs(
        &self,
        snap: Snap,
        list: &dyn Fn(&Pool, &Place) -> Option<Vec<String>>,
    ) -> Option<Vec<String>> {
        if let Some((spec, _)) = self.prefix.split_once('@') {
            if snap == Snap::No {
                return None;
            }
            let (place, name) = self.place(spec);
            let names = match self.wanted.names.first() {
                Some(Name::Group(_)) => {
                    let namespace = Namespace::named(place.namespace.as_str());
                    let group = self.pool(&place.pool)?.group(&namespace, name).info().ok()?;
                    group.snapshots.into_iter().map(|snapshot| snapshot.name).collect()
                }
                _ => snapshots(&self.image(&place, name)?),
            };
            return Some(names.into_iter().map(|snap| format!("{spec}@{snap}")).collect());
        }
        let (place, name) = self.place(self.prefix);
        let mut found = Vec::new();
        // Pools are found by a script that names none; so are namespaces.
        if place.before.is_empty() && self.wanted.pool.is_none() {
            let pools = self.client.pools().unwrap_or_default();
            found.extend(pools.into_iter().map(|pool| format!("{pool}/")));
        }
        let Some(pool) = self.pool(&place.pool) else { return Some(found) };
        if place.namespace.is_empty() && !place.before.is_empty() {
            let namespaces = pool.namespaces().unwrap_or_default();
            found.extend(namespaces.into_iter().map(|there| format!("{}{there}/", place.before)));
        }
        let end = if snap == Snap::Yes { "@" } else { "" };
        let names = list(&pool, &place).unwrap_or_default();
        let names = names.into_iter().filter(|there| there.starts_with(name));
        found.extend(names.map(|name| format!("{}{name}{end}", place.before)));
        Some(found)
    }
}

fn snapshots(image: &Image) -> Vec<String> {
    let snapshots = image.info().map(|info| info.snapshots).unwrap_or_default();
    snapshots.into_iter().filter(|snap| snap.group.is_none()).map(|snap| snap.name).collect()
}

/// Files that begin with a path; folders end with a slash.
fn files(prefix: &str) -> Vec<String> {
    let folder = prefix.rfind('/').map_or("", |end| &prefix[..=end]);
    let read = if folder.is_empty() { Path::new(".") } else { Path::new(folder) };
    let hidden = prefix[folder.len()..].starts_with('.');
    let Ok(entries) = std::fs::read_dir(read) else { return Vec::new() };
    let shown = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let end = if entry.path().is_dir() { "/" } else { "" };
        (hidden || !name.starts_with('.')).then(|| format!("{folder}{name}{end}"))
    });
    shown.collect()
}
