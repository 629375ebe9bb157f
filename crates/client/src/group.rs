//! Groups of images, and snapshots of all members of a group at one moment.
//!
//! The members may be open in different processes, and be written meanwhile. A snapshot of the group takes each
//! of these steps with all members before it takes the next one: their users are quieted; they are held, so
//! that no write is acknowledged; each takes its part; they are released. If a step fails, the parts that
//! were taken are removed. If this process ends in between, the snapshot stays incomplete, which its group
//! shows; then it can only be removed.

use std::thread;

use marcot::{
    Error, ErrorKind, GroupInfo, GroupSnapshotId, GroupSnapshotInfo, ImageName, MemberId,
    Namespace, Result, SnapId,
};
use marcot_serve::control::{Command, GroupStep};

use crate::image::Image;
use crate::operation::Operation;
use crate::owner::{Answer, Reached};
use crate::pool::Pool;
use crate::snapshot::Quiesce;

/// Members that take a step at once.
const AT_ONCE_MAX: usize = 32;

/// A group of a pool, by its name. Cheap to clone. The handle keeps nothing open.
///
/// Every method fails with `NotFound` if there is no group of that name.
#[derive(Debug, Clone)]
pub struct Group {
    pool: Pool,
    namespace: Namespace,
    name: String,
}

impl Pool {
    /// The names of the groups of a namespace, sorted.
    ///
    /// # Errors
    /// `NotFound` for the namespace; errors of the operating system.
    pub fn groups(&self, namespace: &Namespace) -> Result<Vec<String>> {
        self.operate(Operation::ListGroups, || self.engine().groups(namespace))
    }

    /// Creates a group without members.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name; `NotFound` for the namespace; `ReadOnly`.
    pub fn create_group(&self, namespace: &Namespace, name: &str) -> Result<Group> {
        self.operate(Operation::CreateGroup, || self.engine().create_group(namespace, name))?;
        Ok(self.group(namespace, name))
    }

    /// A handle of a group. Nothing is read yet.
    #[must_use]
    pub fn group(&self, namespace: &Namespace, name: &str) -> Group {
        Group { pool: self.clone(), namespace: namespace.clone(), name: name.to_owned() }
    }

    /// The present names of a group's snapshot, in whatever pool: pool, group and snapshot. `None` where it
    /// cannot be found.
    ///
    /// # Errors
    /// Only that of the admission.
    pub fn group_snapshot_names(
        &self,
        id: GroupSnapshotId,
    ) -> Result<Option<(String, String, String)>> {
        let store = self.client().store();
        self.operate(Operation::ListGroups, || Ok(store.group_snapshot_names(id)))
    }
}

impl Image {
    /// The group that the image is in.
    ///
    /// # Errors
    /// `Corrupt`; errors of the operating system.
    pub fn group(&self) -> Result<Option<GroupInfo>> {
        self.operate(Operation::ListGroups, || self.engine_pool().group_of(self.id()))
    }
}

impl Group {
    fn operate<T>(&self, operation: Operation, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.pool.operate(operation, work)
    }

    fn read(&self) -> Result<GroupInfo> {
        self.pool.engine().group(&self.namespace, &self.name)
    }

