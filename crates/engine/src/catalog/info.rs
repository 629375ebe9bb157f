//! What the heads alone say about an image or a pool. They can be read while the image is in use.

use std::collections::{HashMap, HashSet};

use marcot_backend::object::counted::Requests;
use marcot_format::record::{HeadRecord, LockRecord, ParentRecord, Protection};
use marcot_format::{ImageId, PoolId, SnapId};

use super::groups::GroupSnapshotId;
use super::image_name::Namespace;
use super::migration::MigrationInfo;
use super::pool::Pool;
use super::store::Store;
use super::trash_name::number_in_trash_name;
use crate::error::{IoContext, Result};

/// The parent of a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParentInfo {
    /// Its pool: the present name, if the store knows the pool.
    pub pool: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its present name; the name when it was cloned, if the parent cannot be found.
    pub image: String,
    /// The snapshot.
    pub snap: String,
    /// Its pool's number.
    pub pool_id: PoolId,
    /// Its number.
    pub image_id: ImageId,
    /// The snapshot's number.
    pub snap_id: SnapId,
    /// Bytes from the start that the clone took from its parent and that no resize has cut off.
    pub overlap_bytes: u64,
    /// Clone format 1 or 2.
    pub clone_format: u32,
    /// True where the snapshot was removed and waits for its last child.
    pub trashed: bool,
    /// True where the parent is in the trash.
    pub in_trash: bool,
    /// False where the parent cannot be found.
    pub reachable: bool,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapInfo {
    /// Its number.
    pub id: SnapId,
    /// Its name.
    pub name: String,
    /// Its name before it was removed, where it is trashed.
    pub original_name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub created_s: i64,
    /// Protected from removal.
    pub protected: bool,
    /// Removed, but kept for its children.
    pub trashed: bool,
    /// The snapshot of a group that it is a part of.
    pub group: Option<GroupSnapshotId>,
    /// The parent of the image when it was taken.
    pub parent: Option<ParentInfo>,
}

impl SnapInfo {
    /// True for a snapshot that users know by its name: neither removed nor part of a group's.
    #[must_use]
    pub fn is_of_users(&self) -> bool {
        !self.trashed && self.group.is_none()
    }
}

/// An advisory lock on an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockInfo {
    /// Number of the client that took it.
    pub client: u64,
    /// The name that the client gave it.
    pub cookie: String,
    /// Where the client is, for people.
    pub address: String,
    /// Others may take a lock with the same tag.
    pub shared: bool,
    /// What shared locks have in common.
    pub tag: String,
}

impl From<LockRecord> for LockInfo {
    fn from(record: LockRecord) -> Self {
        let LockRecord { client, cookie, address, shared, tag } = record;
        Self { client, cookie, address, shared, tag }
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Its number.
    pub id: ImageId,
    /// Its name; for an image in the trash, the one that it had.
    pub name: String,
    /// True where it is in the trash.
    pub in_trash: bool,
    /// Its namespace.
    pub namespace: Namespace,
    /// Size in bytes.
    pub size_bytes: u64,
    /// log2 of the object size to show.
    pub order: u32,
    /// Seconds since 1970.
    pub created_s: i64,
    /// Seconds since 1970 of the last change of the head.
    pub modified_s: i64,
    /// Feature names, comma separated.
    pub features: String,
    /// Where it was cloned from.
    pub parent: Option<ParentInfo>,
    /// Snapshots, oldest first, trashed ones included.
    pub snapshots: Vec<SnapInfo>,
    /// Metadata of the user.
    pub metadata: Vec<(String, String)>,
    /// Most snapshots that the user allows.
    pub snapshot_limit: Option<u64>,
    /// Advisory locks.
    pub locks: Vec<LockInfo>,
    /// Bytes of a stripe to show; 0: the object size.
    pub stripe_unit_bytes: u64,
    /// Objects of a stripe to show; 0: one.
    pub stripe_count: u64,
    /// The data pool to show; empty: its own pool.
    pub data_pool: String,
    /// Process that has it open for writing.
    pub owned_by: Option<u32>,
    /// Who has it open for writing, or had it last. Only in a pool of which several hosts may be owners.
    pub owner: Option<OwnerInfo>,
    /// The migration that it is the source or the target of.
    pub migration: Option<MigrationInfo>,
}

/// Whether an owner still has its image open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnerState {
    /// A process of this host has it open.
    Here,
    /// Another host has it open, as far as the head says. Only a look at that host shows whether it is still alive.
    Elsewhere,
    /// A process of this host had it open and has ended without closing it. The next owner goes on with its log.
    Ended,
    /// It has closed it.
    Closed,
}

/// The owner of an image, as its head says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerInfo {
    /// The host's name.
    pub host: String,
    /// The process there.
    pub process_id: u32,
    /// Since when, in seconds since 1970.
    pub since_s: i64,
    /// Whether it still has it open.
    pub state: OwnerState,
}

/// Sums over images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageSums {
    /// Images.
    pub images: u64,
    /// Bytes that their heads provision.
    pub provisioned_bytes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes that images would provision at their largest snapshot or head.
    pub provisioned_max_bytes: u64,
}

