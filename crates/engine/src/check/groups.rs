//! Groups of images: damaged ones, members that are gone, and snapshots that were cut off.

use std::collections::HashSet;

use marcot_format::ImageId;
use marcot_format::record::{HeadRecord, SnapshotRecord};

use super::Checker;
use crate::catalog::{GroupInfo, GroupSnapshotId, ImageName, MemberId};
use crate::error::{ErrorKind, Result};

impl Checker<'_> {
    /// Reports groups that cannot be used, members that do not exist, and snapshots that are incomplete. A damaged
    /// group is repaired by giving it up: its images stay, in no group.
    pub(super) fn groups(&mut self) {
        let numbers = match self.pool.group_numbers() {
            Ok(numbers) => numbers,
            Err(error) => {
                let message = format!("groups cannot be listed: {}", error.sentence());
                return self.find_failed("", "groups", &error, message);
            }
        };
        for number in numbers {
            match self.pool.group_by_number(self.pool.id(), number) {
                Ok(group) => self.group(&group),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let message = format!(
                        "a group cannot be used, and images in it cannot be removed: {}",
                        error.sentence()
                    );
                    self.find_failed("", "a group", &error, message);
                    let damaged = error.kind() == ErrorKind::Corrupt;
                    if damaged && self.options.repair && self.pool.give_group_up(number).is_ok() {
                        self.repaired();
                    }
                }
            }
        }
    }

    fn group(&mut self, group: &GroupInfo) {
        let name = ImageName::new(&*group.name).in_namespace(group.namespace.clone());
        for snapshot in group.snapshots.iter().filter(|snapshot| !snapshot.complete) {
            let message = format!(
                "snapshot '{}' of group '{name}' is incomplete: it is being made or removed, or that was cut off; 'group snap rm' removes it",
                snapshot.name
            );
            self.find("", false, message);
        }
        for member in &group.members {
            let MemberId { pool, image } = *member;
            let found = self.pool.pool_of_member(*member).and_then(|pool| pool.read_head(image));
            match found.map_err(|error| (error.kind(), error)) {
                Err((ErrorKind::NotFound, _)) => {
                    let message = format!(
                        "group '{name}' lists image {image} of pool {pool}, which does not exist"
                    );
                    self.find("", false, message);
                    let taken_out = || {
                        self.pool.remove_from_group(&group.namespace, &group.name, *member).is_ok()
                    };
                    if self.options.repair && taken_out() {
                        self.repaired();
                    }
                }
                Err((kind, error)) if kind.is_obstacle() => {
                    let what = format!("image {image} of pool {pool}, which is in group '{name}',");
                    self.find_unseen("", &what, kind, &error.sentence().to_string());
                }
                // What else is wrong with an image is found where its pool is checked.
                _ => {}
            }
        }
    }

    /// Reports a snapshot of an image that belongs to a group's snapshot which does not exist.
    pub(super) fn part(&mut self, label: &str, image: ImageId, snapshot: &SnapshotRecord) {
        let Some(part) = &snapshot.group else { return };
        let id = GroupSnapshotId::of(part);
        if self.parts_known.contains(&id) {
            return;
        }
        match self.snapshots_of_group(id) {
            Ok(known) => self.parts_known.extend(known),
            Err(error) => {
                let message = error.sentence().to_string();
                return self.find_unseen(label, "the group of a snapshot", error.kind(), &message);
            }
        }
        let there = |head: &HeadRecord| head.snapshots.iter().any(|s| s.id == snapshot.id);
        // It may have been removed since the head was read, and its group's after it.
        let still = || self.pool.read_head(image).is_ok_and(|head| there(&head));
        if !self.parts_known.contains(&id) && still() {
            let message = format!(
                "snapshot {0} is a part of a group's snapshot that does not exist; if nobody needs it, 'snap rm --snap-id {0}' removes it",
                snapshot.id
            );
            self.find(label, false, message);
        }
    }

    /// The snapshots of the group that a snapshot is said to be of.
    fn snapshots_of_group(&self, id: GroupSnapshotId) -> Result<HashSet<GroupSnapshotId>> {
        match self.pool.group_by_number(id.pool, id.group) {
            Ok(group) => Ok(group.snapshots.into_iter().map(|snapshot| snapshot.id).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(HashSet::new()),
            Err(error) => Err(error),
        }
    }
}
