//! What a group's record says of its snapshots, from before the first part is made until the last one is gone.

use marcot_format::SnapId;
use marcot_format::record::{GroupMemberRecord, GroupPartRecord, GroupSnapshotRecord};

use super::groups::{GroupSnapshotId, GroupSnapshotInfo, MemberId};
use super::image_name::Namespace;
use super::names::check_group_name;
use super::pool::Pool;
use super::store::Store;
use crate::error::{Error, ErrorKind, Result, fail};

/// What becomes of a group's snapshot that was changed.
enum After {
    Stays,
    Goes,
}

impl Pool {
    /// Notes that a snapshot of a group is about to be made. It is incomplete, and lists the members of now.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name; `NotFound`; `TooMany`; `ReadOnly`.
    pub fn begin_group_snapshot(
        &self,
        namespace: &Namespace,
        group: &str,
        snapshot: &str,
    ) -> Result<GroupSnapshotInfo> {
        check_group_name(snapshot)?;
        let number = self.unique();
        let created_s = self.now_s();
        let find = || self.find_group(namespace, group);
        let ((), record) = self.change_group(find, |record| {
            if record.snapshots.iter().any(|other| other.name == snapshot) {
                let message = format!("group '{group}' already has a snapshot '{snapshot}'");
                return fail(ErrorKind::Exists, message);
            }
            let part = |member: &GroupMemberRecord| GroupPartRecord {
                pool_id: member.pool_id,
                image_id: member.image_id,
                snap_id: 0,
            };
            record.snapshots.push(GroupSnapshotRecord {
                id: number,
                name: snapshot.to_owned(),
                created_s,
                complete: false,
                removing: false,
                parts: record.members.iter().map(part).collect(),
            });
            Ok(())
        })?;
        let made = self.group_info(record).snapshot(snapshot).cloned();
        made.ok_or_else(|| self.no_group_snapshot(group, snapshot))
    }

    fn no_group_snapshot(&self, group: &str, snapshot: &str) -> Error {
        let message =
            format!("group '{group}' of pool '{}' has no snapshot '{snapshot}'", self.name());
        Error::new(ErrorKind::NotFound, message)
    }

    /// Notes that a group's snapshot is complete, with these parts.
    ///
    /// # Errors
    /// `NotFound`, also where somebody removes it; `ReadOnly`.
    pub fn complete_group_snapshot(
        &self,
        id: GroupSnapshotId,
        parts: &[(MemberId, SnapId)],
    ) -> Result<()> {
        self.change_group_snapshot(id, |snapshot| {
            let part = |(member, snap): &(MemberId, SnapId)| GroupPartRecord {
                pool_id: member.pool.0,
                image_id: member.image.0,
                snap_id: snap.0,
            };
            if snapshot.removing {
                let message = format!("snapshot '{}' was removed meanwhile", snapshot.name);
                return fail(ErrorKind::NotFound, message);
            }
            snapshot.complete = true;
            snapshot.parts = parts.iter().map(part).collect();
            Ok(After::Stays)
        })
    }

    /// Notes that a group's snapshot is being removed. It never becomes complete again.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`.
    pub fn begin_group_snapshot_removal(&self, id: GroupSnapshotId) -> Result<()> {
        self.change_group_snapshot(id, |snapshot| {
            (snapshot.complete, snapshot.removing) = (false, true);
            Ok(After::Stays)
        })
    }

    /// Forgets a group's snapshot whose parts are gone.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`.
    pub fn forget_group_snapshot(&self, id: GroupSnapshotId) -> Result<()> {
        self.change_group_snapshot(id, |_| Ok(After::Goes))
    }

    /// Changes a group's snapshot.
    fn change_group_snapshot(
        &self,
        id: GroupSnapshotId,
        change: impl FnOnce(&mut GroupSnapshotRecord) -> Result<After>,
    ) -> Result<()> {
        let find = || self.read_group(id.group);
        let changed = self.change_group(find, |group| {
            let at = group.snapshots.iter().position(|snapshot| snapshot.id == id.snapshot);
            let Some(at) = at else {
                return Err(self.no_group_snapshot(&group.name, "that number"));
            };
            match change(&mut group.snapshots[at])? {
                After::Stays => {}
                After::Goes => drop(group.snapshots.remove(at)),
            }
            Ok(())
        });
        changed.map(drop)
    }

    /// Gives a group's snapshot another name.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Invalid`, `NameTooLong` for the new name; `ReadOnly`.
    pub fn rename_group_snapshot(
        &self,
        namespace: &Namespace,
        group: &str,
        from: &str,
        to: &str,
    ) -> Result<()> {
        check_group_name(to)?;
        let find = || self.find_group(namespace, group);
        let renamed = self.change_group(find, |record| {
            let taken = record.snapshots.iter().any(|snapshot| snapshot.name == to);
            let found = record.snapshots.iter_mut().find(|snapshot| snapshot.name == from);
            let Some(found) = found else { return Err(self.no_group_snapshot(group, from)) };
            if taken {
                let message = format!("group '{group}' already has a snapshot '{to}'");
                return fail(ErrorKind::Exists, message);
            }
            to.clone_into(&mut found.name);
            Ok(())
        });
        renamed.map(drop)
    }
}

impl Store {
    /// The present names of a group's snapshot: pool, group and snapshot. `None` where it cannot be found.
    #[must_use]
    pub fn group_snapshot_names(&self, id: GroupSnapshotId) -> Option<(String, String, String)> {
        let pool = self.pool_by_id(id.pool).ok()?;
        let group = pool.group_info(pool.read_group(id.group).ok()?.0);
        let snapshot = group.snapshots.into_iter().find(|snap| snap.id == id)?;
        Some((group.pool, group.name, snapshot.name))
    }
}