/// Totals of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Images with a name.
    pub named: ImageSums,
    /// Images in the trash.
    pub trash: ImageSums,
    /// Bytes on the medium.
    pub allocated_bytes: u64,
    /// Bytes free on the medium.
    pub free_bytes: u64,
    /// What this host has asked of the pool's service until now; `None` for a pool in a directory.
    pub requests: Option<Requests>,
    /// The part of it that was for objects of one image, by the image's name, or by its namespace and name. The rest
    /// was for other objects of the pool and for images that are gone.
    pub image_requests: Vec<(String, Requests)>,
}

impl Pool {
    /// What the head of an image says. Works while the image is in use.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn info(&self, image: ImageId) -> Result<ImageInfo> {
        InfoReader::new(self).info(image)
    }
}

impl Pool {
    /// The owner that a head names. `is_held`: a process of this host holds the image's lease.
    fn owner_of(&self, head: &HeadRecord, is_held: bool) -> Option<OwnerInfo> {
        let here = self.segments().shipping()?.host().host;
        let owner = head.owner.as_ref()?;
        let state = match owner.host == here {
            _ if owner.closed => OwnerState::Closed,
            false => OwnerState::Elsewhere,
            true if is_held => OwnerState::Here,
            true => OwnerState::Ended,
        };
        let (host, process_id) = (owner.host_name.clone(), owner.process_id);
        Some(OwnerInfo { host, process_id, since_s: owner.since_s, state })
    }
}

/// Limit on the names of parents' snapshots that are kept in memory.
const PARENT_SNAPSHOTS_MAX: usize = 100_000;

/// What is known of a parent.
struct KnownParent {
    pool: String,
    image: String,
    in_trash: bool,
    /// By number: the snapshot's name, and whether it is trashed.
    snapshots: HashMap<u64, (String, bool)>,
}

/// Reads the heads of many images of a pool. It keeps what it has read of a parent for the next child.
pub struct InfoReader {
    pool: Pool,
    pools: HashMap<u64, Option<Pool>>,
    parents: HashMap<(u64, u64), Option<KnownParent>>,
    parent_snapshots: usize,
}

impl InfoReader {
    /// A reader that has read nothing yet.
    #[must_use]
    pub fn new(pool: &Pool) -> Self {
        Self {
            pool: pool.clone(),
            pools: HashMap::from([(pool.id().0, Some(pool.clone()))]),
            parents: HashMap::new(),
            parent_snapshots: 0,
        }
    }

    /// As [`Pool::info`].
    ///
    /// # Errors
    /// As [`Pool::info`].
    pub fn info(&mut self, image: ImageId) -> Result<ImageInfo> {
        let head = self.pool.read_head(image)?;
        let (name, in_trash) = self.pool.shown_name(&head);
        Ok(ImageInfo { in_trash, ..self.info_from(image, head, name) })
    }

    /// As [`Self::info`], for an image whose name is known.
    ///
    /// # Errors
    /// As [`Pool::info`].
    pub fn info_of(&mut self, name: &str, image: ImageId) -> Result<ImageInfo> {
        let head = self.pool.read_head(image)?;
        Ok(self.info_from(image, head, name.to_owned()))
    }

    fn info_from(&mut self, image: ImageId, head: HeadRecord, name: String) -> ImageInfo {
        let owned_by = self.pool.owner_pid(image);
        let owner = self.pool.owner_of(&head, owned_by.is_some());
        let snapshots = head
            .snapshots
            .into_iter()
            .map(|s| SnapInfo {
                id: SnapId(s.id),
                size_bytes: s.root.as_ref().map_or(0, |r| r.size_bytes),
                created_s: s.created_s,
                protected: s.protection() != Protection::Unprotected,
                trashed: s.trashed,
                group: s.group.as_ref().map(GroupSnapshotId::of),
                parent: s.parent.as_ref().map(|p| self.parent_info(p)),
                name: s.name,
                original_name: s.original_name,
            })
            .collect();
        ImageInfo {
            id: image,
            name,
            in_trash: false,
            namespace: Namespace::named(head.namespace),
            size_bytes: head.root.as_ref().map_or(0, |r| r.size_bytes),
            order: head.order,
            created_s: head.created_s,
            modified_s: head.modified_s,
            features: head.features,
            parent: head.parent.as_ref().map(|p| self.parent_info(p)),
            snapshots,
            metadata: head.metadata.into_iter().map(|m| (m.key, m.value)).collect(),
            snapshot_limit: head.snapshot_limit,
            locks: head.locks.into_iter().map(LockInfo::from).collect(),
            stripe_unit_bytes: head.stripe_unit_bytes,
            stripe_count: head.stripe_count,
            data_pool: head.data_pool,
            owned_by,
            owner,
            migration: head.migration.as_ref().map(MigrationInfo::of),
        }
    }

