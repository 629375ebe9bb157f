//! The byte oracle: the states that are allowed after every operation, and when one is interrupted.
//!
//! An image's content is a list of states since the last one that is durable, oldest first. After a crash any
//! one of them may be found, and nothing else (I1). Everything else that a command changes is durable when the
//! command returns. An interrupted command has happened completely or not at all. So has a write, unless it is
//! longer than a group: then it may have happened up to the end of any of its groups.

use std::collections::BTreeMap;
use std::sync::Arc;

use marcot::{ErrorKind, ImageId, SnapId};

use crate::operations::Operation;
use crate::random::Rng;

/// Content of one state.
pub type Bytes = Arc<Vec<u8>>;

const BLOCK: u64 = 4096;
/// Number of data blocks of the largest group.
const GROUP_BLOCKS: u64 = 2048;

/// The snapshot that an image was cloned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The parent.
    pub image: ImageId,
    /// Its snapshot.
    pub snap: SnapId,
    /// Clone format.
    pub format: u32,
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct Snap {
    /// The name that its user gave it.
    pub name: String,
    /// Its number; `None` where the command that made it was interrupted.
    pub id: Option<SnapId>,
    /// Content.
    pub bytes: Bytes,
    /// Protected.
    pub protected: bool,
    /// Removed by its user, kept for children.
    pub trashed: bool,
    /// Parent of the image when it was taken.
    pub parent: Option<Link>,
}

/// An image.
#[derive(Debug, Clone)]
pub struct ImageModel {
    /// Which pool.
    pub pool: usize,
    /// Name.
    pub name: String,
    /// Number; `None` where the command that made it was interrupted.
    pub id: Option<ImageId>,
    /// States since the last one that is surely durable; never empty.
    pub history: Vec<Bytes>,
    /// Used where [`Model::log_may_rot`]: positions in `history` of the last flush that changed something,
    /// and of the one before.
    flushes: [usize; 2],
    /// Snapshots, oldest first.
    pub snaps: Vec<Snap>,
    /// Where it was cloned from.
    pub parent: Option<Link>,
    /// In the trash.
    pub in_trash: bool,
}

impl ImageModel {
    /// Its name, or what stands for it while it is in the trash.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.in_trash { shown_in_trash(&self.name) } else { self.name.clone() }
    }

    /// The latest acknowledged content.
    #[must_use]
    pub fn latest(&self) -> &Bytes {
        self.history.last().expect("an image has a state")
    }

    fn new(pool: usize, name: String, content: Bytes, parent: Option<Link>) -> Self {
        let (history, snaps) = (vec![content], Vec::new());
        Self { pool, name, id: None, history, flushes: [0; 2], snaps, parent, in_trash: false }
    }

    /// Notes that the latest content is durable.
    pub fn flushed(&mut self) {
        self.history.drain(..self.history.len() - 1);
        self.flushes = [0; 2];
    }

    /// As [`Self::flushed`], where the medium may damage the log, and damage at its end looks like its end.
    fn flushed_to_log(&mut self) {
        let last = self.history.len() - 1;
        if self.history[last] != self.history[self.flushes[0]] {
            self.flushes = [last, self.flushes[0]];
        }
    }

    /// States that an owner may find where `places` places of the medium are damaged. The content of the
    /// flush before the last is found, or its loss is noticed, because later groups say that it was durable.
    #[must_use]
    pub fn found_by_owner(&self, places: u64) -> &[Bytes] {
        match places {
            0 => &self.history[self.flushes[0]..],
            1 => &self.history[self.flushes[1]..],
            _ => &self.history,
        }
    }

    fn size(&self) -> u64 {
        self.latest().len() as u64
    }

    /// A snapshot that is not trashed.
    #[must_use]
    pub fn snap(&self, name: &str) -> Option<&Snap> {
        self.snaps.iter().find(|s| s.name == name && !s.trashed)
    }

    fn snap_mut(&mut self, name: &str) -> &mut Snap {
        let found = self.snaps.iter_mut().find(|s| s.name == name && !s.trashed);
        found.expect("a known snapshot")
    }

    /// The part of a range that lies in the image.
    #[must_use]
    pub fn clip(&self, offset: u64, length: u64) -> (u64, u64) {
        let offset = if self.size() == 0 { 0 } else { offset % self.size() };
        (offset, length.min(self.size() - offset))
    }

    fn change(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = Vec::clone(self.latest());
        bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        self.history.push(Arc::new(bytes));
    }

    /// Adds the states that a write goes through: one for each group.
    pub fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let n = (GROUP_BLOCKS * BLOCK - offset % BLOCK).min(data.len() as u64);
            self.change(offset, &data[..n as usize]);
            (offset, data) = (offset + n, &data[n as usize..]);
        }
    }

    /// Adds the state after a discard.
    pub fn discard(&mut self, offset: u64, length: u64) {
        if length > 0 {
            self.change(offset, &vec![0; length as usize]);
        }
    }

    fn resize(&mut self, size: u64) {
        let mut bytes = Vec::clone(self.latest());
        bytes.resize(size as usize, 0);
        self.history.push(Arc::new(bytes));
    }
}

