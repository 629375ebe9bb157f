//! Groups of images, and the snapshots that were taken of all members of a group at one moment.
//!
//! A group is a record of a pool, in a namespace, by its name. It lists its members, which may lie in any pool
//! of the store, and its snapshots. Beside the head of each member a note says in which group it is. In a head,
//! a snapshot that belongs to one of a group says so.
//!
//! Invariants:
//! - The group's record decides who is a member. The note is durable before it lists the image, so an image in
//!   a group is found by its note. A note of a group that does not list the image means nothing.
//! - A snapshot of a group is complete only after each of its members has its part of it. It is incomplete
//!   before the first part is made and before the first part is removed, so no part is forgotten.
//! - A group's record is changed under the lock of its pool, and membership of an image under the lock of the
//!   image's pool too. The locks are taken in the order of the pools' numbers. A pool in a bucket has a lock on
//!   each host; so the record is replaced only where it is the one that was read.

use marcot_backend::{Key, Listed, Prefix, SwapError};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{
    GroupMemberRecord, GroupPartRecord, GroupRecord, GroupSnapshotRecord, MembershipRecord,
    PartOfRecord,
};
use marcot_format::{ImageId, PoolId, SnapId};
use marcot_store::{Lock, LockMode};

use super::image_name::Namespace;
use super::names::{check_group_name, could_be_given, is_acceptable};
use super::pool::Pool;
use super::store::Store;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};

/// Limit on the size of a group's record in bytes: thousands of parts of snapshots. Decoded it takes some times
/// as much memory.
const GROUP_BYTES_MAX: u64 = 4 << 20;

/// Identifies a group's snapshot: in the heads of its members, and in commands to their owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupSnapshotId {
    /// The group's pool.
    pub pool: PoolId,
    /// The group's number.
    pub group: u64,
    /// The snapshot's number.
    pub snapshot: u64,
}

impl GroupSnapshotId {
    pub(crate) fn of(record: &PartOfRecord) -> Self {
        let PartOfRecord { pool_id, group_id, snapshot_id } = *record;
        Self { pool: PoolId(pool_id), group: group_id, snapshot: snapshot_id }
    }

    pub(crate) fn in_records(self) -> PartOfRecord {
        PartOfRecord { pool_id: self.pool.0, group_id: self.group, snapshot_id: self.snapshot }
    }

    /// The name that a member's part of it has. It has the form of RBD's.
    pub(crate) fn part_name(self) -> String {
        format!(".group.{}_{:016x}_{:016x}", self.pool, self.group, self.snapshot)
    }
}

/// An image, by the numbers of its pool and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId {
    /// Its pool.
    pub pool: PoolId,
    /// The image.
    pub image: ImageId,
}

/// A snapshot of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupSnapshotInfo {
    /// Its number and its group's.
    pub id: GroupSnapshotId,
    /// Its name.
    pub name: String,
    /// False while it is being made or removed, and where that was interrupted.
    pub complete: bool,
    /// The images that it is of, each with the number of its own snapshot, 0 where that is not known.
    pub parts: Vec<(MemberId, SnapId)>,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Its number.
    pub id: u64,
    /// Its pool, by name.
    pub pool: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// Its members, in the order in which they were added.
    pub members: Vec<MemberId>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<GroupSnapshotInfo>,
}

impl GroupInfo {
    /// The snapshot with a name.
    #[must_use]
    pub fn snapshot(&self, name: &str) -> Option<&GroupSnapshotInfo> {
        self.snapshots.iter().find(|snapshot| snapshot.name == name)
    }
}

fn member_record(member: MemberId) -> GroupMemberRecord {
    GroupMemberRecord { pool_id: member.pool.0, image_id: member.image.0 }
}

fn holds(group: &GroupRecord, member: MemberId) -> bool {
    group.members.contains(&member_record(member))
}

impl Pool {
    fn no_group(&self, name: &str) -> Error {
        let message = format!("group '{name}' does not exist in pool '{}'", self.name());
        Error::new(ErrorKind::NotFound, message)
    }

    /// The names of the groups of a namespace, sorted.
    ///
    /// # Errors
    /// `NotFound` for an unknown namespace; `Corrupt` for a damaged group; what the operating system says.
    pub fn groups(&self, namespace: &Namespace) -> Result<Vec<String>> {
        self.require_namespace(namespace)?;
        let groups = self.all_groups()?.into_iter().map(|(group, _)| group);
        let here = groups.filter(|group| group.namespace == namespace.in_records());
        let mut names: Vec<String> = here.map(|group| group.name).collect();
        names.retain(|name| could_be_given(self.directory(), name));
        names.sort_unstable();
        Ok(names)
    }

