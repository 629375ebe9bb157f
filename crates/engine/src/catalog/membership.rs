//! Which group an image is in, and how it gets in and out.
//!
//! An image is in one group at the most, as in RBD. A lock sees to that where one process after the other has it. A pool
//! in a bucket has a lock on each host, so there the order of the steps sees to it. The note beside the head is
//! the *claim* of a group to the image.
//!
//! Invariants of pools in buckets:
//! - A group's record lists an image only if it was read before the claim was stored, and has not changed since.
//! - A claim is replaced only if it is the one that was read, and no two claims are equal.
//! - A claim of a group that does not list the image is replaced by one of another group only after the record of the
//!   former was replaced. So whoever had stored it, and was about to list the image, cannot do it any more.
//! - A claim is removed only after its group has ceased to list the image, and only if it is the one that was read
//!   before.

use marcot_backend::{Key, SwapError};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{GroupRecord, MembershipRecord};
use marcot_format::{ImageId, PoolId};
use marcot_store::{Lock, LockMode};

use super::groups::{GroupInfo, MemberId, holds, member_record};
use super::image_name::Namespace;
use super::pool::Pool;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};

impl Pool {
    /// The bytes of what is noted of the group of an image of this pool.
    fn group_note(&self, image: ImageId) -> Result<Option<Vec<u8>>> {
        match self.read_record(&Key::GroupNote(image)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            bytes => bytes.map(Some),
        }
    }

    /// The group that an image of this pool is in.
    ///
    /// # Errors
    /// `Corrupt` where the group cannot be read; `NewerFormat`; obstacles.
    pub fn group_of(&self, image: ImageId) -> Result<Option<GroupInfo>> {
        match self.group_note(image)? {
            None => Ok(None),
            Some(note) => self.group_by_note(image, &note),
        }
    }

    /// The group that an image of this pool is in, where it has this note.
    fn group_by_note(&self, image: ImageId, note: &[u8]) -> Result<Option<GroupInfo>> {
        let member = MemberId { pool: self.id(), image };
        let found = match decode_message::<MembershipRecord>(FrameKind::Membership, note) {
            Ok((note, _)) => self.pool_with(PoolId(note.pool_id)).and_then(|pool| {
                let (group, _) = pool.read_group(note.group_id)?;
                Ok(Some(pool.group_info(group)).filter(|group| group.members.contains(&member)))
            }),
            Err(error) => {
                let shown = self.records().show(&Key::GroupNote(image));
                let error = Error::from_format(shown, error);
                match error.kind() {
                    ErrorKind::Corrupt => self.group_that_lists(member),
                    _ => Err(error),
                }
            }
        };
        match found {
            // The group was removed, or the pool with its groups.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            found => found,
        }
    }

    /// The group that an image is in, found without its note.
    fn group_that_lists(&self, member: MemberId) -> Result<Option<GroupInfo>> {
        let others = self.store().pools_of_children()?;
        for pool in [self].into_iter().chain(others.iter().filter(|pool| pool.id() != self.id())) {
            let mut groups = pool.all_groups()?.into_iter();
            if let Some((group, _)) = groups.find(|(group, _)| holds(group, member)) {
                return Ok(Some(pool.group_info(group)));
            }
        }
        Ok(None)
    }

    /// Fails where others who use one of two pools cannot see the other one.
    fn check_seen_together(&self, other: &Self) -> Result<()> {
        if self.id() == other.id() {
            return Ok(());
        }
        for pool in [self, other] {
            if pool.attached() || self.store().bucket_of(pool.name())?.is_some() {
                let message = format!(
                    "pool '{}' may be used by others, who do not see all pools of this store: its images are only in groups of the same pool",
                    pool.name()
                );
                return fail(ErrorKind::Unsupported, message);
            }
        }
        Ok(())
    }

    /// Locks this pool and those of members, in the order of their numbers.
    fn lock_with(&self, others: &[&Pool]) -> Result<Vec<Box<dyn Lock>>> {
        let mut pools = [&[self], others].concat();
        pools.sort_by_key(|pool| pool.id().0);
        pools.dedup_by_key(|pool| pool.id().0);
        pools.into_iter().map(|pool| pool.lock(LockMode::Exclusive)).collect()
    }

