//! Children in pools of other stores, known by the markers that they left in a pool of this store.
//!
//! A marker of this user names the directory of the child's pool. That pool is read, and not changed, if it
//! belongs to this user too. A directory that another user's marker names is never looked at.

use std::path::Path;
use std::sync::Arc;

use marcot_backend::{At, Key, Prefix, Records, unescape};
use marcot_format::ImageId;
use marcot_format::frame::{FrameKind, decode_message};
use marcot_format::record::{ChildRecord, HeadRecord, NameRecord, PoolRecord};

use super::image_name::Namespace;
use super::pool::{Pool, RECORD_BYTES_MAX};
use super::trash_name::trash_name;

/// Age in seconds from which a marker without an image is stale. A clone takes milliseconds between its
/// marker and its head.
const MARKER_STALE_S: i64 = 3600;

/// Name of the directory that holds a store's own pools.
const POOLS: &str = "pools";

/// A child's pool, namespace and name.
pub(crate) struct MarkedChild {
    pub pool: String,
    pub namespace: Namespace,
    pub name: String,
    pub in_trash: bool,
}

impl Pool {
    /// The pool that a marker of this user names; `None` where it cannot be opened, belongs to another
    /// user, or has another number.
    fn marked_pool(&self, marker: &ChildRecord) -> Option<Arc<dyn Records>> {
        if !Path::new(&marker.child_pool_directory).is_absolute() {
            return None;
        }
        let at = At::Elsewhere(marker.child_pool_directory.clone());
        let opened = self.store().inner.home.open(&at).ok().filter(|opened| opened.access.own)?;
        let records = opened.backend.records;
        let bytes = records.get(&Key::Pool, RECORD_BYTES_MAX).ok()?;
        let (pool, _): (PoolRecord, _) = decode_message(FrameKind::Pool, &bytes).ok()?;
        (pool.pool_id == marker.child_pool_id).then_some(records)
    }

    /// True for a marker of this user whose child is gone.
    pub(crate) fn marker_is_stale(&self, marker: &ChildRecord) -> bool {
        let Some(records) = self.marked_pool(marker) else { return false };
        let gone = records.exists(&Key::Head(ImageId(marker.child_image_id)));
        // Where the pool's images cannot be listed, a missing head proves nothing.
        records.list(&Prefix::Heads, &mut |_| false).is_ok()
            && matches!(gone, Ok(false))
            && self.now_s().saturating_sub(marker.created_s) > MARKER_STALE_S
    }

    /// The child that a marker of this user stands for, by its present names; `None` where its pool cannot
    /// be read.
    pub(crate) fn marked_child(&self, marker: &ChildRecord) -> Option<MarkedChild> {
        let records = self.marked_pool(marker)?;
        let image = ImageId(marker.child_image_id);
        let head = records.get(&Key::Head(image), RECORD_BYTES_MAX).ok()?;
        let (head, _): (HeadRecord, _) = decode_message(FrameKind::Head, &head).ok()?;
        if head.image_id != image.0 {
            return None;
        }
        let name_at = |key: &Key| -> Option<NameRecord> {
            let bytes = records.get(key, RECORD_BYTES_MAX).ok()?;
            Some(decode_message(FrameKind::Name, &bytes).ok()?.0)
        };
        let leads_here = |name: &String| {
            let key = Key::Name { namespace: head.namespace.clone(), name: name.clone() };
            name_at(&key).is_some_and(|record| record.image_id == image.0)
        };
        let hint = name_at(&Key::NameHint(image));
        let noted = hint.map(|hint| hint.name).filter(|name| !name.is_empty());
        let name = [Some(head.name.clone()), noted].into_iter().flatten().find(leads_here);
        let in_trash = name.is_none() && leads_here(&trash_name(image));
        let directory = Path::new(&marker.child_pool_directory);
        Some(MarkedChild {
            pool: pool_name(directory).unwrap_or_else(|| marker.child_pool_name.clone()),
            namespace: Namespace::named(head.namespace),
            name: name.unwrap_or(head.name),
            in_trash,
        })
    }
}

/// The name that a pool has in its own store, by its directory.
fn pool_name(directory: &Path) -> Option<String> {
    let in_store = directory.parent()?.file_name()? == POOLS;
    unescape(directory.file_name()?.to_str()?).filter(|_| in_store)
}