    fn require_namespace(&self, namespace: &Namespace) -> Result<()> {
        match self.has_namespace(namespace.in_records()) {
            true => Ok(()),
            false => Err(self.namespace_missing(namespace.in_records())),
        }
    }

    /// All groups of the pool, each with its bytes.
    fn all_groups(&self) -> Result<Vec<(GroupRecord, Vec<u8>)>> {
        let mut numbers = Vec::new();
        let listed = self.records().list(&Prefix::Groups, &mut |listed| {
            if let Listed::Key(Key::Group(number)) = listed {
                numbers.push(*number);
            }
            true
        });
        match listed {
            // No group was ever made here.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            listed => listed.at(|| format!("cannot list the groups of pool '{}'", self.name()))?,
        }
        numbers.sort_unstable();
        let mut groups = Vec::new();
        for number in numbers {
            match self.read_group(number) {
                Ok(group) => groups.push(group),
                // It was removed since the groups were listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(groups)
    }

    /// A group by its number, with its bytes.
    fn read_group(&self, number: u64) -> Result<(GroupRecord, Vec<u8>)> {
        let key = Key::Group(number);
        let bytes = match self.read_record_up_to(&key, GROUP_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(self.no_group(&format!("{number:016x}")));
            }
            bytes => bytes?,
        };
        let decoded = decode_message::<GroupRecord>(FrameKind::Group, &bytes);
        let shown = || format!("cannot use {}", self.records().show(&key));
        let group = decoded.map_err(|e| Error::from_format(shown(), e))?.0;
        if group.group_id != number {
            return fail(ErrorKind::Corrupt, format!("{}: it is another group", shown()));
        }
        Ok((group, bytes))
    }

    /// A group by its name, with its bytes.
    fn find_group(&self, namespace: &Namespace, name: &str) -> Result<(GroupRecord, Vec<u8>)> {
        let wanted = (namespace.in_records(), name);
        let is_wanted = |group: &GroupRecord| (&*group.namespace, &*group.name) == wanted;
        let found = self.all_groups()?.into_iter().find(|(group, _)| is_wanted(group));
        match found.filter(|_| is_acceptable(name)) {
            Some(found) => Ok(found),
            None => {
                self.require_namespace(namespace)?;
                Err(self.no_group(name))
            }
        }
    }

    /// Replaces a group's record, if it still has these bytes.
    fn replace_group(&self, from: &[u8], group: &GroupRecord) -> Result<()> {
        let (name, bytes) = (&group.name, encode_message(FrameKind::Group, group));
        if bytes.len() as u64 > GROUP_BYTES_MAX {
            let message =
                format!("group '{name}' has as many members and snapshots as it can; remove some");
            return fail(ErrorKind::TooMany, message);
        }
        let context = || format!("cannot write group '{name}'");
        match self.records().replace(&Key::Group(group.group_id), from, &bytes) {
            Ok(()) => Ok(()),
            // Another host has a pool in a bucket too, and its own lock.
            Err(SwapError::Changed) => {
                fail(ErrorKind::Busy, format!("group '{name}' was changed meanwhile; try again"))
            }
            Err(SwapError::Unchanged(error) | SwapError::Unknown(error)) => Err(error).at(context),
        }
    }

    /// A group by its name.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`.
    pub fn group(&self, namespace: &Namespace, name: &str) -> Result<GroupInfo> {
        Ok(self.group_info(self.find_group(namespace, name)?.0))
    }

    fn group_info(&self, record: GroupRecord) -> GroupInfo {
        let member =
            |pool_id, image_id| MemberId { pool: PoolId(pool_id), image: ImageId(image_id) };
        let id = record.group_id;
        let snapshot = |snap: GroupSnapshotRecord| GroupSnapshotInfo {
            id: GroupSnapshotId { pool: self.id(), group: id, snapshot: snap.id },
            name: snap.name,
            complete: snap.complete,
            parts: snap
                .parts
                .iter()
                .map(|part| (member(part.pool_id, part.image_id), SnapId(part.snap_id)))
                .collect(),
        };
        GroupInfo {
            id,
            pool: self.name().to_owned(),
            namespace: Namespace::named(record.namespace),
            name: record.name,
            members: record.members.iter().map(|m| member(m.pool_id, m.image_id)).collect(),
            snapshots: record.snapshots.into_iter().map(snapshot).collect(),
        }
    }

    /// Creates a group without members.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name; `NotFound` for the namespace; `ReadOnly`.
    pub fn create_group(&self, namespace: &Namespace, name: &str) -> Result<()> {
        check_group_name(name)?;
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        self.check_free_for_group(namespace, name)?;
        let record = GroupRecord {
            group_id: self.unique(),
            namespace: namespace.in_records().to_owned(),
            name: name.to_owned(),
            ..GroupRecord::default()
        };
        let bytes = encode_message(FrameKind::Group, &record);
        let made = self.records().create(&Key::Group(record.group_id), &bytes);
        made.at(|| format!("cannot create group '{name}'"))
    }

    /// Fails where the namespace has a group of this name, or does not exist.
    fn check_free_for_group(&self, namespace: &Namespace, name: &str) -> Result<()> {
        match self.find_group(namespace, name) {
            Ok(_) => fail(ErrorKind::Exists, format!("group '{name}' already exists")),
            Err(error) if error.kind() == ErrorKind::NotFound => self.require_namespace(namespace),
            Err(error) => Err(error),
        }
    }

    /// Gives a group another name in its namespace.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Invalid`, `NameTooLong` for the new name; `ReadOnly`.
    pub fn rename_group(&self, namespace: &Namespace, from: &str, to: &str) -> Result<()> {
        check_group_name(to)?;
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (mut group, bytes) = self.find_group(namespace, from)?;
        self.check_free_for_group(namespace, to)?;
        to.clone_into(&mut group.name);
        self.replace_group(&bytes, &group)
    }

    /// Removes a group without members and snapshots.
    ///
    /// # Errors
    /// `NotFound`; `NotEmpty`; `ReadOnly`.
    pub fn remove_group(&self, namespace: &Namespace, name: &str) -> Result<()> {
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (group, _) = self.find_group(namespace, name)?;
        if !group.members.is_empty() || !group.snapshots.is_empty() {
            let message = format!("group '{name}' has members or snapshots");
            return fail(ErrorKind::NotEmpty, message);
        }
        self.remove_group_record(&group)
    }

    fn remove_group_record(&self, group: &GroupRecord) -> Result<()> {
        let key = Key::Group(group.group_id);
        let removed = self.records().remove(&key).and_then(|()| self.records().settle(&key));
        removed.at(|| format!("cannot remove group '{}'", group.name))
    }

    /// Removes all groups of a namespace. The pool's lock is held.
    pub(crate) fn remove_groups(&self, namespace: &str) -> Result<()> {
        let all = self.all_groups()?;
        let here = all.iter().filter(|(group, _)| group.namespace == namespace);
        here.map(|(group, _)| self.remove_group_record(group)).collect()
    }

    /// The group that an image of this pool is in.
    ///
    /// # Errors
    /// `Corrupt` where the note or the group cannot be read; obstacles.
    pub fn group_of(&self, image: ImageId) -> Result<Option<GroupInfo>> {
        let key = Key::GroupNote(image);
        let bytes = match self.read_record(&key) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let decoded = decode_message::<MembershipRecord>(FrameKind::Membership, &bytes);
        let shown = || format!("cannot use {}", self.records().show(&key));
        let (note, _) = decoded.map_err(|e| Error::from_format(shown(), e))?;
        let found = self.store().pool_by_id(PoolId(note.pool_id)).and_then(|pool| {
            let (group, _) = pool.read_group(note.group_id)?;
            Ok(pool.group_info(group))
        });
        match found {
            Ok(group) => {
                let member = MemberId { pool: self.id(), image };
                Ok(Some(group).filter(|group| group.members.contains(&member)))
            }
            // The group was removed, or the pool with its groups.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Locks this pool and the one of a member, in the order of their numbers.
    fn lock_with(&self, other: &Pool) -> Result<Vec<Box<dyn Lock>>> {
        let mut pools = vec![self, other];
        pools.sort_by_key(|pool| pool.id().0);
        pools.dedup_by_key(|pool| pool.id().0);
        pools.into_iter().map(|pool| pool.lock(LockMode::Exclusive)).collect()
    }

    /// Adds an image to a group of this pool. Does nothing where it is a member already.
    ///
    /// # Errors
    /// `Exists` where it is in another group; `NotFound` for the group or the image; `Invalid` where it lies
    /// in another namespace; `TooMany`; `ReadOnly`.
    pub fn add_to_group(
        &self,
        namespace: &Namespace,
        name: &str,
        of: &Pool,
        image: ImageId,
    ) -> Result<()> {
        self.check_writable()?;
        of.check_writable()?;
        let _locks = self.lock_with(of)?;
        let (mut group, bytes) = self.find_group(namespace, name)?;
        let head = of.read_head_for_writing(image)?;
        if head.namespace != namespace.in_records() {
            let message = "a group and its images are in the namespaces of one name";
            return fail(ErrorKind::Invalid, message);
        }
        let member = MemberId { pool: of.id(), image };
        if holds(&group, member) {
            return Ok(());
        }
        if let Some(other) = of.group_of(image)? {
            let label = of.image_label(&head);
            let message = format!("{label} is in group {}/{} already", other.pool, other.name);
            return fail(ErrorKind::Exists, message);
        }
        let note =
            MembershipRecord { image_id: image.0, pool_id: self.id().0, group_id: group.group_id };
        let key = Key::GroupNote(image);
        let put = of.records().put(&key, &encode_message(FrameKind::Membership, &note));
        put.at(|| format!("cannot write {}", of.records().show(&key)))?;
        group.members.push(member_record(member));
        self.replace_group(&bytes, &group)
    }

    /// Takes an image out of a group of this pool. Its parts of the group's snapshots stay. Does nothing where
    /// it is in no group.
    ///
    /// # Errors
    /// `InGroup` where it is in another group; `NotFound` for the group; `ReadOnly`.
    pub fn remove_from_group(
        &self,
        namespace: &Namespace,
        name: &str,
        of: &Pool,
        image: ImageId,
    ) -> Result<()> {
        self.check_writable()?;
        let _locks = self.lock_with(of)?;
        let (mut group, bytes) = self.find_group(namespace, name)?;
        let member = MemberId { pool: of.id(), image };
        if !holds(&group, member) {
            return match of.group_of(image)? {
                Some(other) => {
                    let message = format!("the image is in group {}/{}", other.pool, other.name);
                    fail(ErrorKind::InGroup, message)
                }
                None => Ok(()),
            };
        }
        group.members.retain(|other| *other != member_record(member));
        self.replace_group(&bytes, &group)?;
        if let Err(error) = of.records().remove(&Key::GroupNote(image)) {
            tracing::debug!(%image, %error, "a note of a group is left, which means nothing now");
        }
        Ok(())
    }

    /// Fails where the image is in a group. The pool's lock is held.
    pub(crate) fn check_in_no_group(&self, image: ImageId, label: &str) -> Result<()> {
        match self.group_of(image)? {
            None => Ok(()),
            Some(group) => {
                let message = format!("{label} is in group {}/{}", group.pool, group.name);
                fail(ErrorKind::InGroup, message)
            }
        }
    }

    /// Changes a group's record under the pool's lock. Returns what `change` returns, and the new record.
    fn change_group<T>(
        &self,
        find: impl FnOnce() -> Result<(GroupRecord, Vec<u8>)>,
        change: impl FnOnce(&mut GroupRecord) -> Result<T>,
    ) -> Result<(T, GroupRecord)> {
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (mut group, bytes) = find()?;
        let changed = change(&mut group)?;
        self.replace_group(&bytes, &group)?;
        Ok((changed, group))
    }

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

    /// Notes what is known of a group's snapshot: its parts, and whether it is complete.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`.
    pub fn settle_group_snapshot(
        &self,
        id: GroupSnapshotId,
        complete: bool,
        parts: &[(MemberId, SnapId)],
    ) -> Result<()> {
        self.change_group_snapshot(id, |snapshot| {
            let part = |(member, snap): &(MemberId, SnapId)| GroupPartRecord {
                pool_id: member.pool.0,
                image_id: member.image.0,
                snap_id: snap.0,
            };
            snapshot.complete = complete;
            snapshot.parts = parts.iter().map(part).collect();
            Some(())
        })
    }

    /// Forgets a group's snapshot whose parts are gone.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`.
    pub fn forget_group_snapshot(&self, id: GroupSnapshotId) -> Result<()> {
        self.change_group_snapshot(id, |_| None)
    }

    /// Changes a group's snapshot, or removes it where `change` returns `None`.
    fn change_group_snapshot(
        &self,
        id: GroupSnapshotId,
        change: impl FnOnce(&mut GroupSnapshotRecord) -> Option<()>,
    ) -> Result<()> {
        let find = || self.read_group(id.group);
        let changed = self.change_group(find, |group| {
            let at = group.snapshots.iter().position(|snapshot| snapshot.id == id.snapshot);
            let Some(at) = at else {
                return Err(self.no_group_snapshot(&group.name, "that number"));
            };
            if change(&mut group.snapshots[at]).is_none() {
                group.snapshots.remove(at);
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