    /// Adds an image to a group of this pool. Does nothing where it is a member already.
    ///
    /// # Errors
    /// `Exists` where it is in another group; `NotFound` for the group or the image; `Invalid` where it lies
    /// in another namespace; `Unsupported` for another pool, if others use one of the two; `Busy` where another host
    /// changes the group, or adds the image to one, at the same time; `TooMany`; `ReadOnly`.
    pub fn add_to_group(
        &self,
        namespace: &Namespace,
        name: &str,
        of: &Pool,
        image: ImageId,
    ) -> Result<()> {
        self.check_writable()?;
        of.check_writable()?;
        self.check_seen_together(of)?;
        let _locks = self.lock_with(&[of])?;
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
        let before = of.group_note(image)?;
        let other = before.as_ref().map(|note| of.group_by_note(image, note)).transpose()?;
        if let Some(other) = other.flatten() {
            let label = of.image_label(&head);
            let message = format!("{label} is in group {}/{} already", other.pool, other.name);
            return fail(ErrorKind::Exists, message);
        }
        self.claim(of, image, &group, before.as_deref())?;
        group.members.push(member_record(member));
        self.replace_group(&bytes, &group)?;
        self.check_not_removed(of, image, &group)
    }

    /// Notes that a group of this pool is going to list an image, which is in no group. `before` is the note so far.
    fn claim(
        &self,
        of: &Self,
        image: ImageId,
        group: &GroupRecord,
        before: Option<&[u8]>,
    ) -> Result<()> {
        let key = Key::GroupNote(image);
        let context = || format!("cannot write {}", of.records().show(&key));
        let hosts = of.segments().shipping().is_some();
        let note = MembershipRecord {
            image_id: image.0,
            pool_id: self.id().0,
            group_id: group.group_id,
            claim: if hosts { self.unique() } else { 0 },
        };
        let note = encode_message(FrameKind::Membership, &note);
        if !hosts {
            return of.records().put(&key, &note).at(context);
        }
        if let Some(before) = before {
            self.end_claim(before, group)?;
        } else {
            match of.records().create(&key, &note) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                created => return created.at(context),
            }
        }
        // A note that was removed has no bytes.
        match of.records().replace(&key, before.unwrap_or_default(), &note) {
            Ok(()) => Ok(()),
            Err(SwapError::Changed) => {
                let message = "another host adds the image to a group; try again";
                fail(ErrorKind::Busy, message)
            }
            Err(SwapError::Unchanged(error) | SwapError::Unknown(error)) => Err(error).at(context),
        }
    }

    /// Sees to it that nobody lists an image any more because of a note. The group of the note did not list the image.
    fn end_claim(&self, note: &[u8], next: &GroupRecord) -> Result<()> {
        let Ok((note, _)) = decode_message::<MembershipRecord>(FrameKind::Membership, note) else {
            return Ok(());
        };
        if (note.pool_id, note.group_id) == (self.id().0, next.group_id) {
            // The record that is going to be replaced was read already.
            return Ok(());
        }
        let member = member_record(MemberId { pool: self.id(), image: ImageId(note.image_id) });
        let other = match self.read_group(note.group_id) {
            // A group that was removed lists nothing any more. Its number is not given again.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match other {
            (other, _) if other.members.contains(&member) => {
                let message =
                    format!("the image is in group {}/{} already", self.name(), other.name);
                fail(ErrorKind::Exists, message)
            }
            (other, bytes) => self.replace_group(&bytes, &other),
        }
    }

    /// After an image became a member of a group of this pool: takes it out again where another host removes it at the
    /// same time. That host marks the image first, and looks for its group then.
    fn check_not_removed(&self, of: &Self, image: ImageId, group: &GroupRecord) -> Result<()> {
        if of.segments().shipping().is_none() {
            return Ok(());
        }
        let gone = match of.read_head(image) {
            Ok(head) => head.removing,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        if !gone {
            return Ok(());
        }
        let member = member_record(MemberId { pool: of.id(), image });
        let (mut now, bytes) = self.read_group(group.group_id)?;
        now.members.retain(|other| *other != member);
        self.replace_group(&bytes, &now)?;
        if of.read_head(image).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            // What lies beside a head goes with it. The note came after that.
            of.remove_head(image);
        }
        fail(ErrorKind::NotFound, "the image is being removed by another host")
    }

    /// Takes an image out of a group of this pool. Its parts of the group's snapshots stay. Does nothing where
    /// it is in no group.
    ///
    /// # Errors
    /// `InGroup` where it is in another group; `NotFound` for the group; `Busy` where another host changes the group at
    /// the same time; `ReadOnly`.
    pub fn remove_from_group(
        &self,
        namespace: &Namespace,
        name: &str,
        member: MemberId,
    ) -> Result<()> {
        self.check_writable()?;
        let of = match self.pool_of_member(member) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            of => Some(of?),
        };
        let _locks = self.lock_with(&[of.as_ref().unwrap_or(self)])?;
        let (mut group, bytes) = self.find_group(namespace, name)?;
        let image = member.image;
        if !holds(&group, member) {
            let found = of.map(|of| of.group_of(image)).transpose()?.flatten();
            return match found {
                Some(other) => {
                    let message = format!("the image is in group {}/{}", other.pool, other.name);
                    fail(ErrorKind::InGroup, message)
                }
                None => Ok(()),
            };
        }
        let note = of.as_ref().and_then(|of| Some((of, of.group_note(image).ok().flatten()?)));
        group.members.retain(|other| *other != member_record(member));
        self.replace_group(&bytes, &group)?;
        let removed =
            note.map(|(of, note)| of.records().remove_same(&Key::GroupNote(image), &note));
        if let Some(Err(error)) = removed {
            tracing::debug!(%image, %error, "a note of a group is left, which means nothing now");
        }
        Ok(())
    }

    /// Fails where an image of `dest`, in this namespace, cannot take the place of an image of this pool in its group.
    ///
    /// # Errors
    /// `Invalid` where the namespace is another one; `Unsupported` for a pool that others use; those of reading the group.
    pub(crate) fn check_member_may_move(
        &self,
        image: ImageId,
        label: &str,
        (dest, namespace): (&Self, &Namespace),
    ) -> Result<()> {
        let Some(group) = self.group_of(image)? else { return Ok(()) };
        let (pool, name) = (self.store().pool(&group.pool)?, &group.name);
        pool.check_writable()?;
        pool.check_seen_together(dest)?;
        if group.namespace == *namespace {
            return Ok(());
        }
        let message = format!(
            "{label} is in group {}/{name}, and a group and its images are in the namespaces of one name; take it out of the group first",
            group.pool
        );
        fail(ErrorKind::Invalid, message)
    }

    /// Puts an image of the pool `to` in the place of one of this pool in the group that this one is in, if it is in one:
    /// the target of a migration in that of its source, or back. Both are in pools of this host. Where the new one is in a
    /// group already, it stays there, and the old one is only taken out of its group.
    ///
    /// 1. The note of the new member. 2. **The group's record.** 3. The note of the old one is removed.
    ///
    /// # Errors
    /// As [`Self::check_member_may_move`]; those of replacing the group's record.
    pub(crate) fn replace_member(
        &self,
        image: ImageId,
        (to, new): (&Self, ImageId),
        label: &str,
    ) -> Result<()> {
        let Some(found) = self.group_of(image)? else { return Ok(()) };
        let pool = self.store().pool(&found.pool)?;
        let _locks = pool.lock_with(&[self, to])?;
        let (mut group, bytes) = pool.find_group(&found.namespace, &found.name)?;
        let old = member_record(MemberId { pool: self.id(), image });
        let place = group.members.iter().position(|member| *member == old);
        // Somebody has taken it out meanwhile.
        let Some(place) = place else { return Ok(()) };
        let note = self.group_note(image)?;
        // A user can add an image between the steps of a migration.
        if to.group_of(new)?.is_some() {
            group.members.remove(place);
        } else {
            let namespace = Namespace::named(&*to.read_head(new)?.namespace);
            self.check_member_may_move(image, label, (to, &namespace))?;
            group.members[place] = member_record(MemberId { pool: to.id(), image: new });
            pool.claim(to, new, &group, None)?;
        }
        pool.replace_group(&bytes, &group)?;
        let removed = note.map(|note| self.records().remove_same(&Key::GroupNote(image), &note));
        if let Some(Err(error)) = removed {
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
}
