//! Advisory locks: notes in an image's head that keep others from changing it.

use marcot_format::record::HeadRecord;

use crate::error::{ErrorKind, Result, fail};

/// Images with this feature have one writer at a time, so a lock of somebody else keeps writers out.
pub(crate) const EXCLUSIVE_LOCK: &str = "exclusive-lock";

/// Fails where a lock keeps the image from being changed. Without the feature `exclusive-lock`, locks are
/// mere notes.
///
/// # Errors
/// `ReadOnly`, naming the lock.
pub(crate) fn check_unlocked(head: &HeadRecord, label: &str) -> Result<()> {
    let Some(held) = head.locks.first() else { return Ok(()) };
    if !head.features.split(',').any(|name| name == EXCLUSIVE_LOCK) {
        return Ok(());
    }
    let message = format!(
        "{label} is locked by client.{} with the lock '{}', which must be removed first",
        held.client, held.cookie
    );
    fail(ErrorKind::ReadOnly, message)
}
