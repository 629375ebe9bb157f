//! What has become of mapped devices since their records were written: some are gone, and the images of
//! others have other names.

use std::collections::HashMap;
use std::path::PathBuf;

use marcot::{ImageId, Limits, Store, World};
use marcot_serve::mapping::{self, MappedRecord, Registry};

/// Clears what is left of a device that is gone, with its server; false where there is a device, or a
/// process or command that is at work on it.
pub(super) fn cleared(registry: &Registry, record: &MappedRecord) -> bool {
    let gone = || !mapping::is_shown(record, registry);
    if !gone() || !matches!(registry.server(record.id), Ok(None)) {
        return false;
    }
    let Ok(Some(_held)) = registry.hold(record.id) else { return false };
    // Looked at once more: another command may have been at work until now.
    let same = matches!(registry.read(record.id), Ok(Some(now)) if now == *record);
    if !same || !gone() || !matches!(registry.server(record.id), Ok(None)) {
        return false;
    }
    let cleared = mapping::clear(record, registry, false).is_ok();
    if cleared {
        registry.remove(record.id);
    }
    cleared
}

/// Gives a record and the device's link the names that the image has now.
pub(super) fn follow_names(registry: &Registry, record: &mut MappedRecord, stores: &mut Stores) {
    // Where they cannot be told, those of the record are the best there are.
    let Some((namespace, image, snap)) = stores.names_now(record) else { return };
    if (&namespace, &image, &snap) == (&record.namespace, &record.image, &record.snap) {
        return;
    }
    (record.namespace, record.image, record.snap) = (namespace, image, snap);
    let link = mapping::link_of(&record.pool, &record.namespace, &record.image, &record.snap);
    record.names.link(&record.device, &link);
    if registry.write(record).is_err() {
        tracing::debug!(id = record.id, "the record keeps the old name");
    }
}

/// The stores that images are mapped from, each opened once.
pub(super) struct Stores {
    limits: Limits,
    open: HashMap<PathBuf, Option<Store>>,
}

impl Stores {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, open: HashMap::new() }
    }

    /// Namespace, image and snapshot of a device, as they are called now.
    fn names_now(&mut self, record: &MappedRecord) -> Option<(String, String, String)> {
        let limits = self.limits;
        let open = || Store::open_with(World::system(), &record.store, limits).ok();
        let store = self.open.entry(record.store.clone()).or_insert_with(open).as_ref()?;
        let info = store.pool(&record.pool).ok()?.info(ImageId(record.image_number)).ok()?;
        let snap = match record.snap.is_empty() {
            true => String::new(),
            false => info.snapshots.into_iter().find(|s| s.id.0 == record.snap_number)?.name,
        };
        Some((info.namespace.to_string(), info.name, snap))
    }
}
