//! What is done to an open image as a whole: its snapshots, its size, its independence, its space.
//!
//! Every method here passes [`Image::managed`], which does what comes before and after each of them.

use marcot_format::SnapId;

use super::Image;
use super::results::{DiffExtent, FlattenPart, UsageRow};
use crate::catalog::{GroupSnapshotId, LockInfo};
use crate::device::Extent;
use crate::error::Result;

impl Image {
    /// Does `work` while nothing else is under way: direct writes and the checkpoint in the background
    /// have ended. Afterwards the pages that `work` has loaded are dropped, as far as they are too many.
    ///
    /// # Errors
    /// Those of `work`; `Poisoned` and `Fenced` of what was under way; `Unreachable` where that takes longer than guests
    /// wait: they would wait for the command.
    pub(super) fn managed<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        // Where that fails, the image is poisoned, and says so to what changes it.
        let _ = self.journal.finish(&mut self.in_flight);
        let outcome = self.settle_in_time().and_then(|()| work(self));
        self.evict(self.limits().map_memory_bytes);
        outcome
    }

    /// Makes everything acknowledged durable, and the head on disk current: opening the image again has
    /// no log to replay. Owners do so by themselves, in time.
    ///
    /// # Errors
    /// `ReadOnly`; `NoSpace`, `Io` leave the durable state as it was; `Poisoned` and `Fenced` end writing.
    pub fn take_checkpoint(&mut self) -> Result<()> {
        self.managed(Self::checkpoint)
    }

    /// Takes a snapshot of everything acknowledged. It is durable when this returns. The cost does not
    /// depend on the image's size.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for the name; `TooMany`; `ReadOnly`; `NoSpace`; `Poisoned`,
    /// `Fenced`, `Io`.
    pub fn snapshot(&mut self, name: &str) -> Result<SnapId> {
        self.managed(|image| image.snap_create(name).map(SnapId))
    }

    /// Takes the image's part of a group's snapshot, unless it has it already. It is durable when this returns.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub fn snapshot_for_group(&mut self, id: GroupSnapshotId) -> Result<SnapId> {
        self.managed(|image| image.snap_create_for_group(id).map(SnapId))
    }

    /// Removes the image's part of a group's snapshot, if it has one.
    ///
    /// # Errors
    /// `Busy` where somebody reads it; `ReadOnly`; `Poisoned`, `Fenced`, `Io`.
    pub fn remove_snapshot_for_group(&mut self, id: GroupSnapshotId) -> Result<()> {
        self.managed(|image| image.snap_remove_for_group(id))
    }

    /// As [`Self::roll_back`], to the image's part of a group's snapshot.
    ///
    /// # Errors
    /// As [`Self::roll_back`].
    pub fn roll_back_for_group(&mut self, id: GroupSnapshotId) -> Result<()> {
        self.managed(|image| image.snap_rollback_for_group(id))
    }

    /// Removes a snapshot and gives the space back that only it used. Where children of clone format 2
    /// need it, it is moved aside, and goes with the last of them. `force` also takes its protection away,
    /// if it has no children of format 1.
    ///
    /// # Errors
    /// `NotFound`; `Protected` without `force`; `HasChildren`; `Busy` where somebody reads it; `ReadOnly`;
    /// `Poisoned`, `Fenced`, `Io`.
    pub fn remove_snapshot(&mut self, name: &str, force: bool) -> Result<()> {
        self.managed(|image| image.snap_remove(name, force))
    }

    /// Gives a snapshot another name. Its children keep their parent.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Invalid`, `NameTooLong` for the new name; `ReadOnly`; `Poisoned`, `Fenced`,
    /// `Io`.
    pub fn rename_snapshot(&mut self, from: &str, to: &str) -> Result<()> {
        self.managed(|image| image.snap_rename(from, to))
    }

    /// Brings the image back to the content, the size and the parent of a snapshot. What came later is
    /// lost. Nothing is copied.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`; `Poisoned`, `Fenced`, `Io`.
    pub fn roll_back(&mut self, name: &str) -> Result<()> {
        self.managed(|image| image.snap_rollback(name))
    }

    /// Protects a snapshot from removal, so that it can be cloned with format 1.
    ///
    /// # Errors
    /// `Protected` where it is already; `NotFound`; `ReadOnly`; `Poisoned`, `Fenced`, `Io`.
    pub fn protect(&mut self, name: &str) -> Result<()> {
        self.managed(|image| image.snap_protect(name))
    }

    /// Takes the protection of a snapshot away.
    ///
    /// # Errors
    /// `HasChildren`, with some of them, where clones of format 1 need it; `NotProtected`; `NotFound`;
    /// `ReadOnly`; `Poisoned`, `Fenced`, `Io`; those of looking for children in every pool of the store.
    pub fn unprotect(&mut self, name: &str) -> Result<()> {
        self.managed(|image| image.snap_unprotect(name))
    }

    /// Says that a snapshot is about to be cloned with format 2: from now on its segments are shared, and
    /// this image leaves them to the pool's garbage collection. A clone asks for this where the image is
    /// not open; who has it open is asked first.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`; `Poisoned`, `Fenced`, `Io`.
    pub fn mark_shared(&mut self, name: &str) -> Result<()> {
        self.managed(|image| image.snap_mark_shared(name))
    }

    /// Changes the size to `size_bytes`; durable when it returns. Data beyond a new end is lost, which
    /// `allow_shrink` accepts.
    ///
    /// # Errors
    /// `Invalid` for a size above [`crate::IMAGE_BYTES_MAX`], and for a smaller one without `allow_shrink`;
    /// `ReadOnly`; `NoSpace`; `Poisoned`, `Fenced`, `Io`.
    pub fn resize(&mut self, size_bytes: u64, allow_shrink: bool) -> Result<()> {
        self.managed(|image| image.change_size(size_bytes, allow_shrink))
    }

    /// Makes the image independent of its parent, together with its snapshots. What
    /// [`Self::flatten_part`] has not copied is copied in one go.
    ///
    /// # Errors
    /// `NoParent`; `Corrupt` where a block of the parent cannot be verified; `ReadOnly`; `NoSpace`;
    /// `Poisoned`, `Fenced`, `Io`. What has been copied by then stays so.
    pub fn flatten(&mut self) -> Result<()> {
        self.flatten_with(&mut |_, _| {})
    }

    /// As [`Self::flatten`]; `progress` gets blocks of 4 KiB (done, total).
    ///
    /// # Errors
    /// As [`Self::flatten`].
    pub fn flatten_with(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.managed(|image| image.flatten_all(progress))
    }

    /// Copies a few megabytes of what the image has in other pools. Repeated until nothing is left, it
    /// makes [`Self::flatten`] short, and the image can be read and written between the parts.
    ///
    /// # Errors
    /// As [`Self::flatten`].
    pub fn flatten_part(&mut self) -> Result<FlattenPart> {
        let (left_blocks, more) = self.managed(Self::flatten_some)?;
        Ok(FlattenPart { left_blocks, more, waits: false })
    }

    /// Sets a key of the image's metadata; an empty value removes it.
    ///
    /// # Errors
    /// `Invalid` for an empty key, and for a key or value of more than 64 KiB; `TooMany` where the head
    /// can hold no more; `ReadOnly`; `NoSpace`; `Poisoned`, `Fenced`, `Io`.
    pub fn set_metadata(&mut self, key: &str, value: &str) -> Result<()> {
        self.managed(|image| image.store_metadata(key, value))
    }

    /// Enables or disables features by name, as `info` shows them. `object-map` and `fast-diff` come and go
    /// together. Only `deep-flatten` and `exclusive-lock` have a meaning: see [`Self::flatten`] and
    /// [`Self::add_lock`].
    ///
    /// # Errors
    /// `Invalid` for features that cannot be changed, that are enabled or disabled already, or that need
    /// another one; `ReadOnly`; `NoSpace`; `Poisoned`, `Fenced`, `Io`.
    pub fn change_features(&mut self, names: &[String], enable: bool) -> Result<()> {
        self.managed(|image| image.store_features(names, enable))
    }

    /// Sets the most snapshots that users may take; `None`: as many as the format allows.
    ///
    /// # Errors
    /// `OutOfRange` where there are more already; `ReadOnly`; `NoSpace`; `Poisoned`, `Fenced`, `Io`.
    pub fn limit_snapshots(&mut self, limit: Option<u64>) -> Result<()> {
        self.managed(|image| image.store_snapshot_limit(limit))
    }

    /// Notes an advisory lock. While an image with the feature `exclusive-lock` has one, it cannot be written,
    /// and most changes are refused. The lock stays until it is removed.
    ///
    /// # Errors
    /// `Busy` where another lock does not admit it; `Exists`; `Invalid`, `TooMany`; `ReadOnly`; `NoSpace`;
    /// `Poisoned`, `Fenced`, `Io`.
    pub fn add_lock(&mut self, lock: &LockInfo) -> Result<()> {
        self.managed(|image| image.store_lock(lock))
    }

    /// Removes an advisory lock, whoever holds it.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`; `NoSpace`; `Poisoned`, `Fenced`, `Io`.
    pub fn remove_lock(&mut self, client: u64, cookie: &str) -> Result<()> {
        self.managed(|image| image.drop_lock(client, cookie))
    }

    /// Finishes removals of snapshots that were waiting for children to go away.
    ///
    /// # Errors
    /// `ReadOnly`; `Poisoned`, `Fenced`, `Io`; those of looking for children.
    pub fn tidy(&mut self) -> Result<()> {
        self.managed(Self::tidy_snapshots)
    }

    /// Provisioned and used bytes of every snapshot, oldest first, and of the head, which is the last.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; those of [`Self::take_checkpoint`] where there is something to be stored before.
    pub fn usage(&mut self) -> Result<Vec<UsageRow>> {
        self.managed(Self::usage_of_states)
    }

    /// Where the content of `to_snap` (`None`: the image as it is now) differs from that of `from_snap`
    /// (`None`: an image without data), in `length` bytes from `offset` on. In order of offset, and as
    /// whole blocks but for the ends of the range. The cost follows what differs, not the size.
    ///
    /// # Errors
    /// `Invalid` if there are more than 131072 extents: ask for a shorter range, of 512 MiB at the shortest;
    /// `NotFound` for a snapshot; `Corrupt`, `Io`; those of [`Self::take_checkpoint`].
    pub fn diff(
        &mut self,
        from_snap: Option<&str>,
        to_snap: Option<&str>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<DiffExtent>> {
        self.managed(|image| image.compare_states(from_snap, to_snap, offset, length))
    }

    /// Runs of data and holes of `[offset, offset + length)`, at most `extents_max` of them: in order and
    /// without gaps, from `offset` on.
    ///
    /// # Errors
    /// `OutOfRange`, `Corrupt`, `Io`.
    pub fn extents(&mut self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<Extent>> {
        self.managed(|image| image.extents_of(offset, length, extents_max))
    }

    /// Gives back now what space of the image nobody needs, and returns how many bytes that was. Owners
    /// do so by themselves, in time.
    ///
    /// # Errors
    /// `ReadOnly`; `NoSpace`; `Poisoned`, `Fenced`, `Io`.
    pub fn reclaim(&mut self) -> Result<u64> {
        self.managed(|image| {
            image.check_owner()?;
            image.compact_fully()?;
            image.reclaim_unnamed()
        })
    }

    /// Gives back the space of zeros in a range: of pieces of `piece_bytes`, a power of two from 4096 on, that
    /// have data and read as zeros. Returns how many bytes that are. The content stays the same.
    ///
    /// # Errors
    /// `Invalid` for the length of pieces; `Corrupt` for a block that cannot be verified; `ReadOnly`;
    /// `NoSpace`; `Poisoned`, `Fenced`, `Io`.
    pub fn sparsify(&mut self, offset: u64, length: u64, piece_bytes: u64) -> Result<u64> {
        self.managed(|image| image.sparsify_range(offset, length, piece_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateOptions, ErrorKind, Store};

    type Call = fn(&mut Image) -> Result<()>;

    const GROUP: GroupSnapshotId =
        GroupSnapshotId { pool: crate::PoolId(1), group: 2, snapshot: 3 };

    fn lock() -> LockInfo {
        let (cookie, tag) = ("cookie".to_owned(), String::new());
        LockInfo { client: 1, cookie, address: String::new(), shared: false, tag }
    }

    /// Every management call, in an order in which all can be carried out.
    const CALLS: &[(&str, Call)] = &[
        ("snapshot", |image| image.snapshot("s").map(drop)),
        ("rename_snapshot", |image| image.rename_snapshot("s", "t")),
        ("mark_shared", |image| image.mark_shared("t")),
        ("protect", |image| image.protect("t")),
        ("unprotect", |image| image.unprotect("t")),
        ("diff", |image| image.diff(Some("t"), None, 0, 4096).map(drop)),
        ("usage", |image| image.usage().map(drop)),
        ("extents", |image| image.extents(0, 4096, 1).map(drop)),
        ("roll_back", |image| image.roll_back("t")),
        ("snapshot_for_group", |image| image.snapshot_for_group(GROUP).map(drop)),
        ("roll_back_for_group", |image| image.roll_back_for_group(GROUP)),
        ("remove_snapshot_for_group", |image| image.remove_snapshot_for_group(GROUP)),
        ("remove_snapshot", |image| image.remove_snapshot("t", false)),
        ("resize", |image| image.resize(1 << 20, true)),
        ("set_metadata", |image| image.set_metadata("key", "value")),
        ("limit_snapshots", |image| image.limit_snapshots(Some(5))),
        ("add_lock", |image| image.add_lock(&lock())),
        ("remove_lock", |image| image.remove_lock(1, "cookie")),
        ("change_features", |image| image.change_features(&["exclusive-lock".to_owned()], true)),
        ("tidy", Image::tidy),
        ("flatten", Image::flatten),
        ("flatten_part", |image| image.flatten_part().map(drop)),
        ("sparsify", |image| image.sparsify(0, 4096, 4096).map(drop)),
        ("reclaim", |image| image.reclaim().map(drop)),
        ("take_checkpoint", Image::take_checkpoint),
    ];

    #[test]
    fn every_management_call_waits_for_the_checkpoint_that_is_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
        let id = pool.create("a", &CreateOptions::sized(2 << 20)).unwrap();
        let mut image = pool.open(id).unwrap();
        for (name, call) in CALLS {
            image.write_at(0, name.as_bytes()).unwrap();
            image.begin_checkpoint().unwrap();
            assert!(image.checkpoint_job.is_some(), "{name}");
            match call(&mut image) {
                Err(error) if name.starts_with("flatten") => {
                    assert_eq!(error.kind(), ErrorKind::NoParent, "{error}");
                }
                outcome => outcome.unwrap(),
            }
            assert!(image.checkpoint_job.is_none(), "{name}");
        }
        image.close().unwrap();
    }
}
