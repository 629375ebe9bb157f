//! Who was cloned from what.
//!
//! A child's record lies in the `children` directory of the child's pool. Where the parent's pool is
//! another one, the same record lies there too, as a marker for its owner.
//!
//! Every user may leave files in that directory. What another user's marker says is a claim, so it
//! costs the owner nothing but a look at its name: that there is a child. What it says of the child is
//! shown to people, and nothing is looked for where it points to.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{ChildRecord, HeadRecord, ParentRecord};
use marcot_format::{ImageId, PoolId, SnapId};
use marcot_store::{LockMode, publish_new};

use super::child_names::{
    FORMAT_MARKS, Key, file_name, format_in_file_name, is_of_another_name, parse_file_name,
};
use super::markers::MarkedChild;
use super::names::{check_image_name, check_namespace_name, check_pool_name};
use super::pool::{Pool, read_file_up_to};
use super::store::Store;
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};

/// Longest record of a child that is read, in bytes: four names, a path, and some numbers.
pub(super) const CHILD_RECORD_BYTES_MAX: u64 = 16 << 10;

/// Most files in a directory of children that are looked through. Beyond that, somebody has filled it.
const CHILDREN_FILES_MAX: u64 = 1 << 20;

/// Most markers that a pool may leave in another user's pool: every user may fill the disk of a
/// template's owner with them, and `check` tells the owner who has left more.
pub(super) const MARKERS_MAX: usize = 10_000;

/// How often the parent is tried when its last child goes, and how long apart.
const TIDY_ATTEMPTS: u32 = 10;
const TIDY_INTERVAL: Duration = Duration::from_millis(10);

/// A child of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildInfo {
    /// Its pool.
    pub pool: String,
    /// Its namespace; empty for the default one.
    pub namespace: String,
    /// Its name.
    pub image: String,
    /// Its number.
    pub image_id: ImageId,
    /// The number of its pool.
    pub pool_id: PoolId,
    /// The parent's snapshot.
    pub snap_id: SnapId,
    /// Clone format 1 or 2.
    pub clone_format: u32,
    /// True where only a marker tells: the child lies in another store.
    pub marker: bool,
    /// The other user who left the marker. Its names are what that user says.
    pub user: Option<u32>,
}

impl fmt::Display for ChildInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{}/{}", self.pool, self.image)?,
            namespace => write!(f, "{}/{namespace}/{}", self.pool, self.image)?,
        }
        self.user.map_or(Ok(()), |user| write!(f, " (of user {user})"))
    }
}

/// Most children that a refusal names.
const CHILDREN_NAMED_MAX: usize = 8;
/// Most children that are looked at for a refusal: one more, to know whether there are others.
pub(crate) const CHILDREN_LOOKED_AT_MAX: usize = CHILDREN_NAMED_MAX + 1;

/// Names of children for a refusal.
pub(crate) fn named(children: &[ChildInfo]) -> String {
    let names = children.iter().take(CHILDREN_NAMED_MAX).map(ToString::to_string);
    let others = (children.len() > CHILDREN_NAMED_MAX).then(|| "and others".to_owned());
    names.chain(others).collect::<Vec<_>>().join(", ")
}

/// Which children are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Formats {
    /// All.
    All,
    /// Those that need a protected snapshot.
    One,
    /// The others.
    Two,
}

impl Formats {
    fn accept(self, clone_format: u32) -> bool {
        match self {
            Self::All => true,
            Self::One => clone_format < 2,
            Self::Two => clone_format >= 2,
        }
    }
}

/// The format in which the image was cloned from the snapshot that the key names; `None` where it
/// is no child of it any more.
fn clone_format(head: &HeadRecord, key: Key) -> Option<u32> {
    let links = head.snapshots.iter().filter_map(|s| s.parent.as_ref()).chain(&head.parent);
    let same = |p: &&ParentRecord| (p.pool_id, p.image_id, p.snap_id) == (key.0, key.1, key.2);
    links.filter(same).map(|p| p.clone_format).min()
}

/// A child's record, or its marker, by its file name alone.
struct Record {
    /// The pool that it lies in, by position.
    pool: usize,
    name: String,
    key: Key,
}

