//! Pool GC: freeing shared segments that no durable root names any more (I5).
//!
//! Roots are collected under the pool's lock, so no clone can appear unseen meanwhile. A segment that
//! no root named then is never named again: a new clone takes its root from a snapshot that was
//! collected. Segments that an owner may still write (its log, and those newer than its durable head)
//! are left alone.

use std::collections::{BTreeMap, HashSet};

use marcot_backend::{ChildKey, Key, SegmentKey, SegmentSet};
use marcot_format::record::{HeadRecord, ParentRecord, SegmentMarks, SnapshotRecord};
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, ImageId, SnapId};
use marcot_store::LockMode;

use super::begun::{Begun, BegunImage};
use crate::catalog::naming::NamedImages;
use crate::catalog::pool::Pool;
use crate::catalog::store::Store;
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::gc;
use crate::image::forget_child;
use crate::root::{OwnedRoot, RootOf};
use crate::segment::SegmentName;

/// How often a pool is collected at most, where its images change meanwhile.
const ATTEMPTS_MAX: u32 = 5;

/// A snapshot that keeps data alive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinnedRow {
    /// `pool/image@snap`.
    pub holder: String,
    /// Bytes of data that it names.
    pub bytes: u64,
}

/// The outcome of a GC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// Bytes given back to the file system.
    pub freed_bytes: u64,
    /// Bytes of data blocks that heads name.
    pub live_bytes: u64,
    /// Bytes of data blocks that snapshots name, by snapshot.
    pub pinned: Vec<PinnedRow>,
    /// Bytes on the medium afterwards.
    pub allocated_bytes: u64,
    /// Images that other hosts have begun to make. They have no name, and stay.
    pub begun_elsewhere: Vec<BegunImage>,
}

#[derive(Default)]
struct Collected {
    heads: Vec<HeadRecord>,
    candidates: Vec<SegmentName>,
    unfinished: Vec<(ImageId, HeadRecord)>,
    begun_elsewhere: Vec<BegunImage>,
}

impl Store {
    /// Frees the segments of the pool that no image needs any more.
    ///
    /// # Errors
    /// `Busy` where another GC runs, or while somebody reads an image by a head that may be older than
    /// the one on disk and may name more; `ReadOnly`; `Invalid` for a pool of another store, unless it lies in a bucket; `Corrupt`
    /// where a head cannot be read, because nothing may be freed then.
    pub fn gc(&self, pool: &Pool, progress: &mut dyn FnMut(u64, u64)) -> Result<GcReport> {
        pool.check_writable()?;
        if pool.kept_elsewhere() {
            let message =
                format!("pool '{}' belongs to another store, which collects it", pool.name());
            return fail(ErrorKind::Invalid, message);
        }
        let Some(_lock) = pool.lock_gc()? else {
            return fail(
                ErrorKind::Busy,
                format!("pool '{}' is being collected already", pool.name()),
            );
        };
        self.open_pools()?;
        if let Err(error) = pool.sweep_litter().and_then(|_| self.sweep_litter()) {
            tracing::info!(pool = %pool.name(), error = %error.sentence(), "what commands left behind stays for now");
        }
        pool.remove_stale_records()?;
        pool.sweep_strangers()?;
        let mut attempt = 1;
        let (mut report, heads, begun_elsewhere) = loop {
            let collected = pool.collect()?;
            self.check_not_read()?;
            let finished = pool.finish_removals(&collected.unfinished)?;
            let tidied = attempt == 1 && pool.tidy_all(&collected.heads);
            if (finished || tidied) && attempt < ATTEMPTS_MAX {
                // These images and snapshots are gone now, so collect again: their segments can be freed too.
                attempt += 1;
                continue;
            }
            match self.free(pool, &collected, progress) {
                // An owner may have stored a newer head and removed segments that the older head named.
                Err(error) if attempt < ATTEMPTS_MAX && pool.have_moved(&collected.heads) => {
                    tracing::debug!(pool = %pool.name(), error = %error.sentence(), "collected again");
                    attempt += 1;
                }
                freed => break (freed?, collected.heads, collected.begun_elsewhere),
            }
        };
        let left = pool.segments_by_set()?;
        pool.remove_empty_author_directories(&left, &heads);
        report.begun_elsewhere = begun_elsewhere;
        report.allocated_bytes = pool.bytes_of(left.into_iter().flat_map(|(_, names)| names));
        Ok(report)
    }

