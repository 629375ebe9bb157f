//! What can be told of a child in a pool of another store, whose marker lies in ours.
//!
//! A marker that one left oneself gives the directory of the child's pool. What lies there is only
//! looked at, where it is one's own too. Where other users' markers point to nobody looks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_format::ImageId;
use marcot_format::frame::{FrameKind, decode_message};
use marcot_format::record::{ChildRecord, HeadRecord, NameRecord, PoolRecord};
use marcot_store::{Disk, Trust};

use super::names::{DEFAULT_NAMESPACE, escape, unescape};
use super::pool::{Pool, read_file};

/// A marker whose image is not there is believed to be stale after this time; a clone takes
/// milliseconds between its marker and its head.
const MARKER_STALE_S: i64 = 3600;

/// Directory of a store's own pools.
const POOLS: &str = "pools";

/// A child's pool, namespace and name.
pub(super) struct MarkedChild {
    pub pool: String,
    pub namespace: String,
    pub name: String,
}

impl Pool {
    /// The disk for the pool that a marker of one's own says the child lies in; `None` where no such pool
    /// of one's own is there.
    fn marked_pool(&self, marker: &ChildRecord) -> Option<(Arc<dyn Disk>, PathBuf)> {
        let directory = PathBuf::from(&marker.child_pool_directory);
        if !directory.is_absolute() {
            return None;
        }
        let disk = &self.store().inner.world.disk;
        let confined = disk.confine(&directory, Trust::ByOwner).ok().filter(|made| made.own)?;
        let bytes = read_file(&*confined.disk, &directory.join("pool")).ok()?;
        let (pool, _): (PoolRecord, _) = decode_message(FrameKind::Pool, &bytes).ok()?;
        (pool.pool_id == marker.child_pool_id).then_some((confined.disk, directory))
    }

    /// True for a marker of one's own whose child is gone.
    pub(super) fn marker_is_stale(&self, marker: &ChildRecord) -> bool {
        let Some((disk, directory)) = self.marked_pool(marker) else { return false };
        let images = directory.join("images");
        let head = images.join(ImageId(marker.child_image_id).to_string()).join("head");
        disk.mode(&images).is_ok()
            && disk.mode(&head).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
            && self.now_s().saturating_sub(marker.created_s) > MARKER_STALE_S
    }

    /// The child that a marker of one's own speaks of, by its names now; `None` where its pool cannot be
    /// read.
    pub(super) fn marked_child(&self, marker: &ChildRecord) -> Option<MarkedChild> {
        let (disk, directory) = self.marked_pool(marker)?;
        let bytes_at = |path: PathBuf| read_file(&*disk, &path).ok();
        let image = ImageId(marker.child_image_id);
        let image_directory = directory.join("images").join(image.to_string());
        let head = bytes_at(image_directory.join("head"))?;
        let (head, _): (HeadRecord, _) = decode_message(FrameKind::Head, &head).ok()?;
        if head.image_id != image.0 {
            return None;
        }
        let name_at = |path: PathBuf| -> Option<NameRecord> {
            Some(decode_message(FrameKind::Name, &bytes_at(path)?).ok()?.0)
        };
        let note = name_at(image_directory.join("name"));
        let part = match head.namespace.as_str() {
            "" => DEFAULT_NAMESPACE.to_owned(),
            namespace => escape(namespace),
        };
        let names = directory.join("names").join(part);
        let leads_here = |name: &String| {
            name_at(names.join(escape(name))).is_some_and(|record| record.image_id == image.0)
        };
        let noted = note.map(|note| note.name).filter(|name| !name.is_empty());
        let name = [Some(head.name.clone()), noted].into_iter().flatten().find(leads_here);
        Some(MarkedChild {
            pool: pool_name(&directory).unwrap_or_else(|| marker.child_pool_name.clone()),
            namespace: head.namespace,
            name: name.unwrap_or(head.name),
        })
    }
}

/// What its own store calls the pool in a directory.
fn pool_name(directory: &Path) -> Option<String> {
    let in_store = directory.parent()?.file_name()? == POOLS;
    unescape(directory.file_name()?.to_str()?).filter(|_| in_store)
}
