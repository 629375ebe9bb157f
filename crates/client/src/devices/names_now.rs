//! Updates the records of mapped devices: some devices are gone since a record was written, and the images of
//! others were renamed.

use std::collections::HashMap;
use std::path::PathBuf;

use marcot::{ImageId, Limits, Store, World};
use marcot_serve::mapping::{self, MappedRecord, Registry};

/// Removes the remains of a device that is gone and whose server has ended. Returns false while the device, its
/// server, or a command that works on it still exists.
pub(super) fn cleared(registry: &Registry, record: &MappedRecord) -> bool {
    let gone = || !mapping::is_shown(record, registry);
    if !gone() || !matches!(registry.server(record.id), Ok(None)) {
        return false;
    }
    let Ok(Some(_held)) = registry.hold(record.id) else { return false };
    // Read it once more: another command may have worked on it until now.
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

/// Updates a record and the device's link to the current names of the image.
pub(super) fn follow_names(registry: &Registry, record: &mut MappedRecord, stores: &mut Stores) {
    // If the current names cannot be read, those of the record stay.
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

/// The stores of the mapped images. Each is opened once.
pub(super) struct Stores {
    limits: Limits,
    open: HashMap<PathBuf, Option<Store>>,
}

impl Stores {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, open: HashMap::new() }
    }

    /// Current names of the namespace, image and snapshot that a device shows.
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