    fn free(
        &self,
        pool: &Pool,
        collected: &Collected,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GcReport> {
        let roots: Vec<OwnedRoot> =
            collected.heads.iter().flat_map(|head| roots_of(pool, head)).collect();
        let freed_bytes = gc::reclaim(pool, &roots, &collected.candidates, progress)?;
        if pool.segments().shipping().is_none() {
            // Another host may be cloning or removing an image at this moment.
            pool.tidy_heirs()?;
        }
        Ok(GcReport { freed_bytes, ..pool.report(&collected.heads)? })
    }
}

impl Store {
    fn check_not_read(&self) -> Result<()> {
        let Some(label) = self.any_being_read()? else { return Ok(()) };
        let message =
            format!("{label} is being read by a head that may be older; collect again later");
        fail(ErrorKind::Busy, message)
    }

    /// An image of any pool that somebody reads by a head that may be older than the one on disk.
    fn any_being_read(&self) -> Result<Option<String>> {
        for pool in self.open_pools()? {
            for image in pool.image_ids()? {
                // Locks in another user's pool cannot be taken, and need not be: a snapshot in this
                // pool keeps the segments that readers of that pool may name here.
                if !pool.read_only() && pool.being_read(image)? {
                    let head = pool.read_head(image)?;
                    return Ok(Some(pool.image_label(&head)));
                }
            }
        }
        Ok(None)
    }
}

pub(crate) fn roots_of(pool: &Pool, head: &HeadRecord) -> Vec<OwnedRoot> {
    if fault::is(Fault::GcForgetsClones) && head.parent.is_some() {
        return Vec::new();
    }
    let mut roots = RootOf::all(pool, head);
    roots.retain(|root| root.of.snap.is_none() || !fault::is(Fault::GcForgetsSnapshots));
    roots
}

impl Pool {
    /// Removes records of children that are gone, and their markers. An interrupted removal leaves them.
    pub(crate) fn remove_stale_records(&self) -> Result<()> {
        let own = self.id();
        let stale: Vec<ChildKey> = {
            // A clone holds this lock from before its record until after its head is stored.
            let _catalogue = self.lock(LockMode::Exclusive)?;
            let keys = self.child_keys(|key| key.child_pool == own)?.into_iter();
            // The heads are listed after the records.
            let listed: HashSet<ImageId> = self.image_ids()?.into_iter().collect();
            let head = |key: &ChildKey| self.records().exists(&Key::Head(key.child_image));
            keys.filter(|key| !listed.contains(&key.child_image))
                .filter(|key| {
                    matches!(head(key), Ok(false)) && self.is_made_here(&self.recorded_child(*key))
                })
                .collect()
        };
        for key in stale {
            let (pool_id, image_id) = (key.parent_pool.0, key.parent_image.0);
            let parent = ParentRecord { pool_id, image_id, ..ParentRecord::default() };
            forget_child(self, &parent, key.snap, key.child_image)?;
        }
        Ok(())
    }

