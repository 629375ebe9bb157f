//! Groups of images, and the snapshots that were taken of all members of a group at one moment.
//!
//! A group is a record of a pool, in a namespace, by its name. It lists its members, which may lie in any pool
//! that only this store uses, and its snapshots. Beside the head of each member a note says in which group it
//! is. In a head, a snapshot that belongs to one of a group says so.
//!
//! Invariants ([`super::membership`] has more of them):
//! - The group's record decides who is a member. The note is durable before it lists the image, so an image in
//!   a group is found by its note. A note of a group that does not list the image means nothing.
//! - A snapshot of a group is complete only after each of its members has its part of it. It is incomplete
//!   before the first part is made and before the first part is removed, so no part is forgotten. One whose
//!   removal has begun is never complete again.
//! - A group's record is changed under the lock of its pool, and membership of an image under the lock of the
//!   image's pool too. The locks are taken in the order of the pools' numbers. A pool in a bucket has a lock on
//!   each host; so the record is replaced only where it is the one that was read.
//! - Who can see an image can see its group. So an image in a pool that other stores or hosts use is only in groups
//!   of that pool.
//! - What cannot be looked at is never taken for missing: not a pool, not a record.

use marcot_backend::{Key, Listed, Prefix, SwapError};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{GroupMemberRecord, GroupRecord, GroupSnapshotRecord, PartOfRecord};
use marcot_format::{ImageId, PoolId, SnapId};
use marcot_store::LockMode;

use super::image_name::{ImageName, Namespace};
use super::level::refuse_newer;
use super::names::{check_group_name, could_be_given, is_acceptable};
use super::pool::Pool;
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

/// A group with its bytes, which a change compares.
type Stored = (GroupRecord, Vec<u8>);

pub(super) fn member_record(member: MemberId) -> GroupMemberRecord {
    GroupMemberRecord { pool_id: member.pool.0, image_id: member.image.0 }
}

