//! Images and snapshots of pools, as exports of the NBD server.
//!
//! Names are `pool/image`, `pool/namespace/image`, and `...@snap` for a snapshot, which is
//! read-only. The pool may be left out for images of the default pool.

use marcot::{BlockDevice, Error, ErrorKind, Pool, Result, Store};
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};
use marcot_serve::nbd::{ExportName, Exports};

use crate::args::names::DEFAULT_POOL;
use crate::incoming;
use crate::spec::{self, Pattern, Spec};

/// The exports of a store.
pub struct StoreExports {
    store: Store,
    /// Only these pools; all where empty.
    pools: Vec<String>,
    read_only: bool,
}

impl StoreExports {
    /// Exports the images of `pools`, or of all pools where that is empty.
    pub fn new(store: Store, pools: Vec<String>, read_only: bool) -> Self {
        Self { store, pools, read_only }
    }

    fn chosen(&self, pool: &str) -> bool {
        self.pools.is_empty() || self.pools.iter().any(|name| name == pool)
    }

    fn pool_of(&self, spec: &Spec) -> Result<Pool> {
        self.open_pool(spec.pool.as_deref().unwrap_or(DEFAULT_POOL))
    }

    fn open_pool(&self, name: &str) -> Result<Pool> {
        if !self.chosen(name) {
            let message = format!("pool '{name}' is not served");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        self.store.pool(name)
    }

    /// Adds the images of a pool. What cannot be read is left out, and the log says so: others must
    /// not be hidden by it.
    fn list_pool(&self, name: &str, names: &mut Vec<ExportName>) {
        let left_out = |namespace: &str, error: &Error| {
            let error = error.to_string();
            tracing::warn!(pool = name, namespace, error, "left out of the list of exports");
        };
        let pool = match self.open_pool(name) {
            Ok(pool) => pool,
            Err(error) => return left_out("", &error),
        };
        let others = pool.namespaces().unwrap_or_else(|error| {
            left_out("", &error);
            Vec::new()
        });
        for namespace in std::iter::once(String::new()).chain(others) {
            if let Err(error) = list_namespace(&pool, &namespace, names) {
                left_out(&namespace, &error);
            }
        }
    }
}

/// The parts of an export's name; the pool is always there.
fn parts(name: &str) -> Result<Spec> {
    let bad = || Error::new(ErrorKind::Invalid, format!("'{name}' names no image"));
    let mut spec = Spec::parse(name, Pattern::NewImage).ok_or_else(bad)?;
    spec.pool.get_or_insert_with(|| DEFAULT_POOL.to_string());
    Ok(spec)
}

fn full_name(spec: &Spec) -> String {
    spec::show(
        spec.pool.as_deref().unwrap_or(DEFAULT_POOL),
        spec.namespace.as_deref().unwrap_or_default(),
        &spec.image,
        spec.snap.as_deref().unwrap_or_default(),
    )
}

/// Adds the images of one namespace, and their snapshots.
fn list_namespace(pool: &Pool, namespace: &str, names: &mut Vec<ExportName>) -> Result<()> {
    for (image, id) in pool.images(namespace)? {
        if incoming::is_partial(&image) {
            continue;
        }
        let name = |snap: &str| ExportName {
            name: spec::show(pool.name(), namespace, &image, snap),
            ..ExportName::default()
        };
        names.push(name(""));
        // An image that was removed since, or that cannot be read, has no snapshots to show.
        let snapshots = pool.info(id).map(|info| info.snapshots).unwrap_or_default();
        names.extend(snapshots.iter().filter(|s| !s.trashed).map(|s| name(&s.name)));
    }
    Ok(())
}

impl Exports for StoreExports {
    fn list(&self) -> Result<Vec<ExportName>> {
        let mut names = Vec::new();
        let pools = self.store.pools()?;
        pools.iter().filter(|p| self.chosen(p)).for_each(|p| self.list_pool(p, &mut names));
        Ok(names)
    }

    fn describe(&self, name: &str) -> Result<ExportName> {
        Ok(ExportName { name: full_name(&parts(name)?), ..ExportName::default() })
    }

    fn pool(&self, name: &str) -> String {
        parts(name).ok().and_then(|spec| spec.pool).unwrap_or_default()
    }

    fn identify(&self, name: &str) -> Result<String> {
        let spec = parts(name)?;
        let pool = self.pool_of(&spec)?;
        let id = pool.find(spec.namespace.as_deref().unwrap_or_default(), &spec.image)?;
        let image = format!("{}/{id}", pool.id());
        let Some(name) = spec.snap else { return Ok(image) };
        let snapshots = pool.info(id)?.snapshots;
        match snapshots.iter().find(|s| s.name == name && !s.trashed) {
            Some(snap) => Ok(format!("{image}@{}", snap.id)),
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no snapshot '{name}'"))),
        }
    }

    fn open(&self, name: &str) -> Result<HostHandle> {
        let spec = parts(name)?;
        let pool = self.pool_of(&spec)?;
        let id = pool.find(spec.namespace.as_deref().unwrap_or_default(), &spec.image)?;
        let mut options = HostOptions { name: name.to_string(), ..HostOptions::default() };
        let device: Box<dyn BlockDevice> = match &spec.snap {
            Some(snap) => Box::new(pool.open_snapshot(id, snap)?),
            None if self.read_only || pool.read_only() => Box::new(pool.open_read_only(id)?),
            None => {
                options.control_directory = Some(pool.image_directory(id));
                Box::new(pool.open(id)?)
            }
        };
        ImageHost::start(device, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_canonical() {
        for (given, full) in [("vm", "rbd/vm"), ("p/vm@s", "p/vm@s"), ("p/n/vm", "p/n/vm")] {
            assert_eq!(full_name(&parts(given).unwrap()), full);
        }
        for bad in ["", "/vm", "p/n/m/vm", "vm@", "a@b@c"] {
            assert_eq!(parts(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