    /// True where one of these heads has been replaced or removed on disk.
    fn have_moved(&self, heads: &[HeadRecord]) -> bool {
        let moved = |head: &HeadRecord| match self.read_head(ImageId(head.image_id)) {
            Ok(now) => now.version != head.version,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        heads.iter().any(moved)
    }

    /// Every segment in the pool's directory.
    pub(crate) fn all_segments(&self) -> Result<Vec<SegmentName>> {
        Ok(self.segments_by_set()?.into_iter().flat_map(|(_, segments)| segments).collect())
    }

    fn segments_by_set(&self) -> Result<Vec<(SegmentSet, Vec<SegmentName>)>> {
        let listed = self.segments().by_set();
        let listed = listed.at(|| self.cannot_list_segments())?;
        let named = |(set, keys): (SegmentSet, Vec<SegmentKey>)| {
            (set, keys.into_iter().map(|key| SegmentName::of(self.id(), key)).collect())
        };
        Ok(listed.into_iter().map(named).collect())
    }

    fn cannot_list_segments(&self) -> String {
        format!("cannot list the segments of pool '{}'", self.name())
    }

    /// Bytes that all segments take on the medium.
    pub(crate) fn allocated_bytes(&self) -> Result<u64> {
        Ok(self.bytes_of(self.all_segments()?))
    }

    /// Bytes that these segments take on the medium. One that was removed meanwhile counts as 0 bytes.
    fn bytes_of(&self, names: impl IntoIterator<Item = SegmentName>) -> u64 {
        names.into_iter().map(|name| self.files().allocated_bytes(name)).sum()
    }

    /// Bytes that data takes on the medium, group headers included.
    pub(crate) fn data_bytes(&self) -> Result<u64> {
        let segments = self.all_segments()?;
        let data = segments.into_iter().filter(|name| name.kind == SegmentKind::Data);
        Ok(self.bytes_of(data))
    }

    /// The sets of segments in this pool: one for each author, and one for each author in each set of
    /// copies.
    pub(crate) fn segment_sets(&self) -> Result<Vec<SegmentSet>> {
        self.segments().sets().at(|| self.cannot_list_segments())
    }

    /// Removes trashed snapshots without children from images that nobody has open. True where there may have been one.
    fn tidy_all(&self, heads: &[HeadRecord]) -> bool {
        let mut any = false;
        for head in heads {
            if !head.snapshots.iter().any(|s| s.trashed || s.removing) {
                continue;
            }
            any = true;
            let image = ImageId(head.image_id);
            let tidied = self.open(image).and_then(|mut image| {
                image.tidy_snapshots()?;
                image.close()
            });
            if let Err(error) = tidied {
                tracing::info!(%image, error = %error.sentence(), "a removed snapshot stays for now");
            }
        }
        any
    }

    /// Reads all heads, and lists the segments that may be freed if no head names them.
    fn collect(&self) -> Result<Collected> {
        let _catalogue = self.lock(LockMode::Exclusive)?;
        let mut collected = Collected::default();
        // Segments are listed before heads: what was stored later is nobody's candidate. And an image notes a set
        // of copies in its head before it makes it.
        let mut listed = self.segments_by_set()?;
        let mut named = NamedImages::default();
        let mut limits: BTreeMap<ImageId, (SegmentMarks, SegmentMarks)> = BTreeMap::new();
        let mut looked_at: HashSet<ImageId> = HashSet::new();
        // Another host may clone an image that was not read yet, make the clone independent, and remove the image.
        // What it named is named by the clone then, which only a later list shows.
        loop {
            let mut images = self.image_ids()?;
            images.retain(|image| looked_at.insert(*image));
            let is_again = looked_at.len() > images.len();
            if images.is_empty() || (is_again && fault::is(Fault::HeadsListedOnce)) {
                break;
            }
            for image in images {
                self.collect_image(image, &mut named, &mut limits, &mut collected)?;
            }
        }
        if fault::is(Fault::SegmentsListedLate) {
            listed = self.segments_by_set()?;
        }
        self.forget_requests(&looked_at);
        let copying: HashSet<u64> = collected.heads.iter().map(|head| head.copying).collect();
        for (set, segments) in listed {
            let SegmentSet { author, copies } = set;
            let unfinished = collected.unfinished.iter().any(|(image, _)| *image == author);
            if if copies == 0 {
                unfinished
            } else {
                copying.contains(&copies) && !fault::is(Fault::GcForgetsCopies)
            } {
                continue;
            }
            let range = limits.get(&author).filter(|_| copies == 0);
            for name in segments {
                // Segments from the limit on may still be written by an owner, or are private to it.
                let below = range.is_none_or(|(shared, limit)| {
                    name.sequence < shared.of(name.kind).min(limit.of(name.kind))
                });
                if below || fault::is(Fault::YoungCollected) {
                    collected.candidates.push(name);
                }
            }
        }
        Ok(collected)
    }

    /// Forgets what was counted for images that are gone.
    fn forget_requests(&self, there: &HashSet<ImageId>) {
        let Some(shipping) = self.segments().shipping() else { return };
        let asked = shipping.requests().and_then(std::io::Result::ok).unwrap_or_default();
        let gone = asked.images.into_keys().filter(|image| !there.contains(image));
        gone.for_each(|image| shipping.forget_requests(image));
    }

    /// Reads the head of an image.
    fn collect_image(
        &self,
        image: ImageId,
        named: &mut NamedImages,
        limits: &mut BTreeMap<ImageId, (SegmentMarks, SegmentMarks)>,
        collected: &mut Collected,
    ) -> Result<()> {
        let head = match self.read_head(image) {
            Ok(head) => head,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // An interrupted creation or removal left this directory. Nothing names its image.
                self.remove_head(image);
                return Ok(());
            }
            // Any segment may be named by the head that cannot be read.
            Err(error) if error.kind().is_obstacle() => {
                return Err(error.context(format!(
                    "image {} cannot be looked at now, so nothing is freed",
                    self.label_by_names(image)
                )));
            }
            Err(error) => return Err(error.context(format!(
                "image {} cannot be read, so nothing is freed: restore its head from a backup, or \
                 give the image up with 'rm --force'",
                self.label_by_names(image)
            ))),
        };
        // Only durable roots decide what is freed (I5). The writer of this head may have been killed,
        // or may still be, between its rename and its sync.
        self.settle(&Key::Head(image))?;
        if head.removing {
            collected.unfinished.push((image, head));
            return Ok(());
        }
        match self.begun(&head, named) {
            None => {}
            Some(Begun::Here) => {
                collected.unfinished.push((image, head));
                return Ok(());
            }
            Some(Begun::Elsewhere(begun)) => collected.begun_elsewhere.push(begun),
        }
        let open = head.open_from.or(head.marks).unwrap_or_default();
        let log = head.log.unwrap_or_default().sequence;
        let limit = SegmentMarks { data: open.data.min(log), ..open };
        limits.insert(image, (head.shared_below.unwrap_or_default(), limit));
        collected.heads.push(head);
        Ok(())
    }

