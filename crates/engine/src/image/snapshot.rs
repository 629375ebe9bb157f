//! Snapshots of an open image.

use marcot_format::SnapId;
use marcot_format::record::{HeadRecord, PartOfRecord, Protection, SegmentMarks, SnapshotRecord};
use marcot_store::Random;

use super::flatten::same;
use super::state::State;
use super::{Image, empty_root, no_snapshot};
use crate::catalog::GroupSnapshotId;
use crate::catalog::children::{CHILDREN_LOOKED_AT_MAX, Formats, named};
use crate::catalog::names::check_snapshot_name;
use crate::error::{ErrorKind, Result, fail};
use crate::fault::{self, Fault};

/// Most snapshots of an image.
pub const SNAPSHOTS_MAX: usize = marcot_format::record::HEAD_SNAPSHOTS_MAX;

pub(super) fn max_marks(a: SegmentMarks, b: SegmentMarks) -> SegmentMarks {
    SegmentMarks { data: a.data.max(b.data), map: a.map.max(b.map), table: a.table.max(b.table) }
}

/// Notes in a head that clones may name what a snapshot names.
fn share(head: &mut HeadRecord, snap: u64) {
    let marks = head.snapshots.iter().find(|s| s.id == snap).and_then(|s| s.marks);
    let marks = marks.unwrap_or_default();
    head.shared_below = Some(max_marks(head.shared_below.unwrap_or_default(), marks));
}

impl Image {
    pub(super) fn snap_record(&self, name: &str) -> Result<&SnapshotRecord> {
        let found = self.head.snapshots.iter().find(|s| s.name == name && s.is_of_users());
        found.ok_or_else(|| no_snapshot(&self.identity.label, name))
    }

    /// The image's part of a group's snapshot.
    fn part_of(&self, id: GroupSnapshotId) -> Option<&SnapshotRecord> {
        let same = |s: &&SnapshotRecord| s.group.as_ref().map(GroupSnapshotId::of) == Some(id);
        self.head.snapshots.iter().find(same)
    }

    /// Fails where a snapshot of the image has this name, also a part of a group's: a number that is given for it is
    /// looked up by its name.
    fn check_free(&self, name: &str) -> Result<()> {
        match self.head.snapshots.iter().any(|s| s.name == name && !s.trashed) {
            true => fail(
                ErrorKind::Exists,
                format!("{} already has a snapshot '{name}'", self.identity.label),
            ),
            false => Ok(()),
        }
    }

    fn update_snapshot(&mut self, id: u64, change: impl Fn(&mut SnapshotRecord)) -> Result<()> {
        self.publish(|head| {
            if let Some(s) = head.snapshots.iter_mut().find(|s| s.id == id) {
                change(s);
            }
        })
    }

    /// Takes a snapshot of everything acknowledged; durable when it returns.
    pub(super) fn snap_create(&mut self, name: &str) -> Result<u64> {
        self.check_may_change()?;
        check_snapshot_name(name)?;
        self.check_free(name)?;
        self.take_snapshot(name.to_owned(), None)
    }

    /// Takes the image's part of a group's snapshot, of everything acknowledged; durable when it returns.
    pub(super) fn snap_create_for_group(&mut self, id: GroupSnapshotId) -> Result<u64> {
        self.check_may_change()?;
        match self.part_of(id) {
            Some(part) => Ok(part.id),
            None => self.take_snapshot(id.part_name(), Some(id.in_records())),
        }
    }

    fn take_snapshot(&mut self, name: String, group: Option<PartOfRecord>) -> Result<u64> {
        if self.head.snapshots.len() >= SNAPSHOTS_MAX {
            return fail(
                ErrorKind::TooMany,
                format!(
                    "{} has {SNAPSHOTS_MAX} snapshots, the most there can be; remove some first",
                    self.identity.label
                ),
            );
        }
        self.check_snapshot_limit()?;
        self.check_all_is_here()?;
        // What is copied later must not lie in a segment that the snapshot keeps.
        self.state.compaction.abandon();
        self.close_target();
        let id = self.head.snap_next.max(1);
        let created_s = self.identity.pool.files().world().clock.now_s();
        let take = move |head: &mut HeadRecord| {
            head.snap_next = id + 1;
            head.snapshots.push(SnapshotRecord {
                id,
                name: name.clone(),
                created_s,
                protection: Protection::Unprotected as i32,
                root: Some(head.root.clone().unwrap_or_else(empty_root)),
                marks: head.marks,
                trashed: false,
                parent: head.parent.clone(),
                removing: false,
                original_name: String::new(),
                group,
            });
        };
        let stored = fault::is(Fault::SnapshotWithoutCheckpoint);
        if (self.state.changed && !stored) || self.head.root.is_none() {
            self.checkpoint_with(take)?;
        } else {
            self.publish(take)?;
        }
        Ok(id)
    }