/// Records in all pools of a store, as the directories had them at one time. A child whose record
/// was durable before is among them.
pub(crate) struct ChildRecords {
    pools: Vec<Pool>,
    records: Vec<Record>,
}

impl ChildRecords {
    fn of(store: &Store, wanted: impl Fn(&Key) -> bool) -> Result<Self> {
        let pools = store.pools_of_children()?;
        let mut records = Vec::new();
        for (position, pool) in pools.iter().enumerate() {
            if pool.foreign().is_some() {
                // Another user's pool tells of a child by its marker in the parent's.
                continue;
            }
            let wanted = |key: &Key| {
                let other_pool = key.3 != key.0;
                wanted(key) && !(other_pool && fault::is(Fault::ChildrenOfOwnPool))
            };
            for (name, key) in pool.child_keys(wanted)? {
                records.push(Record { pool: position, name, key });
            }
        }
        Ok(Self { pools, records })
    }

    /// Children by these records, up to `limit` of them; those of one snapshot, or of all.
    pub(crate) fn children(
        &self,
        snap: Option<SnapId>,
        formats: Formats,
        limit: usize,
    ) -> Result<Vec<ChildInfo>> {
        let wanted = |record: &&Record| snap.is_none_or(|snap| snap.0 == record.key.2);
        self.look_at(self.records.iter().filter(wanted), formats, limit)
    }