    /// Completes interrupted removals, and removes images whose creation was interrupted, where nobody has
    /// the image open. Returns true if there was one.
    fn finish_removals(&self, unfinished: &[(ImageId, HeadRecord)]) -> Result<bool> {
        let mut any = false;
        for (image, head) in unfinished {
            any |= self.finish_removal(*image, head)?;
        }
        Ok(any)
    }

    /// Completes one of them. Returns false where the image is in use or was changed meanwhile.
    pub(super) fn finish_removal(&self, image: ImageId, head: &HeadRecord) -> Result<bool> {
        let Some(_lock) = self.lock_image(image)? else { return Ok(false) };
        let _catalogue = self.lock(LockMode::Exclusive)?;
        match self.read_head(image) {
            Ok(now) if now.version == head.version => {}
            // The image was used or removed since the heads were collected.
            _ => return Ok(false),
        }
        match self.unlink_image(image, head) {
            // Another host has added it to a group before it was marked.
            Err(error) if error.kind() == ErrorKind::InGroup => return Ok(false),
            unlinked => unlinked?,
        }
        if let Some(parent) = &head.parent {
            forget_child(self, parent, SnapId(parent.snap_id), image)?;
        }
        Ok(true)
    }

    /// Removes those of these sets that are empty and whose authors are gone. `heads` are known to exist.
    fn remove_empty_author_directories(
        &self,
        sets: &[(SegmentSet, Vec<SegmentName>)],
        heads: &[HeadRecord],
    ) {
        let known: HashSet<ImageId> = heads.iter().map(|head| ImageId(head.image_id)).collect();
        for (set, _) in sets.iter().filter(|(_, names)| names.is_empty()) {
            let is_gone = || {
                let head = || self.read_head(set.author);
                !known.contains(&set.author)
                    && head().is_err_and(|e| e.kind() == ErrorKind::NotFound)
            };
            if set.copies != 0 || is_gone() {
                // This fails where a segment was created meanwhile.
                let _ = self.segments().remove_set(*set);
            }
        }
    }

    /// Sums of the data that heads and snapshots name, by the live counts of their segment tables.
    fn report(&self, heads: &[HeadRecord]) -> Result<GcReport> {
        let mut report = GcReport::default();
        for head in heads {
            // A name takes a request where the pool lies in a bucket, so only the names that are shown are looked up.
            let mut label = None;
            for root in RootOf::all(self, head) {
                let bytes = self.own_data_bytes(&root)?;
                let named = |s: &&SnapshotRecord| Some(SnapId(s.id)) == root.of.snap;
                match head.snapshots.iter().find(named) {
                    None => report.live_bytes += bytes,
                    Some(snapshot) => {
                        let label = label.get_or_insert_with(|| self.image_label(head));
                        let holder = format!("{label}@{}", snapshot.name);
                        report.pinned.push(PinnedRow { holder, bytes });
                    }
                }
            }
        }
        Ok(report)
    }

    fn own_data_bytes(&self, OwnedRoot { of, root }: &OwnedRoot) -> Result<u64> {
        let mut table = of.table(root)?;
        let mut blocks = 0;
        table.for_each(self.files(), |_, entry, name| {
            if name.kind == SegmentKind::Data && name.pool == self.id() {
                blocks += u64::from(entry.live);
            }
            Ok(())
        })?;
        Ok(blocks * BLOCK_BYTES)
    }
}