    pub(super) fn snap_rename(&mut self, from: &str, to: &str) -> Result<()> {
        self.check_owner()?;
        check_snapshot_name(to)?;
        let id = self.snap_record(from)?.id;
        self.check_free(to)?;
        self.update_snapshot(id, |s| s.name = to.to_owned())
    }

    pub(super) fn snap_protect(&mut self, name: &str) -> Result<()> {
        self.check_owner()?;
        let snapshot = self.snap_record(name)?;
        if snapshot.protection() == Protection::Protected {
            return fail(ErrorKind::Protected, format!("snapshot '{name}' is already protected"));
        }
        let id = snapshot.id;
        self.publish(|head| {
            share(head, id);
            if let Some(s) = head.snapshots.iter_mut().find(|s| s.id == id) {
                s.set_protection(Protection::Protected);
            }
        })
    }

    /// Marks the snapshot, looks for children in every pool, and finishes or takes the mark back.
    pub(super) fn snap_unprotect(&mut self, name: &str) -> Result<()> {
        self.check_owner()?;
        let snapshot = self.snap_record(name)?;
        if snapshot.protection() == Protection::Unprotected {
            return fail(ErrorKind::NotProtected, format!("snapshot '{name}' is not protected"));
        }
        let id = snapshot.id;
        self.update_snapshot(id, |s| s.set_protection(Protection::Unprotecting))?;
        // Children of format 2 need no protection.
        let children = self.identity.pool.some_children(
            self.identity.id,
            Some(SnapId(id)),
            Formats::One,
            CHILDREN_LOOKED_AT_MAX,
        );
        match children {
            Ok(children) if children.is_empty() => {
                self.update_snapshot(id, |s| s.set_protection(Protection::Unprotected))
            }
            other => {
                self.update_snapshot(id, |s| s.set_protection(Protection::Protected))?;
                let message = format!("snapshot '{name}' has children: {}", named(&other?));
                fail(ErrorKind::HasChildren, message)
            }
        }
    }

    /// Notes that a snapshot is going to be cloned without protection (clone format 2).
    pub(super) fn snap_mark_shared(&mut self, name: &str) -> Result<()> {
        self.check_owner()?;
        let id = self.snap_record(name)?.id;
        self.publish(|head| share(head, id))
    }

    /// Removes the image's part of a group's snapshot, if it has one.
    pub(super) fn snap_remove_for_group(&mut self, id: GroupSnapshotId) -> Result<()> {
        self.check_may_change()?;
        match self.part_of(id).map(|part| part.id) {
            Some(part) => self.snap_remove_by_id(part),
            None => Ok(()),
        }
    }

    /// Removes a snapshot, or moves it to the trash while children of format 2 need it. One that is part of a
    /// group's snapshot can be removed too, but has to be named exactly.
    pub(super) fn snap_remove(&mut self, name: &str, force: bool) -> Result<()> {
        self.check_owner()?;
        let part = self.head.snapshots.iter().find(|s| s.name == name && s.group.is_some());
        if let Some(part) = part.map(|part| part.id)
            && self.snap_record(name).is_err()
        {
            self.check_may_change()?;
            return self.snap_remove_by_id(part);
        }
        let snapshot = self.snap_record(name)?;
        self.check_may_change()?;
        if snapshot.protection() != Protection::Unprotected {
            if !force {
                return fail(
                    ErrorKind::Protected,
                    format!("snapshot '{name}' is protected from removal."),
                );
            }
            self.snap_unprotect(name)?;
        }
        self.snap_remove_by_id(self.snap_record(name)?.id)
    }

    fn snap_remove_by_id(&mut self, id: u64) -> Result<()> {
        let Some(pin) = self.identity.pool.lock_snapshot(self.identity.id, SnapId(id))? else {
            let named = self.head.snapshots.iter().find(|s| s.id == id).map(|s| s.name.as_str());
            let name = named.unwrap_or_default();
            let message = format!("snapshot '{name}' of {} is in use", self.identity.label);
            return fail(ErrorKind::Busy, message);
        };
        self.update_snapshot(id, |s| s.removing = true)?;
        match self.identity.pool.some_children(self.identity.id, Some(SnapId(id)), Formats::All, 1)
        {
            Ok(children) if children.is_empty() => self.drop_snapshot(id)?,
            Ok(_) => {
                let trash = uuid(&*self.identity.pool.files().world().random);
                self.update_snapshot(id, |s| {
                    (s.removing, s.trashed) = (false, true);
                    s.original_name = std::mem::replace(&mut s.name, trash.clone());
                })?;
                // The last child may have been removed before it could see that the snapshot is kept for it.
                let left = self.identity.pool.some_children(
                    self.identity.id,
                    Some(SnapId(id)),
                    Formats::All,
                    1,
                );
                if left.is_ok_and(|children| children.is_empty()) {
                    self.drop_snapshot(id)?;
                }
            }
            Err(error) => {
                self.update_snapshot(id, |s| s.removing = false)?;
                return Err(error);
            }
        }
        drop(pin);
        Ok(())
    }

