//! Records of children: which image was cloned from which snapshot.
//!
//! A child's record lies in the `children` directory of the child's pool. Where the parent lies in
//! another pool, the same record lies in that pool too, as a marker for its owner.
//!
//! Every user may leave files in that directory, so another user's marker is only a claim. Its name
//! counts: it says that there is a child. What the marker says about the child is shown to people, but
//! no path in it is followed.

use std::collections::{HashMap, HashSet};
use std::fmt;

use marcot_backend::{ChildKey, Key, Listed, Prefix};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{ChildRecord, HeadRecord, OwnerRecord, ParentRecord};
use marcot_format::{ImageId, PoolId, SnapId};
use marcot_store::LockMode;

use super::child_names::{is_of_another_name, key_of};
use super::image_name::Namespace;
use super::markers::MarkedChild;
use super::names::{check_image_name, check_namespace_name, check_pool_name};
use super::pool::Pool;
use super::store::Store;
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};

/// Limit on the size of a child's record that is read, in bytes: four names, a path, and some numbers.
pub(crate) const CHILD_RECORD_BYTES_MAX: u64 = 16 << 10;

/// Limit on the files that are listed in a directory of children. With more, somebody has filled it on
/// purpose.
const CHILDREN_LISTED_MAX: u64 = 1 << 20;

/// Limit on the markers that a pool leaves in another user's pool. Markers take space from a template's
/// owner, and every user may leave some. `check` tells the owner which user has left more than this.
pub(crate) const MARKERS_MAX: usize = 10_000;

/// A child of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct ChildInfo {
    /// Its pool.
    pub pool: String,
    /// Its namespace.
    pub namespace: Namespace,
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
    /// True where the child is in the trash. Its name is the one that it had.
    pub in_trash: bool,
    /// True where the child lies in another store and is known only by its marker.
    pub marker: bool,
    /// The other user who left the marker, if any. The names are only that user's claim.
    pub user: Option<u32>,
    /// False where it is known by its marker only, or where its clone is being made: nobody has seen the image
    /// itself.
    pub seen: bool,
    /// The other host that left the record, if any. Only that host can tell whether the child exists.
    pub host: Option<String>,
    /// When it was cloned, in seconds since 1970; 0 where that was not looked at.
    pub created_s: i64,
}

impl fmt::Display for ChildInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.in_records() {
            "" => write!(f, "{}/{}", self.pool, self.image)?,
            namespace => write!(f, "{}/{namespace}/{}", self.pool, self.image)?,
        }
        if let Some(host) = &self.host {
            write!(f, " (on host {host})")?;
        }
        self.user.map_or(Ok(()), |user| write!(f, " (of user {user})"))
    }
}

/// Limit on the children that an error message names.
const CHILDREN_NAMED_MAX: usize = 8;
/// Children that are looked up for an error message: one more than it names, to know whether there are
/// others.
pub(crate) const CHILDREN_LOOKED_AT_MAX: usize = CHILDREN_NAMED_MAX + 1;

/// Names of children for an error message.
pub(crate) fn named(children: &[ChildInfo]) -> String {
    let names = children.iter().take(CHILDREN_NAMED_MAX).map(ToString::to_string);
    let others = (children.len() > CHILDREN_NAMED_MAX).then(|| "and others".to_owned());
    names.chain(others).collect::<Vec<_>>().join(", ")
}

/// Selects children by clone format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Formats {
    /// All children.
    All,
    /// Clone format 1: children that need a protected snapshot.
    One,
    /// Clone format 2.
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

/// The format in which the image was cloned from the snapshot in the key; `None` where the image is no
/// longer a child of that snapshot.
fn clone_format(head: &HeadRecord, key: ChildKey) -> Option<u32> {
    let links = head.snapshots.iter().filter_map(|s| s.parent.as_ref()).chain(&head.parent);
    let parent = (key.parent_pool.0, key.parent_image.0, key.snap.0);
    let same = |p: &&ParentRecord| (p.pool_id, p.image_id, p.snap_id) == parent;
    links.filter(same).map(|p| p.clone_format).min()
}

/// A child's record or marker, known by its name only.
struct Record {
    /// The position of the pool that it lies in.
    pool: usize,
    key: ChildKey,
}

/// Records in all pools of a store, listed once. A child whose record was durable before the listing
/// began is among them.
pub(crate) struct ChildRecords {
    pools: Vec<Pool>,
    records: Vec<Record>,
}