    fn parent_info(&mut self, parent: &ParentRecord) -> ParentInfo {
        let mut info = ParentInfo {
            pool: parent.pool_name.clone(),
            namespace: Namespace::named(&*parent.namespace),
            image: parent.image_name.clone(),
            snap: parent.snap_name.clone(),
            pool_id: PoolId(parent.pool_id),
            image_id: ImageId(parent.image_id),
            snap_id: SnapId(parent.snap_id),
            overlap_bytes: parent.overlap_bytes,
            clone_format: parent.clone_format,
            trashed: false,
            in_trash: false,
            reachable: false,
        };
        let Some(known) = self.known_parent(info.pool_id, info.image_id) else { return info };
        known.pool.clone_into(&mut info.pool);
        known.image.clone_into(&mut info.image);
        info.in_trash = known.in_trash;
        if let Some((name, trashed)) = known.snapshots.get(&parent.snap_id) {
            name.clone_into(&mut info.snap);
            (info.trashed, info.reachable) = (*trashed, true);
        }
        info
    }

    /// The parent, read at most once; `None` where it cannot be found.
    fn known_parent(&mut self, pool: PoolId, image: ImageId) -> Option<&KnownParent> {
        let key = (pool.0, image.0);
        if !self.parents.contains_key(&key) {
            if self.parent_snapshots > PARENT_SNAPSHOTS_MAX {
                self.parents.clear();
                self.parent_snapshots = 0;
            }
            let found = self.look_at_parent(pool, image);
            self.parent_snapshots += 1 + found.as_ref().map_or(0, |known| known.snapshots.len());
            self.parents.insert(key, found);
        }
        self.parents.get(&key)?.as_ref()
    }

    fn look_at_parent(&mut self, pool: PoolId, image: ImageId) -> Option<KnownParent> {
        let store = self.pool.store();
        let pool = self.pools.entry(pool.0).or_insert_with(|| store.pool_by_id(pool).ok());
        let pool = pool.as_ref()?;
        let head = pool.read_head(image).ok()?;
        let (image, in_trash) = pool.shown_name(&head);
        Some(KnownParent {
            pool: pool.name().to_owned(),
            image,
            in_trash,
            snapshots: head.snapshots.into_iter().map(|s| (s.id, (s.name, s.trashed))).collect(),
        })
    }
}

/// `image` or `namespace/image`, by the name in the head.
fn with_namespace(head: &HeadRecord) -> String {
    match head.namespace.as_str() {
        "" => head.name.clone(),
        namespace => format!("{namespace}/{}", head.name),
    }
}

impl Store {
    /// Totals of a pool.
    ///
    /// # Errors
    /// What the operating system says; `Corrupt` for a damaged head.
    pub fn pool_stats(&self, pool: &Pool) -> Result<PoolStats> {
        self.namespace_stats(pool, &Namespace::DEFAULT)
    }

    /// As [`Self::pool_stats`], but with the images of this namespace. What the medium holds is that of the pool.
    ///
    /// # Errors
    /// As [`Self::pool_stats`]; `NotFound` for the namespace.
    pub fn namespace_stats(&self, pool: &Pool, namespace: &Namespace) -> Result<PoolStats> {
        let namespace = namespace.in_records();
        let mut stats = PoolStats::default();
        let shipping = pool.segments().shipping();
        // In a bucket, both lists take the same requests.
        let named = match shipping {
            Some(_) => pool.images_in(namespace)?,
            None => Vec::new(),
        };
        let in_trash: HashSet<ImageId> = match shipping {
            Some(_) => named.iter().filter_map(|(name, _)| number_in_trash_name(name)).collect(),
            None => {
                let names = pool.image_names_in(namespace)?;
                names.iter().filter_map(|name| number_in_trash_name(name)).collect()
            }
        };
        let mut labels: HashMap<ImageId, String> =
            named.into_iter().map(|(name, image)| (image, name)).collect();
        for image in pool.image_ids()? {
            // As with RBD, images of other namespaces are not counted.
            let Ok(head) = pool.read_head(image) else { continue };
            if head.removing {
                continue;
            }
            let is_plain = head.namespace.is_empty() && namespace.is_empty();
            if shipping.is_some() && (!is_plain || in_trash.contains(&image)) {
                labels.insert(image, with_namespace(&head));
            }
            if head.namespace != namespace {
                continue;
            }
            let size = head.root.as_ref().map_or(0, |r| r.size_bytes);
            let sizes = head.snapshots.iter().filter_map(|s| s.root.as_ref());
            let sums = if in_trash.contains(&image) { &mut stats.trash } else { &mut stats.named };
            sums.images += 1;
            sums.snapshots += head.snapshots.iter().filter(|s| !s.trashed).count() as u64;
            sums.provisioned_bytes += size;
            sums.provisioned_max_bytes += sizes.map(|r| r.size_bytes).fold(size, u64::max);
        }
        stats.allocated_bytes = pool.allocated_bytes()?;
        stats.free_bytes = pool.segments().free_bytes().unwrap_or(0);
        if let Some(asked) = shipping.and_then(|shipping| shipping.requests()) {
            let asked = asked.at(|| "cannot read the count of requests".to_owned())?;
            stats.requests = Some(asked.all);
            let by_name = |(image, requests)| Some((labels.remove(&image)?, requests));
            stats.image_requests = asked.images.into_iter().filter_map(by_name).collect();
            stats.image_requests.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        }
        Ok(stats)
    }
}