pub(super) fn holds(group: &GroupRecord, member: MemberId) -> bool {
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
        let (groups, unread) = self.readable_groups()?;
        if let Some(error) = unread {
            tracing::warn!(error = %error.sentence(), "a group is left out");
        }
        let here = groups.into_iter().map(|(group, _)| group);
        let here = here.filter(|group| group.namespace == namespace.in_records());
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
    pub(super) fn all_groups(&self) -> Result<Vec<Stored>> {
        match self.readable_groups()? {
            (groups, None) => Ok(groups),
            (_, Some(error)) => Err(error),
        }
    }

    /// The groups of the pool that can be read, each with its bytes, and why one cannot.
    fn readable_groups(&self) -> Result<(Vec<Stored>, Option<Error>)> {
        let (mut groups, mut unread) = (Vec::new(), None);
        for number in self.group_numbers()? {
            match self.read_group(number) {
                Ok(group) => groups.push(group),
                // It was removed since the groups were listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => unread = Some(error),
            }
        }
        Ok((groups, unread))
    }

    /// The numbers of the pool's groups, in order.
    pub(crate) fn group_numbers(&self) -> Result<Vec<u64>> {
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
        Ok(numbers)
    }

    /// A group by its number, with its bytes.
    pub(super) fn read_group(&self, number: u64) -> Result<Stored> {
        let key = Key::Group(number);
        let bytes = match self.read_record_up_to(&key, GROUP_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(self.no_group(&format!("{number:016x}")));
            }
            bytes => bytes?,
        };
        let decoded = decode_message::<GroupRecord>(FrameKind::Group, &bytes);
        let shown = || {
            let shown = self.records().show(&key);
            format!("cannot use {shown}, a group ('check --repair' gives a damaged one up)")
        };
        let group = decoded.map_err(|e| Error::from_format(shown(), e))?.0;
        if group.group_id != number {
            return fail(ErrorKind::Corrupt, format!("{}: it is another group", shown()));
        }
        Ok((group, bytes))
    }

    /// A group of a pool, by its number.
    pub(crate) fn group_by_number(&self, pool: PoolId, number: u64) -> Result<GroupInfo> {
        let pool = self.pool_with(pool)?;
        let (group, _) = pool.read_group(number)?;
        Ok(pool.group_info(group))
    }

    /// Removes the record of a group that cannot be used. Its images stay, and their parts of its snapshots.
    pub(crate) fn give_group_up(&self, number: u64) -> Result<()> {
        let _lock = self.lock(LockMode::Exclusive)?;
        match self.read_group(number) {
            Err(error) if error.kind() == ErrorKind::Corrupt => self
                .remove_group_record(&GroupRecord { group_id: number, ..GroupRecord::default() }),
            _ => Ok(()),
        }
    }

    /// A group by its name, with its bytes.
    pub(super) fn find_group(&self, namespace: &Namespace, name: &str) -> Result<Stored> {
        let wanted = (namespace.in_records(), name);
        let is_wanted = |group: &GroupRecord| (&*group.namespace, &*group.name) == wanted;
        let (groups, unread) = self.readable_groups()?;
        let found = groups.into_iter().find(|(group, _)| is_wanted(group));
        match (found.filter(|_| is_acceptable(name)), unread) {
            (Some(found), _) => Ok(found),
            // It may be the one that is wanted.
            (None, Some(error)) => Err(error),
            (None, None) => {
                self.require_namespace(namespace)?;
                Err(self.no_group(name))
            }
        }
    }

    /// Replaces a group's record, if it still has these bytes.
    pub(super) fn replace_group(&self, from: &[u8], group: &GroupRecord) -> Result<()> {
        let changed = GroupRecord { changes: group.changes.wrapping_add(1), ..group.clone() };
        let (name, bytes) = (&group.name, encode_message(FrameKind::Group, &changed));
        if bytes.len() as u64 > GROUP_BYTES_MAX {
            let message =
                format!("group '{name}' has as many members and snapshots as it can; remove some");
            return fail(ErrorKind::TooMany, message);
        }
        let context = || format!("cannot write group '{name}'");
        refuse_newer(FrameKind::Group, from, &format!("group '{name}'"))?;
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

    pub(super) fn group_info(&self, record: GroupRecord) -> GroupInfo {
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

    /// Fails where a group, in a namespace or in the whole pool, has an image or a part of a snapshot in another
    /// pool. The pool's lock is held.
    pub(crate) fn check_groups_end_here(&self, namespace: Option<&str>) -> Result<()> {
        let here = self.id().0;
        for (group, _) in self.all_groups()? {
            let parts = group.snapshots.iter().flat_map(|snapshot| &snapshot.parts);
            let pools =
                parts.map(|part| part.pool_id).chain(group.members.iter().map(|m| m.pool_id));
            let wanted = namespace.is_none_or(|namespace| namespace == group.namespace);
            if wanted && pools.into_iter().any(|pool| pool != here) {
                let name =
                    ImageName::new(group.name).in_namespace(Namespace::named(group.namespace));
                let message = format!(
                    "group {}/{name} has images in other pools: 'group rm' it first",
                    self.name()
                );
                return fail(ErrorKind::NotEmpty, message);
            }
        }
        Ok(())
    }

    /// Removes all groups of a namespace. The pool's lock is held.
    pub(crate) fn remove_groups(&self, namespace: &str) -> Result<()> {
        let all = self.all_groups()?;
        let mut here = all.iter().filter(|(group, _)| group.namespace == namespace);
        here.try_for_each(|(group, _)| self.remove_group_record(group))
    }

    /// The pool with a number, seen from here.
    ///
    /// # Errors
    /// `NotFound` only where the store has no such pool; why a pool that may be it cannot be opened.
    pub(super) fn pool_with(&self, id: PoolId) -> Result<Self> {
        if id == self.id() {
            return Ok(self.clone());
        }
        match self.store().pool_by_id(id) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // It may be one that cannot be opened now.
                let mut pools = self.store().pools_of_children()?.into_iter();
                pools.find(|pool| pool.id() == id).ok_or(error)
            }
            found => found,
        }
    }

    /// The pool of an image in a group of this pool.
    ///
    /// # Errors
    /// `NotFound` only where the store has no such pool; why a pool that may be it cannot be opened.
    pub fn pool_of_member(&self, member: MemberId) -> Result<Self> {
        self.pool_with(member.pool)
    }

    /// Changes a group's record under the pool's lock. Returns what `change` returns, and the new record.
    pub(super) fn change_group<T>(
        &self,
        find: impl FnOnce() -> Result<Stored>,
        change: impl FnOnce(&mut GroupRecord) -> Result<T>,
    ) -> Result<(T, GroupRecord)> {
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (mut group, bytes) = find()?;
        let changed = change(&mut group)?;
        self.replace_group(&bytes, &group)?;
        Ok((changed, group))
    }
}