impl ChildRecords {
    fn of(store: &Store, wanted: impl Fn(&ChildKey) -> bool) -> Result<Self> {
        let pools = store.pools_of_children()?;
        let mut records = Vec::new();
        for (position, pool) in pools.iter().enumerate() {
            if pool.foreign().is_some() {
                // A child in another user's pool has left a marker in the parent's pool.
                continue;
            }
            let wanted = |key: &ChildKey| {
                let other_pool = key.child_pool != key.parent_pool;
                wanted(key) && !(other_pool && fault::is(Fault::ChildrenOfOwnPool))
            };
            let keys = pool.child_keys(wanted)?;
            records.extend(keys.into_iter().map(|key| Record { pool: position, key }));
        }
        Ok(Self { pools, records })
    }

    /// The children of one snapshot, or of all snapshots, by these records. At most `limit` of them.
    pub(crate) fn children(
        &self,
        snap: Option<SnapId>,
        formats: Formats,
        limit: usize,
    ) -> Result<Vec<ChildInfo>> {
        let wanted = |record: &&Record| snap.is_none_or(|snap| snap == record.key.snap);
        self.look_at(self.records.iter().filter(wanted), formats, limit)
    }

    fn look_at<'a>(
        &self,
        records: impl Iterator<Item = &'a Record>,
        formats: Formats,
        limit: usize,
    ) -> Result<Vec<ChildInfo>> {
        let mut found = Vec::new();
        // A child may be listed twice: by the record in its own pool, and by a marker.
        let mut seen: HashSet<ChildKey> = HashSet::new();
        for record in records {
            let told = record.key.clone_format;
            let child = ChildKey { clone_format: 0, ..record.key };
            if found.len() >= limit {
                break;
            }
            if seen.contains(&child) || (told > 0 && !formats.accept(told)) {
                continue;
            }
            let looked_at = self.pools[record.pool].look_at_child(&self.pools, record.key)?;
            if let Some(info) = looked_at.filter(|info| formats.accept(info.clone_format)) {
                seen.insert(child);
                found.push(info);
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Pool {
    /// The keys of the records in this pool for which `wanted` is true, sorted.
    pub(crate) fn child_keys(&self, wanted: impl Fn(&ChildKey) -> bool) -> Result<Vec<ChildKey>> {
        let (mut found, mut seen) = (Vec::new(), 0);
        let listed = self.records().list(&Prefix::Children, &mut |listed| {
            seen += 1;
            if let Listed::Key(Key::Child(key)) = listed
                && wanted(key)
            {
                found.push(*key);
            }
            seen < CHILDREN_LISTED_MAX
        });
        match listed {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            listed => {
                listed.at(|| format!("cannot list the children in pool '{}'", self.name()))?
            }
        }
        if seen >= CHILDREN_LISTED_MAX {
            let message = format!(
                "children/ of pool '{}' holds more than {CHILDREN_LISTED_MAX} files, so children cannot be told; see 'check', and remove what does not belong there",
                self.name()
            );
            return fail(ErrorKind::Io, message);
        }
        found.sort_unstable();
        Ok(found)
    }

    /// True where an image of this pool was cloned from an image in the pool `parent`.
    pub(crate) fn has_child_of_pool(&self, parent: PoolId) -> Result<bool> {
        let own = self.id();
        Ok(!self.child_keys(|key| key.parent_pool == parent && key.child_pool == own)?.is_empty())
    }

    /// True where an image of the pool `child` left a marker in this pool.
    pub(crate) fn has_marker_of_pool(&self, child: PoolId) -> Result<bool> {
        Ok(self.markers_of_pool(child)? > 0)
    }

    fn markers_of_pool(&self, child: PoolId) -> Result<usize> {
        let own = self.id();
        Ok(self.child_keys(|key| key.parent_pool == own && key.child_pool == child)?.len())
    }

    /// Fails where images of the pool `child` have left as many markers in this pool as they may.
    pub(crate) fn check_room_for_marker(&self, child: &Pool) -> Result<()> {
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

    /// The parents of an image of this pool, taken from its records as a child. This is for an image
    /// whose head is damaged. Only the numbers are filled in.
    pub(crate) fn parents_by_records(&self, image: ImageId) -> Result<Vec<ParentRecord>> {
        let own = (self.id(), image);
        let keys = self.child_keys(|key| (key.child_pool, key.child_image) == own)?;
        Ok(keys
            .into_iter()
            .map(|key| ParentRecord {
                pool_id: key.parent_pool.0,
                image_id: key.parent_image.0,
                snap_id: key.snap.0,
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

    /// At most `limit` children of an image of this pool, of the given clone formats.
    pub(crate) fn some_children(
        &self,
        image: ImageId,
        snap: Option<SnapId>,
        formats: Formats,
        limit: usize,
    ) -> Result<Vec<ChildInfo>> {
        self.child_records(image)?.children(snap, formats, limit)
    }

    /// Lists the records of an image's children. None of the records is read yet.
    pub(crate) fn child_records(&self, image: ImageId) -> Result<ChildRecords> {
        let parent = (self.id(), image);
        ChildRecords::of(self.store(), |key| (key.parent_pool, key.parent_image) == parent)
    }

    /// The child that a record in this pool stands for; `None` for a stale record.
    fn look_at_child(&self, pools: &[Pool], key: ChildKey) -> Result<Option<ChildInfo>> {
        let (image, snap_id) = (key.child_image, key.snap);
        let own = |p: &&Pool| p.id() == key.child_pool && p.foreign().is_none();
        let Some(pool) = pools.iter().find(own) else {
            return self.look_at_marker(key);
        };
        match pool.read_head(image) {
            Ok(head) => {
                let Some(clone_format) = clone_format(&head, key) else {
                    // The child was flattened, and the flatten was interrupted before it removed the
                    // record. Once the head without the link is durable, the link cannot come back.
                    pool.settle(&Key::Head(image))?;
                    let _ = self.records().remove(&Key::Child(key));
                    return Ok(None);
                };
                let (name, in_trash) = pool.shown_name(&head);
                Ok(Some(ChildInfo {
                    clone_format,
                    pool: pool.name().to_owned(),
                    namespace: Namespace::named(&*head.namespace),
                    image: name,
                    image_id: image,
                    pool_id: pool.id(),
                    snap_id,
                    in_trash,
                    marker: false,
                    user: None,
                    seen: true,
                    host: None,
                    created_s: 0,
                }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.clean_stale(pool, key);
                // The child is not published yet, or it is gone. A clone that is being made counts.
                let unpublished = pool.read_head(image).is_err()
                    && self.records().exists(&Key::Child(key)).unwrap_or(false);
                let record = self.recorded_child(key);
                Ok(unpublished.then(|| ChildInfo {
                    clone_format: record.clone_format.max(1),
                    pool: pool.name().to_owned(),
                    namespace: Namespace::DEFAULT,
                    image: format!("{image} (being cloned)"),
                    image_id: image,
                    pool_id: pool.id(),
                    snap_id,
                    in_trash: false,
                    marker: false,
                    user: None,
                    seen: false,
                    host: self.other_host(&record),
                    created_s: record.created_s,
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a record whose child is gone. Does nothing while the child's pool is locked, because the
    /// child may be in the making.
    fn clean_stale(&self, pool: &Pool, key: ChildKey) {
        let Ok(Some(_lock)) = pool.try_lock(LockMode::Exclusive) else { return };
        if !pool.is_made_here(&self.recorded_child(key)) {
            return;
        }
        if pool.read_head(key.child_image).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            let _ = self.records().remove(&Key::Child(key));
        }
    }

    /// The content of a child's record; the default where it cannot be read.
    pub(crate) fn recorded_child(&self, key: ChildKey) -> ChildRecord {
        self.read_record_up_to(&Key::Child(key), CHILD_RECORD_BYTES_MAX)
            .ok()
            .and_then(|bytes| decode_message::<ChildRecord>(FrameKind::Child, &bytes).ok())
            .map(|(record, _)| record)
            .unwrap_or_default()
    }

    /// The name of the other host that has left a record in this pool, if another one has.
    fn other_host(&self, record: &ChildRecord) -> Option<String> {
        let known = !record.host_name.is_empty();
        let name = || if known { record.host_name.clone() } else { "(unknown host)".to_owned() };
        (!self.is_made_here(record)).then(name)
    }

    /// True where no other host can be making the clone of this pool of which this is the record.
    pub(crate) fn is_made_here(&self, record: &ChildRecord) -> bool {
        self.segments().shipping().is_none_or(|shipping| shipping.host().host == record.host)
    }

    fn look_at_marker(&self, key: ChildKey) -> Result<Option<ChildInfo>> {
        let user = match self.records().owner(&Key::Marker(key)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            // A marker that cannot be read still counts: a child too many is better than one forgotten.
            user => user.unwrap_or(u32::MAX),
        };
        let user = Some(user).filter(|user| *user != self.owner_id());
        let record = self.recorded_child(key);
        if user.is_none() && is_of_another_name(&record, key) {
            // A file of this user that somebody moved here from elsewhere.
            return Ok(None);
        }
        let its_own = record.child_image_id == key.child_image.0;
        // The directory that another host's marker names means something else here.
        let host = self.other_host(&record);
        let own = user.is_none() && host.is_none();
        if own && its_own && self.marker_is_stale(&record) {
            let _ = self.records().remove(&Key::Marker(key));
            return Ok(None);
        }
        let number = || key.child_image.to_string();
        let sane = check_pool_name(&record.child_pool_name).is_ok()
            && check_image_name(&record.child_name).is_ok()
            && (record.child_namespace.is_empty()
                || check_namespace_name(&record.child_namespace).is_ok());
        // The marker of this user says where the child's present names are. Another user's marker
        // could point anywhere.
        let now = if own { self.marked_child(&record) } else { None };
        let seen = now.is_some();
        let child = now.unwrap_or_else(|| match sane {
            true => MarkedChild {
                pool: record.child_pool_name,
                namespace: Namespace::named(record.child_namespace),
                name: record.child_name,
                in_trash: false,
            },
            false => MarkedChild {
                pool: "(another store)".to_owned(),
                namespace: Namespace::DEFAULT,
                name: number(),
                in_trash: false,
            },
        });
        Ok(Some(ChildInfo {
            clone_format: record.clone_format.max(1),
            pool: child.pool,
            namespace: child.namespace,
            image: child.name,
            image_id: key.child_image,
            pool_id: key.child_pool,
            snap_id: key.snap,
            in_trash: child.in_trash,
            marker: true,
            user,
            seen,
            host,
            created_s: record.created_s,
        }))
    }

    /// Stores the record of a child of this pool.
    pub(crate) fn record_child(&self, record: &ChildRecord) -> Result<()> {
        self.store_child(&Key::Child(key_of(record)), record)
    }

    /// Stores the marker of a child in another pool.
    pub(crate) fn leave_marker(&self, record: &ChildRecord) -> Result<()> {
        self.store_child(&Key::Marker(key_of(record)), record)
    }

    fn store_child(&self, key: &Key, record: &ChildRecord) -> Result<()> {
        let mut record = record.clone();
        if let Some(shipping) = self.segments().shipping() {
            let OwnerRecord { host, host_name, .. } = shipping.host();
            (record.host, record.host_name) = (host, host_name);
        }
        let stored = self.records().create(key, &encode_message(FrameKind::Child, &record));
        stored.at(|| format!("cannot record the child in {}", self.records().show(key)))
    }

    /// Removes the record of `child`, an image of this pool, and its marker, if it left one. Returns the
    /// parent's pool, if that can be opened.
    pub(crate) fn remove_child_record(
        &self,
        parent: &ParentRecord,
        snap: SnapId,
        child: ImageId,
    ) -> Result<Option<Pool>> {
        let key = ChildKey {
            parent_pool: PoolId(parent.pool_id),
            parent_image: ImageId(parent.image_id),
            snap,
            child_pool: self.id(),
            child_image: child,
            clone_format: 0,
        };
        for key in key.of_all_formats().map(Key::Child) {
            match self.records().remove(&key) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.at(|| format!("cannot remove {}", self.records().show(&key)))?,
            }
        }
        let Ok(parent_pool) = self.store().pool_by_id(PoolId(parent.pool_id)) else {
            return Ok(None);
        };
        if parent_pool.id() != self.id() {
            for key in key.of_all_formats().map(Key::Marker) {
                // A marker that cannot be removed counts as stale once the image is gone.
                let _ = parent_pool.records().remove(&key);
            }
        }
        Ok(Some(parent_pool))
    }
}

impl Store {
    /// Children of an image, or of one of its snapshots, in every pool of the store. Children in other
    /// stores are found by the markers that they left.
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

    /// As [`Self::children`], but at most `limit` of them. The records of no others are read.
    ///
    /// # Errors
    /// As [`Self::children`].
    pub fn some_children(
        &self,
        pool: &Pool,
        image: ImageId,
        snap: Option<SnapId>,
        limit: usize,
    ) -> Result<Vec<ChildInfo>> {
        pool.some_children(image, snap, Formats::All, limit)
    }

    /// As [`Self::children`], with the children's children, and so on. A child in another store is
    /// listed, but its own children are not looked for.
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
        let mut by_parent: HashMap<(PoolId, ImageId), Vec<&Record>> = HashMap::new();
        for record in &all.records {
            let parent = (record.key.parent_pool, record.key.parent_image);
            by_parent.entry(parent).or_default().push(record);
        }
        let of = |parent: (PoolId, ImageId)| by_parent.get(&parent).into_iter().flatten().copied();
        let wanted = |record: &&Record| snap.is_none_or(|snap| snap == record.key.snap);
        let first = of((pool.id(), image)).filter(wanted);
        let mut found = all.look_at(first, Formats::All, usize::MAX)?;
        let mut seen = HashSet::new();
        let mut next = 0;
        while let Some(child) = found.get(next) {
            next += 1;
            let key = (child.pool_id, child.image_id);
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
