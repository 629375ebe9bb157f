//! Forgetting a child that only another host could tell of, and that host is gone.
//!
//! The record of a clone that another host began may be all that there is of it: the host was lost before it had
//! made the clone, or after. Nobody else can tell. An operator who knows can have the record removed.
//!
//! Invariant: a clone within the pool whose record was forgotten cannot be finished any more. Its head is
//! forbidden first, so that either the clone is there and its record stays, or neither.

use std::io;

use marcot_backend::{ChildKey, Key};
use marcot_format::ImageId;

use super::children::ChildInfo;
use super::pool::Pool;
use super::store::Store;
use crate::error::{ErrorKind, IoContext, Result, fail};

impl Store {
    /// Forgets a child of an image in `pool`, one of [`Store::children`]. If it exists all the same, it loses the data
    /// that it shares once the parent's snapshot is removed.
    ///
    /// # Errors
    /// `Exists` for a child that this store can see, or whose clone is finished by now; `NotFound` where it is
    /// gone; `ReadOnly`.
    pub fn forget_child(&self, pool: &Pool, image: ImageId, child: &ChildInfo) -> Result<()> {
        pool.check_writable()?;
        let in_the_pool = child.pool_id == pool.id();
        if child.seen || (in_the_pool && child.host.is_none()) {
            let message = format!("{child} is there; flatten or remove it, and it is forgotten");
            return fail(ErrorKind::Exists, message);
        }
        if in_the_pool {
            match pool.records().forbid(&Key::Head(child.image_id)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let message = "the clone was finished meanwhile; it is not forgotten";
                    return fail(ErrorKind::Exists, message);
                }
                forbidden => forbidden.at(|| format!("cannot forget {child}"))?,
            }
        }
        let key = ChildKey {
            parent_pool: pool.id(),
            parent_image: image,
            snap: child.snap_id,
            child_pool: child.pool_id,
            child_image: child.image_id,
            clone_format: 0,
        };
        let mut found = false;
        for key in key.of_all_formats() {
            let key = if in_the_pool { Key::Child(key) } else { Key::Marker(key) };
            match pool.records().remove(&key) {
                Ok(()) => found = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.at(|| format!("cannot remove {}", pool.records().show(&key)))?,
            }
        }
        match found {
            true => Ok(()),
            false => fail(ErrorKind::NotFound, format!("{child} is forgotten already")),
        }
    }
}
