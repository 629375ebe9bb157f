//! Names of the records of children. A name says in numbers which image was cloned from which snapshot.

use marcot_backend::ChildKey;
use marcot_format::record::ChildRecord;
use marcot_format::{ImageId, PoolId, SnapId};

/// True for an intact record that was written under another name.
pub(crate) fn is_of_another_name(record: &ChildRecord, key: ChildKey) -> bool {
    *record != ChildRecord::default() && !key_of(record).is_same_child(key)
}

/// The key under which a record belongs.
pub(crate) fn key_of(record: &ChildRecord) -> ChildKey {
    ChildKey {
        parent_pool: PoolId(record.parent_pool_id),
        parent_image: ImageId(record.parent_image_id),
        snap: SnapId(record.parent_snap_id),
        child_pool: PoolId(record.child_pool_id),
        child_image: ImageId(record.child_image_id),
        clone_format: record.clone_format,
    }
}
