//! Removing what a parent keeps for its children, once the last of them is gone.

use std::time::Duration;

use marcot_format::record::ParentRecord;
use marcot_format::{ImageId, SnapId};

use crate::catalog::Pool;
use crate::error::{ErrorKind, Result};

/// How often opening the parent is tried when its last child is gone, and the time between two attempts.
const TIDY_ATTEMPTS: u32 = 10;
const TIDY_INTERVAL: Duration = Duration::from_millis(10);

/// Removes the record that `child`, an image of `pool`, is a child of the snapshot, and what the parent kept
/// for this child alone.
pub(crate) fn forget_child(
    pool: &Pool,
    parent: &ParentRecord,
    snap: SnapId,
    child: ImageId,
) -> Result<()> {
    if let Some(parent_pool) = pool.remove_child_record(parent, snap, child)? {
        tidy_trash(&parent_pool, ImageId(parent.image_id), snap);
    }
    Ok(())
}

/// Removes a snapshot that was kept for the child that is gone now. Where its image is in use, the owner or
/// `gc` does that later.
fn tidy_trash(pool: &Pool, image: ImageId, snap: SnapId) {
    let Ok(head) = pool.read_head(image) else { return };
    let trashed = head.snapshots.iter().any(|s| s.id == snap.0 && s.trashed);
    if !trashed || pool.read_only() {
        return;
    }
    let mut attempts = 0;
    let opened = loop {
        match pool.open(image) {
            // Most likely a short command has it open, perhaps the one that moved the snapshot aside.
            Err(error) if error.kind() == ErrorKind::Owned && attempts < TIDY_ATTEMPTS => {
                attempts += 1;
                pool.store().inner.world.clock.pause(TIDY_INTERVAL);
            }
            opened => break opened,
        }
    };
    let tidied = opened.and_then(|mut parent| {
        parent.tidy_snapshots()?;
        parent.close()
    });
    if let Err(error) = tidied {
        tracing::info!(%image, error = %error.sentence(), "a removed snapshot is left for gc");
    }
}