    /// Removes trashed snapshots whose last child is gone, and takes back the marks of interrupted commands.
    pub(crate) fn tidy_snapshots(&mut self) -> Result<()> {
        let trashed: Vec<u64> =
            self.head.snapshots.iter().filter(|s| s.trashed || s.removing).map(|s| s.id).collect();
        if trashed.is_empty() {
            return Ok(());
        }
        // These snapshots cannot be cloned, so they get no new children.
        let records = self.identity.pool.child_records(self.identity.id)?;
        for id in trashed {
            // Another process removes or reads this snapshot, and is not disturbed.
            let Some(_pin) = self.identity.pool.lock_snapshot(self.identity.id, SnapId(id))? else {
                continue;
            };
            let children = records.children(Some(SnapId(id)), Formats::All, 1)?;
            let marked = self.head.snapshots.iter().any(|s| s.id == id && s.trashed);
            if children.is_empty() && marked {
                self.drop_snapshot(id)?;
            } else if !marked {
                self.update_snapshot(id, |s| s.removing = false)?;
            }
        }
        Ok(())
    }

    fn drop_snapshot(&mut self, id: u64) -> Result<()> {
        let parent = self.head.snapshots.iter().find(|s| s.id == id).and_then(|s| s.parent.clone());
        if fault::is(Fault::PunchBeforeRoot) {
            self.head.forget_snapshot(id);
            self.reclaim_unnamed()?;
        }
        let links =
            self.head.snapshots.iter().filter(|s| s.id != id).filter_map(|s| s.parent.as_ref());
        let still = links.chain(&self.head.parent);
        if let Some(parent) = &parent
            && !still.into_iter().any(|link| same(link, parent))
        {
            self.mark_heir_of(parent)?;
        }
        // Only the head is written, which takes almost no room: on a full disk, this is what makes some. A
        // comparison of durable roots finds the space that becomes free.
        self.publish(|head| head.snapshots.retain(|s| s.id != id))?;
        self.identity.pool.remove_snapshot_pin(self.identity.id, SnapId(id));
        if let Some(parent) = parent {
            self.leave_parent(&parent)?;
        }
        self.reclaim_unnamed().map(drop)
    }

    /// Brings content and size of a snapshot back.
    pub(super) fn snap_rollback(&mut self, name: &str) -> Result<()> {
        self.check_may_change()?;
        let snapshot = self.snap_record(name)?.clone();
        self.roll_back_to_record(&snapshot)
    }

    /// As [`Self::snap_rollback`], for the image's part of a group's snapshot.
    pub(super) fn snap_rollback_for_group(&mut self, id: GroupSnapshotId) -> Result<()> {
        self.check_may_change()?;
        let missing = || no_snapshot(&self.identity.label, &id.part_name());
        let snapshot = self.part_of(id).cloned().ok_or_else(missing)?;
        self.roll_back_to_record(&snapshot)
    }

    fn roll_back_to_record(&mut self, snapshot: &SnapshotRecord) -> Result<()> {
        self.settle()?;
        let root = snapshot.root.clone().unwrap_or_else(empty_root);
        let mut state = State::open(&self.root_of(Some(snapshot.id)), &root)?;
        // Changes that are only in memory must not come back: the next head starts a new log.
        self.end_log()?;
        self.head.check_not_fenced()?;
        let (log, marks) = (self.log_position(), self.series.marks());
        let old_parent = self.head.parent.clone();
        if let Some(parent) = &old_parent
            && !snapshot.parent.as_ref().is_some_and(|link| same(link, parent))
        {
            self.mark_heir_of(parent)?;
        }
        self.publish_root(|head| {
            head.root = Some(root.clone());
            head.log = Some(log);
            head.marks = Some(marks);
            head.parent = snapshot.parent.clone();
        })?;
        // The table must follow the head from now on: the snapshot may be removed before the image is closed.
        state.table.set_guide(self.root_of(None).guide());
        self.state = state;
        self.journal.reset_count();
        if let Some(parent) = old_parent {
            self.leave_parent(&parent)?;
        }
        self.reclaim_unnamed().map(drop)
    }
}

/// A random UUID (RFC 9562, version 4): the name of a removed snapshot that is kept for its clones.
fn uuid(random: &dyn Random) -> String {
    let (a, b) = (random.number(), random.number());
    let (high, middle, version) = (a >> 32, a >> 16 & 0xffff, 0x4000 | a & 0x0fff);
    let (variant, low) = (0x8000 | b >> 48 & 0x3fff, b & 0xffff_ffff_ffff);
    format!("{high:08x}-{middle:04x}-{version:04x}-{variant:04x}-{low:012x}")
}