    fn look_at<'a>(
        &self,
        records: impl Iterator<Item = &'a Record>,
        formats: Formats,
        limit: usize,
    ) -> Result<Vec<ChildInfo>> {
        let mut found = Vec::new();
        // In its pool and as a marker, most likely.
        let mut seen: HashSet<Key> = HashSet::new();
        for record in records {
            let told = format_in_file_name(&record.name);
            if found.len() >= limit {
                break;
            }
            if seen.contains(&record.key) || (told > 0 && !formats.accept(told)) {
                continue;
            }
            let pool = &self.pools[record.pool];
            let child = pool.look_at_child(&self.pools, &record.name, record.key)?;
            if let Some(child) = child.filter(|child| formats.accept(child.clone_format)) {
                seen.insert(record.key);
                found.push(child);
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Pool {
    pub(super) fn children_directory(&self) -> PathBuf {
        self.directory().join("children")
    }

    /// Names and numbers of the records here that are `wanted`, sorted.
    pub(super) fn child_keys(&self, wanted: impl Fn(&Key) -> bool) -> Result<Vec<(String, Key)>> {
        let directory = self.children_directory();
        let (mut found, mut files) = (Vec::new(), 0);
        let visited = self.disk().visit(&directory, &mut |name| {
            files += 1;
            let name = name.to_str().unwrap_or_default();
            if let Some(key) = parse_file_name(name).filter(&wanted) {
                found.push((name.to_owned(), key));
            }
            files < CHILDREN_FILES_MAX
        });
        match visited {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            visited => visited.at(|| format!("cannot list {}", directory.display()))?,
        }
        if files >= CHILDREN_FILES_MAX {
            let message = format!(
                "{} holds more than {CHILDREN_FILES_MAX} files, so children cannot be told; see 'check', and remove what does not belong there",
                directory.display()
            );
            return fail(ErrorKind::Io, message);
        }
        found.sort_unstable();
        Ok(found)
    }

    /// True where an image of this pool was cloned from the pool with that number.
    pub(super) fn has_child_of_pool(&self, parent: PoolId) -> Result<bool> {
        let own = self.id().0;
        Ok(!self.child_keys(|key| key.0 == parent.0 && key.3 == own)?.is_empty())
    }

    /// True where an image of the pool with that number left a marker here.
    pub(super) fn has_marker_of_pool(&self, child: PoolId) -> Result<bool> {
        Ok(self.markers_of_pool(child)? > 0)
    }

    fn markers_of_pool(&self, child: PoolId) -> Result<usize> {
        let own = self.id().0;
        Ok(self.child_keys(|key| key.0 == own && key.3 == child.0)?.len())
    }

    /// Fails where images of `child` have left as many markers here as they may.
    pub(super) fn check_room_for_marker(&self, child: &Pool) -> Result<()> {
        if self.markers_of_pool(child.id())? < MARKERS_MAX {
            return Ok(());
        }
        let message = format!(
            "pool '{}' has {MARKERS_MAX} clones of images in pool '{}' already; flatten or remove some",
            child.name(),
            self.name()
        );
        fail(ErrorKind::NoSpace, message)
    }

    /// The snapshots that an image of this pool is a child of, by its records: for an image whose head
    /// cannot tell any more. Only the numbers are filled in.
    pub(super) fn parents_by_records(&self, image: ImageId) -> Result<Vec<ParentRecord>> {
        let own = (self.id().0, image.0);
        let keys = self.child_keys(|key| (key.3, key.4) == own)?;
        Ok(keys
            .into_iter()
            .map(|(_, key)| ParentRecord {
                pool_id: key.0,
                image_id: key.1,
                snap_id: key.2,
                ..ParentRecord::default()
            })
            .collect())
    }

    /// Children of an image of this pool, in every pool of the store and through markers.
    pub(crate) fn children_everywhere(
        &self,
        image: ImageId,
        snap: Option<SnapId>,
    ) -> Result<Vec<ChildInfo>> {
        self.child_records(image)?.children(snap, Formats::All, usize::MAX)
    }

    /// As many as `limit` of those children.
    pub(crate) fn some_children(
        &self,
        image: ImageId,
        snap: Option<SnapId>,
        formats: Formats,
        limit: usize,
    ) -> Result<Vec<ChildInfo>> {
        self.child_records(image)?.children(snap, formats, limit)
    }

    /// The records of an image's children, as they are now. None of them is read yet.
    pub(crate) fn child_records(&self, image: ImageId) -> Result<ChildRecords> {
        let parent = (self.id().0, image.0);
        ChildRecords::of(self.store(), |key| (key.0, key.1) == parent)
    }

    /// The child that a record in this pool speaks of; `None` for a stale record.
    fn look_at_child(&self, pools: &[Pool], name: &str, key: Key) -> Result<Option<ChildInfo>> {
        let (image, snap_id) = (ImageId(key.4), SnapId(key.2));
        let own = |p: &&Pool| p.id().0 == key.3 && p.foreign().is_none();
        let Some(pool) = pools.iter().find(own) else {
            return self.look_at_marker(name, key);
        };
        match pool.read_head(image) {
            Ok(head) => Ok(Some(ChildInfo {
                clone_format: match clone_format(&head, key) {
                    Some(format) => format,
                    None => {
                        // Flattened, and cut off before the record was removed. Nothing can bring
                        // the link back, once the head that lacks it is durable.
                        let directory = pool.image_directory(image);
                        match pool.disk().sync_directory(&directory) {
                            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                            synced => {
                                synced.at(|| format!("cannot sync {}", directory.display()))?
                            }
                        }
                        let _ = self.disk().remove_file(&self.children_directory().join(name));
                        return Ok(None);
                    }
                },
                pool: pool.name().to_owned(),
                namespace: head.namespace.clone(),
                image: pool.name_of(&head).unwrap_or(head.name),
                image_id: image,
                pool_id: pool.id(),
                snap_id,
                marker: false,
                user: None,
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.clean_stale(pool, name, image);
                // Not published yet, or gone: while a clone is being made, it counts.
                let unpublished = pool.read_head(image).is_err()
                    && self.disk().mode(&self.children_directory().join(name)).is_ok();
                Ok(unpublished.then(|| ChildInfo {
                    clone_format: self.recorded_child(name).clone_format.max(1),
                    pool: pool.name().to_owned(),
                    namespace: String::new(),
                    image: format!("{image} (being cloned)"),
                    image_id: image,
                    pool_id: pool.id(),
                    snap_id,
                    marker: false,
                    user: None,
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a record whose child is gone, unless the child's pool is locked by whoever is
    /// making it.
    fn clean_stale(&self, pool: &Pool, name: &str, image: ImageId) {
        let path = pool.directory().join("lock");
        let Ok(Some(_lock)) = pool.disk().lock(&path, LockMode::Exclusive, false) else { return };
        if pool.read_head(image).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            let _ = self.disk().remove_file(&self.children_directory().join(name));
        }
    }

    /// Removes records of children that are gone, which a removal that was cut off has left, and the
    /// markers that went with them.
    pub(super) fn remove_stale_records(&self) -> Result<()> {
        let own = self.id().0;
        let stale: Vec<Key> = {
            // Whoever makes a child holds this lock from before its record until after its head.
            let _catalogue = self.lock(LockMode::Exclusive)?;
            let records = self.child_keys(|key| key.3 == own)?.into_iter().map(|(_, key)| key);
            let gone = |key: &Key| {
                let head = self.image_directory(ImageId(key.4)).join("head");
                self.disk().mode(&head).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
            };
            records.filter(gone).collect()
        };
        for key in stale {
            let parent =
                ParentRecord { pool_id: key.0, image_id: key.1, ..ParentRecord::default() };
            self.remove_child_record(&parent, SnapId(key.2), ImageId(key.4))?;
        }
        Ok(())
    }

    /// What a child's record says; nothing where it cannot be read.
    pub(super) fn recorded_child(&self, name: &str) -> ChildRecord {
        let path = self.children_directory().join(name);
        read_file_up_to(self.disk(), &path, CHILD_RECORD_BYTES_MAX)
            .ok()
            .and_then(|bytes| decode_message::<ChildRecord>(FrameKind::Child, &bytes).ok())
            .map(|(record, _)| record)
            .unwrap_or_default()
    }

    fn look_at_marker(&self, name: &str, key: Key) -> Result<Option<ChildInfo>> {
        let path = self.children_directory().join(name);
        let user = match self.disk().owner_id(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            // What cannot be looked at still counts: a child too many is better than one forgotten.
            user => user.unwrap_or(u32::MAX),
        };
        let user = Some(user).filter(|user| *user != self.owner_id());
        let record = self.recorded_child(name);
        if user.is_none() && is_of_another_name(&record, key) {
            // A file of one's own that somebody moved here from elsewhere.
            return Ok(None);
        }
        if user.is_none() && record.child_image_id == key.4 && self.marker_is_stale(&record) {
            let _ = self.disk().remove_file(&path);
            return Ok(None);
        }
        let number = || format!("{:016x}", key.4);
        let sane = check_pool_name(&record.child_pool_name).is_ok()
            && check_image_name(&record.child_name).is_ok()
            && (record.child_namespace.is_empty()
                || check_namespace_name(&record.child_namespace).is_ok());
        // Another user's marker may point anywhere; one's own tells where to look for names of now.
        let now = if user.is_none() { self.marked_child(&record) } else { None };
        let child = now.unwrap_or_else(|| match sane {
            true => MarkedChild {
                pool: record.child_pool_name,
                namespace: record.child_namespace,
                name: record.child_name,
            },
            false => MarkedChild {
                pool: "(another store)".to_owned(),
                namespace: String::new(),
                name: number(),
            },
        });
        Ok(Some(ChildInfo {
            clone_format: record.clone_format.max(1),
            pool: child.pool,
            namespace: child.namespace,
            image: child.name,
            image_id: ImageId(key.4),
            pool_id: PoolId(key.3),
            snap_id: SnapId(key.2),
            marker: true,
            user,
        }))
    }

    /// Writes a child's record into this pool.
    pub(super) fn write_child_record(&self, record: &ChildRecord, mode: u32) -> Result<()> {
        let path = self.children_directory().join(file_name(record, record.clone_format));
        let bytes = encode_message(FrameKind::Child, record);
        publish_new(self.disk(), &path, self.unique(), mode, &bytes)
            .at(|| format!("cannot record the child in {}", path.display()))
    }

    /// Removes the record of `child`, an image of this pool, and its marker, if it left one.
    pub(crate) fn remove_child_record(
        &self,
        parent: &ParentRecord,
        snap: SnapId,
        child: ImageId,
    ) -> Result<()> {
        let record = ChildRecord {
            parent_pool_id: parent.pool_id,
            parent_image_id: parent.image_id,
            parent_snap_id: snap.0,
            child_pool_id: self.id().0,
            child_image_id: child.0,
            ..ChildRecord::default()
        };
        let names = FORMAT_MARKS.map(|(format, _)| file_name(&record, format));
        for name in &names {
            let path = self.children_directory().join(name);
            match self.disk().remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.at(|| format!("cannot remove {}", path.display()))?,
            }
        }
        let Ok(parent_pool) = self.store().pool_by_id(PoolId(parent.pool_id)) else {
            return Ok(());
        };
        if parent_pool.id() != self.id() {
            for name in &names {
                // The owner takes a marker that stays for stale when the image is gone.
                let path = parent_pool.children_directory().join(name);
                let _ = parent_pool.disk().remove_file(&path);
            }
        }
        parent_pool.tidy_trash(ImageId(parent.image_id), snap);
        Ok(())
    }

    /// Removes a snapshot that was kept for the child that just went, unless its image is in use:
    /// then its owner or `gc` does it later.
    fn tidy_trash(&self, image: ImageId, snap: SnapId) {
        let Ok(head) = self.read_head(image) else { return };
        let trashed = head.snapshots.iter().any(|s| s.id == snap.0 && s.trashed);
        if !trashed || self.read_only() {
            return;
        }
        let mut attempts = 0;
        let opened = loop {
            match self.open(image) {
                // Most likely a short command, perhaps the one that moved the snapshot aside.
                Err(error) if error.kind() == ErrorKind::Owned && attempts < TIDY_ATTEMPTS => {
                    attempts += 1;
                    self.store().inner.world.clock.pause(TIDY_INTERVAL);
                }
                opened => break opened,
            }
        };
        let tidied = opened.and_then(|mut parent| {
            parent.tidy_snapshots()?;
            parent.close()
        });
        if let Err(error) = tidied {
            tracing::info!(%image, %error, "a removed snapshot is left for gc");
        }
    }
}

impl Store {
    /// Children of an image, or of one of its snapshots, in every pool of the store; those in other
    /// stores through the markers they left.
    ///
    /// # Errors
    /// What the operating system says; `Corrupt` for a damaged head.
    pub fn children(
        &self,
        pool: &Pool,
        image: ImageId,
        snap: Option<SnapId>,
    ) -> Result<Vec<ChildInfo>> {
        pool.children_everywhere(image, snap)
    }

    /// As [`Self::children`], with the children's children, and so on. A child in another store is
    /// listed, but not looked into.
    ///
    /// # Errors
    /// As [`Self::children`].
    pub fn descendants(
        &self,
        pool: &Pool,
        image: ImageId,
        snap: Option<SnapId>,
    ) -> Result<Vec<ChildInfo>> {
        let all = ChildRecords::of(self, |_| true)?;
        let mut by_parent: HashMap<(u64, u64), Vec<&Record>> = HashMap::new();
        for record in &all.records {
            by_parent.entry((record.key.0, record.key.1)).or_default().push(record);
        }
        let of = |parent: (u64, u64)| by_parent.get(&parent).into_iter().flatten().copied();
        let wanted = |record: &&Record| snap.is_none_or(|snap| snap.0 == record.key.2);
        let first = of((pool.id().0, image.0)).filter(wanted);
        let mut found = all.look_at(first, Formats::All, usize::MAX)?;
        let mut seen = HashSet::new();
        let mut next = 0;
        while let Some(child) = found.get(next) {
            next += 1;
            let key = (child.pool_id.0, child.image_id.0);
            if !child.marker && seen.insert(key) {
                found.extend(all.look_at(of(key), Formats::All, usize::MAX)?);
            }
        }
        Ok(found)
    }

    /// True where the image, or the snapshot, has a child of clone format 2.
    ///
    /// # Errors
    /// As [`Self::children`].
    pub fn has_child_of_format_2(
        &self,
        pool: &Pool,
        image: ImageId,
        snap: Option<SnapId>,
    ) -> Result<bool> {
        Ok(!pool.some_children(image, snap, Formats::Two, 1)?.is_empty())
    }
}