    fn snapshot(&self, name: &str) -> Result<GroupSnapshotInfo> {
        let info = self.read()?;
        info.snapshot(name).cloned().ok_or_else(|| {
            let message = format!("group '{}' has no snapshot '{name}'", self.name);
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// Its members and snapshots.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`.
    pub fn info(&self) -> Result<GroupInfo> {
        self.operate(Operation::ListGroups, || self.read())
    }

    /// A handle of a member. Nothing of it is read yet.
    ///
    /// # Errors
    /// `NotFound` for its pool.
    pub fn member(&self, member: MemberId) -> Result<Image> {
        let pool = self.pool.engine().pool_of_member(member)?;
        let pool = Pool::new(self.pool.client().clone(), pool);
        let name = ImageName::new(member.image.to_string()).in_namespace(&self.namespace);
        Ok(pool.known_image(name, member.image))
    }

    /// Gives it another name in its namespace.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Invalid`, `NameTooLong` for the new name; `ReadOnly`.
    pub fn rename(&self, name: &str) -> Result<Self> {
        let engine = self.pool.engine();
        self.operate(Operation::RenameGroup, || {
            engine.rename_group(&self.namespace, &self.name, name)
        })?;
        Ok(self.pool.group(&self.namespace, name))
    }

    /// Removes its snapshots, takes its members out, and removes it. The images stay.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`; those of [`Self::remove_snapshot`].
    pub fn remove(&self) -> Result<()> {
        self.operate(Operation::RemoveGroup, || {
            let info = self.read()?;
            for snapshot in &info.snapshots {
                self.remove_parts(snapshot)?;
            }
            for member in info.members {
                self.take_out_member(member)?;
            }
            self.pool.engine().remove_group(&self.namespace, &self.name)
        })
    }

    /// Adds an image. Does nothing where it is a member already.
    ///
    /// # Errors
    /// `Exists` where it is in another group; `NotFound`; `Invalid` where it lies in another namespace;
    /// `TooMany`; `ReadOnly`.
    pub fn add(&self, image: &Image) -> Result<()> {
        let (engine, of) = (self.pool.engine(), image.engine_pool());
        self.operate(Operation::AddToGroup, || {
            engine.add_to_group(&self.namespace, &self.name, of, image.id())
        })
    }

    /// Takes an image out. Its parts of the group's snapshots stay with it. Does nothing where it is in no
    /// group.
    ///
    /// # Errors
    /// `InGroup` where it is in another group; `NotFound`; `ReadOnly`.
    pub fn take_out(&self, image: &Image) -> Result<()> {
        let member = MemberId { pool: image.engine_pool().id(), image: image.id() };
        self.operate(Operation::TakeOutOfGroup, || self.take_out_member(member))
    }

    fn take_out_member(&self, member: MemberId) -> Result<()> {
        self.pool.engine().remove_from_group(&self.namespace, &self.name, member)
    }

    /// Takes a snapshot of all members at one moment, whoever has them open. It has every write that was
    /// acknowledged before, and no write of which an earlier one is missing, in whatever member. It is durable on
    /// return.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for the name; `NotFound`; `TooMany`; `Owned` for an owner that cannot
    /// be reached; those of quieting users; `NoSpace`; `Interrupted`. Then there is no snapshot.
    pub fn create_snapshot(&self, name: &str, quiesce: Quiesce) -> Result<()> {
        let (engine, namespace) = (self.pool.engine(), &self.namespace);
        self.operate(Operation::CreateGroupSnapshot, || {
            let mut begun = engine.begin_group_snapshot(namespace, &self.name, name)?;
            let mut asked = false;
            let parts = self.take_parts(&begun, quiesce, &mut asked);
            let created =
                parts.and_then(|parts| engine.complete_group_snapshot(begun.id, &parts));
            created.inspect_err(|_| {
                // Where this fails too, the snapshot stays, incomplete.
                begun.parts.retain(|_| asked);
                if let Err(left) = self.remove_parts(&begun) {
                    tracing::warn!(error = %left.sentence(), "an incomplete snapshot of a group is left");
                }
            })
        })
    }

    /// Has all members take their parts. `asked` says whether some may have one, also where this fails.
    fn take_parts(
        &self,
        snapshot: &GroupSnapshotInfo,
        quiesce: Quiesce,
        asked: &mut bool,
    ) -> Result<Vec<(MemberId, SnapId)>> {
        let mut members = Members::reach(self, snapshot)?;
        match quiesce {
            Quiesce::Skip => {}
            Quiesce::Required => members.step(GroupStep::Quiesce { ignore_errors: false })?,
            Quiesce::IgnoreErrors => members.step(GroupStep::Quiesce { ignore_errors: true })?,
        }
        members.step(GroupStep::Hold)?;
        *asked = true;
        let parts = members.ask(GroupStep::Create(snapshot.id.into()))?;
        // A member that was held for too long has refused to take its part.
        members.release();
        Ok(parts)
    }

    /// Removes a snapshot: each member's part of it, also of images that are no members any more.
    ///
    /// # Errors
    /// `NotFound`; `Busy` where a part is being read; `Owned` for an owner that cannot be reached; `ReadOnly`;
    /// `Interrupted`. Then it is incomplete, and can be removed again.
    pub fn remove_snapshot(&self, name: &str) -> Result<()> {
        self.operate(Operation::RemoveGroupSnapshot, || {
            let snapshot = self.snapshot(name)?;
            self.remove_parts(&snapshot)
        })
    }

    fn remove_parts(&self, snapshot: &GroupSnapshotInfo) -> Result<()> {
        let engine = self.pool.engine();
        // Whoever has removed it from the group in between may have done so before a part was taken.
        let forgotten = |noted: Result<()>| match noted {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            noted => noted,
        };
        forgotten(engine.begin_group_snapshot_removal(snapshot.id))?;
        let remove = Command::ForGroup { step: GroupStep::Remove(snapshot.id.into()) };
        for (member, _) in &snapshot.parts {
            let removed =
                self.member(*member).and_then(|image| image.run::<()>(&remove, &mut |_, _| {}));
            match removed {
                // The image is gone, or its pool.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        forgotten(engine.forget_group_snapshot(snapshot.id))
    }

    /// Gives a snapshot another name.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Invalid`, `NameTooLong` for the new name; `ReadOnly`.
    pub fn rename_snapshot(&self, from: &str, to: &str) -> Result<()> {
        let engine = self.pool.engine();
        self.operate(Operation::RenameGroupSnapshot, || {
            engine.rename_group_snapshot(&self.namespace, &self.name, from, to)
        })
    }

    /// Resets the images that have a part of a snapshot to it, also those that are no members any more. Members
    /// that have no part of it stay as they are. `progress` gets how many were reset, and how many are to be.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for an incomplete snapshot; `Owned` for an owner that cannot be reached;
    /// `Interrupted`. Some members may have been reset then.
    pub fn roll_back(&self, name: &str, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.operate(Operation::RollBackGroup, || {
            let snapshot = self.snapshot(name)?;
            if !snapshot.complete {
                let message = format!("snapshot '{name}' of group '{}' is incomplete", self.name);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            let mut members = Members::reach(self, &snapshot)?;
            members.step(GroupStep::Hold)?;
            let total = members.reached.len() as u64;
            let back = members.try_each::<()>(GroupStep::RollBack(snapshot.id.into()));
            for (done, outcome) in (1..).zip(back) {
                match outcome {
                    // As with RBD: somebody has removed this image's part by its number.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    outcome => outcome.map(|(_, ())| ())?,
                }
                progress(done, total);
            }
            members.release();
            Ok(())
        })
    }
}

/// The images that have a part of a snapshot, each open here or at its owner. Dropping them releases them.
struct Members {
    reached: Vec<(MemberId, Reached)>,
}

impl Members {
    /// Reaches all, in the order of their numbers. So two who reach some of the same images do not wait for
    /// each other.
    fn reach(group: &Group, snapshot: &GroupSnapshotInfo) -> Result<Self> {
        let mut ids: Vec<MemberId> = snapshot.parts.iter().map(|(member, _)| *member).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut reached = Vec::new();
        for id in ids {
            let member = group.member(id).and_then(|image| image.reach()).map_err(|error| {
                let MemberId { pool, image } = id;
                error.context(format!("image {image} of pool {pool} is in group '{}'", group.name))
            })?;
            reached.push((id, member));
        }
        Ok(Self { reached })
    }

    /// Takes a step with all of them, one after the other. So of two who hold some of the same images, one waits
    /// for the other before it has held the rest.
    fn step(&mut self, step: GroupStep) -> Result<()> {
        for (_, reached) in &mut self.reached {
            reached.ask::<()>(&Command::ForGroup { step })?;
        }
        Ok(())
    }

    /// Takes a step with all of them, and returns their answers.
    fn ask<T: Answer + Send>(&mut self, step: GroupStep) -> Result<Vec<(MemberId, T)>> {
        self.try_each(step).into_iter().collect()
    }

    /// Takes a step with all of them, with many at once, because guests wait meanwhile.
    fn try_each<T: Answer + Send>(&mut self, step: GroupStep) -> Vec<Result<(MemberId, T)>> {
        let command = &Command::ForGroup { step };
        let mut answers = Vec::new();
        for some in self.reached.chunks_mut(AT_ONCE_MAX) {
            thread::scope(|scope| {
                let asked: Vec<_> = some
                    .iter_mut()
                    .map(|(member, reached)| {
                        scope.spawn(move || reached.ask(command).map(|answer| (*member, answer)))
                    })
                    .collect();
                answers.extend(asked.into_iter().map(|thread| {
                    let failed =
                        || Error::new(ErrorKind::Io, "a step of a group's snapshot failed");
                    thread.join().unwrap_or_else(|_| Err(failed()))
                }));
            });
        }
        answers
    }

    /// Releases all, which also ends the quiet of their users.
    fn release(mut self) {
        for (_, mut reached) in self.reached.drain(..) {
            // An owner that is not told notices that the connection has gone.
            let _ = reached.ask::<()>(&Command::ForGroup { step: GroupStep::Release });
            reached.close();
        }
    }
}