/// All images, by slot.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The images that exist.
    pub images: BTreeMap<u8, ImageModel>,
    /// The medium may be damaged, and damage at the end of a log looks like its end. So the states before a
    /// flush stay possible until a checkpoint.
    pub log_may_rot: bool,
}

/// The states that an operation may lead to.
pub struct Plan {
    /// States that may be found when it is interrupted.
    pub interrupted: Vec<Model>,
    /// The state when it is done.
    pub done: Model,
    /// It must fail with one of these kinds; empty where it must not fail.
    pub refused: Vec<ErrorKind>,
    /// It may also succeed.
    pub may_succeed: bool,
}

/// What stands for the name of an image in the trash, which has another one there.
#[must_use]
pub fn shown_in_trash(name: &str) -> String {
    format!("trash/{name}")
}

/// Name of a snapshot.
#[must_use]
pub fn snap_name(snap: u8) -> String {
    format!("s{snap}")
}

/// The bytes of a write.
#[must_use]
pub fn data(salt: u64, length: u64) -> Vec<u8> {
    let mut rng = Rng::new(salt);
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while (bytes.len() as u64) < length {
        bytes.extend_from_slice(&rng.draw().to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes
}

/// Batches of a [`Operation::Fill`], by number of writes. They leave little room in a new data segment.
pub const FILL_WRITES: [usize; 4] = [32, 32, 32, 31];
/// Bytes of each of these writes.
pub const FILL_BYTES: u64 = 64 * BLOCK;

impl Model {
    /// Links to a snapshot, from heads and snapshots of all images.
    fn links_to(&self, image: ImageId, snap: SnapId) -> impl Iterator<Item = Link> + '_ {
        let of = |m: &ImageModel| {
            let links: Vec<Option<Link>> = m.snaps.iter().map(|s| s.parent).collect();
            links.into_iter().chain([m.parent]).flatten()
        };
        let links = self.images.values().flat_map(of);
        links.filter(move |link| link.image == image && link.snap == snap)
    }

    /// Children of a snapshot (image numbers), with the format that counts.
    #[must_use]
    pub fn children(&self, image: ImageId, snap: SnapId) -> Vec<ImageId> {
        let has = |m: &&ImageModel| {
            let links = m.snaps.iter().map(|s| s.parent).chain([m.parent]);
            links.flatten().any(|l| l.image == image && l.snap == snap)
        };
        self.images.values().filter(has).filter_map(|m| m.id).collect()
    }

    fn snap_children(&self, slot: u8, name: &str) -> Vec<Link> {
        let image = &self.images[&slot];
        match (image.id, image.snap(name).and_then(|s| s.id)) {
            (Some(id), Some(snap)) => self.links_to(id, snap).collect(),
            _ => Vec::new(),
        }
    }

    /// An image that is not in the trash.
    fn named(&self, slot: u8) -> Option<&ImageModel> {
        self.images.get(&slot).filter(|image| !image.in_trash)
    }

    fn with(&self, slot: u8, change: impl FnOnce(&mut ImageModel)) -> Model {
        let mut model = self.clone();
        change(model.images.get_mut(&slot).expect("a known image"));
        model
    }

    fn refused(&self, kinds: &[ErrorKind]) -> Option<Plan> {
        let interrupted = vec![self.clone()];
        let (done, refused) = (self.clone(), kinds.to_vec());
        Some(Plan { interrupted, done, refused, may_succeed: false })
    }

    /// The plan of a command, which happens completely or not at all.
    fn command(&self, done: Model) -> Option<Plan> {
        let interrupted = vec![self.clone(), done.clone()];
        Some(Plan { interrupted, done, refused: Vec::new(), may_succeed: true })
    }

    /// The plan of an operation that does not change the model.
    fn same(&self) -> Option<Plan> {
        self.command(self.clone())
    }

    /// What a flush of the log does to an image.
    fn flush(&self) -> fn(&mut ImageModel) {
        if self.log_may_rot { ImageModel::flushed_to_log } else { ImageModel::flushed }
    }

    fn changed(&self, slot: u8, change: impl FnOnce(&mut ImageModel)) -> Option<Plan> {
        self.command(self.with(slot, change))
    }

    /// The plan of a write, whose states stay in the history until a flush.
    fn written(&self, slot: u8, change: impl FnOnce(&mut ImageModel)) -> Option<Plan> {
        let done = self.with(slot, change);
        let interrupted = vec![done.clone()];
        Some(Plan { interrupted, done, refused: Vec::new(), may_succeed: true })
    }

    /// The plan of an operation; `None` where it has nothing to work on.
    #[must_use]
    pub fn plan(&self, operation: &Operation) -> Option<Plan> {
        match operation {
            Operation::Create { slot, pool, size } => {
                if self.images.contains_key(slot) {
                    return None;
                }
                let mut done = self.clone();
                let content = Arc::new(vec![0; *size as usize]);
                let image = ImageModel::new(usize::from(*pool), format!("i{slot}"), content, None);
                done.images.insert(*slot, image);
                self.command(done)
            }
            Operation::Write { slot, offset, length, salt } => {
                let (offset, length) = self.images.get(slot)?.clip(*offset, *length);
                self.written(*slot, |image| image.write(offset, &data(*salt, length)))
            }
            Operation::Fua { slot, offset, length, salt } => {
                let (offset, length) = self.images.get(slot)?.clip(*offset, *length);
                let mut plan =
                    self.written(*slot, |image| image.write(offset, &data(*salt, length)))?;
                plan.done = plan.done.with(*slot, self.flush());
                Some(plan)
            }
            Operation::Batch { slot, writes, salt } => {
                let image = self.images.get(slot)?;
                let writes: Vec<_> = writes.iter().map(|(o, l)| image.clip(*o, *l)).collect();
                self.written(*slot, |image| {
                    for (i, (offset, length)) in writes.iter().enumerate() {
                        image.write(*offset, &data(salt.wrapping_add(i as u64), *length));
                    }
                })
            }
            Operation::Fill { slot, salt } => {
                if self.images.get(slot)?.size() < FILL_BYTES {
                    return None;
                }
                self.written(*slot, |image| image.write(0, &data(*salt, FILL_BYTES)))
            }
            Operation::Discard { slot, offset, length } => {
                let (offset, length) = self.images.get(slot)?.clip(*offset, *length);
                self.written(*slot, |image| image.discard(offset, length))
            }
            Operation::Flush { slot } => {
                self.images.get(slot)?;
                self.changed(*slot, self.flush())
            }
            Operation::Checkpoint { slot }
            | Operation::Close { slot }
            | Operation::Move { slot }
            | Operation::Reclaim { slot } => {
                self.images.get(slot)?;
                self.changed(*slot, ImageModel::flushed)
            }
            Operation::Read { slot }
            | Operation::Background { slot }
            | Operation::Contend { slot }
            | Operation::Stale { slot, .. } => {
                self.images.get(slot)?;
                self.same()
            }
            Operation::Gc { .. } | Operation::Check => self.same(),
            Operation::Arm { .. } | Operation::Kill { .. } | Operation::PowerCut { .. } => None,
            Operation::Snapshot { slot, snap } => self.snapshot(*slot, &snap_name(*snap)),
            Operation::Protect { slot, snap } => self.protect(*slot, &snap_name(*snap)),
            Operation::Unprotect { slot, snap } => self.unprotect(*slot, &snap_name(*snap)),
            Operation::RemoveSnapshot { slot, snap, force } => {
                self.remove_snapshot(*slot, &snap_name(*snap), *force)
            }
            Operation::Rollback { slot, snap } => {
                let snap = self.images.get(slot)?.snap(&snap_name(*snap))?.clone();
                self.changed(*slot, |image| {
                    image.history.push(snap.bytes);
                    image.flushed();
                    image.parent = snap.parent;
                })
            }
            Operation::Clone { slot, snap, to, pool, format } => {
                self.clone_image(*slot, &snap_name(*snap), *to, usize::from(*pool), *format)
            }
            Operation::Flatten { slot } => self.flatten(*slot),
            Operation::FlattenPart { slot } => match self.images.get(slot)?.parent {
                Some(_) => self.same(),
                None => self.refused(&[ErrorKind::NoParent]),
            },
            Operation::Resize { slot, size } => self.resize(*slot, *size),
            Operation::Remove { slot } => {
                let image = self.images.get(slot)?;
                if image.snaps.iter().any(|s| !s.trashed || self.has_children(image, s)) {
                    return self.refused(&[ErrorKind::HasSnapshots]);
                }
                let mut done = self.clone();
                done.images.remove(slot);
                let mut plan = self.command(done)?;
                if !image.snaps.is_empty() {
                    // A trashed snapshot without children is removed by `gc` at the latest.
                    plan.refused = vec![ErrorKind::HasSnapshots];
                }
                Some(plan)
            }
            Operation::Rename { slot } => {
                self.named(*slot)?;
                self.changed(*slot, |image| image.name.push('r'))
            }
            Operation::Trash { slot } => {
                self.named(*slot)?;
                // A damaged note does not say any more what the image was called.
                if self.log_may_rot {
                    return None;
                }
                self.changed(*slot, |image| image.in_trash = true)
            }
            Operation::Restore { slot, renamed } => {
                self.images.get(slot).filter(|image| image.in_trash)?;
                self.changed(*slot, |image| {
                    image.in_trash = false;
                    if *renamed {
                        image.name.push('r');
                    }
                })
            }
        }
    }

    /// The model after the removal of a snapshot, if it exists, when the image had the content `now`. `None`
    /// where the image cannot have had this content, or where the snapshot has children.
    #[must_use]
    pub fn without_snap(&self, slot: u8, name: &str, now: &Bytes) -> Option<Model> {
        let found = self.images.get(&slot).and_then(|image| image.snap(name));
        if found.is_none() {
            return Some(self.clone());
        }
        let mut model = self.clone();
        if !self.snap_children(slot, name).is_empty() {
            return None;
        }
        let image = model.images.get_mut(&slot)?;
        image.history.retain(|state| state == now);
        image.history.truncate(1);
        image.snaps.retain(|s| s.trashed || s.name != name);
        (!image.history.is_empty()).then_some(model)
    }

    /// True where a snapshot has children.
    #[must_use]
    pub fn has_children(&self, image: &ImageModel, snap: &Snap) -> bool {
        let (Some(id), Some(snap)) = (image.id, snap.id) else { return true };
        self.links_to(id, snap).next().is_some()
    }

    fn snapshot(&self, slot: u8, name: &str) -> Option<Plan> {
        if self.images.get(&slot)?.snap(name).is_some() {
            return self.refused(&[ErrorKind::Exists]);
        }
        self.changed(slot, |image| {
            image.flushed();
            image.snaps.push(Snap {
                name: name.to_owned(),
                id: None,
                bytes: Arc::clone(image.latest()),
                protected: false,
                trashed: false,
                parent: image.parent,
            });
        })
    }

    fn protect(&self, slot: u8, name: &str) -> Option<Plan> {
        if self.images.get(&slot)?.snap(name)?.protected {
            return self.refused(&[ErrorKind::Protected]);
        }
        self.changed(slot, |image| image.snap_mut(name).protected = true)
    }

    fn unprotect(&self, slot: u8, name: &str) -> Option<Plan> {
        if !self.images.get(&slot)?.snap(name)?.protected {
            return self.refused(&[ErrorKind::NotProtected]);
        }
        if self.snap_children(slot, name).iter().any(|link| link.format == 1) {
            return self.refused(&[ErrorKind::HasChildren]);
        }
        self.changed(slot, |image| image.snap_mut(name).protected = false)
    }

    fn remove_snapshot(&self, slot: u8, name: &str, force: bool) -> Option<Plan> {
        let protected = self.images.get(&slot)?.snap(name)?.protected;
        if protected && !force {
            return self.refused(&[ErrorKind::Protected]);
        }
        let children = self.snap_children(slot, name);
        if protected && children.iter().any(|link| link.format == 1) {
            return self.refused(&[ErrorKind::HasChildren]);
        }
        let done = self.with(slot, |image| {
            if children.is_empty() {
                image.snaps.retain(|s| s.name != name || s.trashed);
            } else {
                let snap = image.snap_mut(name);
                (snap.trashed, snap.protected) = (true, false);
            }
        });
        let mut plan = self.command(done)?;
        if protected {
            plan.interrupted.push(self.with(slot, |image| image.snap_mut(name).protected = false));
        }
        Some(plan)
    }

    fn clone_image(&self, slot: u8, name: &str, to: u8, pool: usize, format: u8) -> Option<Plan> {
        let image = self.named(slot)?;
        let snap = image.snap(name)?;
        if self.images.contains_key(&to) {
            return None;
        }
        if format == 1 && !snap.protected {
            return self.refused(&[ErrorKind::NotProtected]);
        }
        let link = Link { image: image.id?, snap: snap.id?, format: u32::from(format) };
        let content = Arc::clone(&snap.bytes);
        let mut done = self.clone();
        done.images.insert(to, ImageModel::new(pool, format!("i{to}"), content, Some(link)));
        self.command(done)
    }

    fn flatten(&self, slot: u8) -> Option<Plan> {
        if self.images.get(&slot)?.parent.is_none() {
            return self.refused(&[ErrorKind::NoParent]);
        }
        self.changed(slot, |image| {
            image.flushed();
            image.parent = None;
            image.snaps.iter_mut().for_each(|snap| snap.parent = None);
        })
    }

    fn resize(&self, slot: u8, size: u64) -> Option<Plan> {
        let before = self.images.get(&slot)?.size();
        let done = self.with(slot, |image| {
            image.resize(size);
            image.flushed();
        });
        let mut plan = self.command(done)?;
        if size < before {
            // Before a shrink cuts the end off, the end reads as zeros.
            plan.interrupted.push(self.with(slot, |image| {
                let block_end = size.next_multiple_of(BLOCK).min(before);
                image.write(size, &vec![0; (block_end - size) as usize]);
                image.discard(block_end, before - block_end);
            }));
        }
        Some(plan)
    }
}
