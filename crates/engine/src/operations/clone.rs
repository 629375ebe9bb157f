//! Cloning a snapshot: the child's head names the snapshot's root. Nothing is copied.

use std::time::Duration;

use marcot_format::record::{
    ChildRecord, HeadRecord, ParentRecord, Protection, RootRecord, SnapshotRecord,
};
use marcot_format::{ImageId, PoolId, SnapId};
use marcot_store::LockMode;

use crate::catalog::ImageName;
use crate::catalog::create::first_head;
use crate::catalog::migration::refuse_source;
use crate::catalog::names::check_image_name;
use crate::catalog::no_snapshot;
use crate::catalog::partial::partial_name;
use crate::catalog::pool::Pool;
use crate::error::{ErrorKind, Remedy, Result, fail};
use crate::fault::{self, Fault};
use crate::image::{Image, forget_child};
use crate::root::{RootOf, empty_root};
use crate::table::{Place, Whereabouts};

/// Options of a new clone.
///
/// ```
/// use marcot::CloneOptions;
///
/// let options = CloneOptions::new().format(2).order(20);
/// assert_eq!((options.format, options.order), (2, Some(20)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloneOptions {
    /// The clone format: with 1 the snapshot must be protected, with 2 it need not be.
    pub format: u32,
    /// Accept that the owner of the parent's pool cannot see this child.
    pub untracked: bool,
    /// log2 of the object size that `info` shows; `None`: the parent's.
    pub order: Option<u32>,
    /// Feature names that `info` shows; `None`: the parent's.
    pub features: Option<String>,
    /// Bytes of a stripe and number of objects that `info` shows; `None`: the parent's.
    pub stripe: Option<(u64, u64)>,
    /// The data pool that `info` shows; empty: the clone's own pool.
    pub data_pool: String,
}

impl Default for CloneOptions {
    fn default() -> Self {
        Self {
            format: 1,
            untracked: false,
            order: None,
            features: None,
            stripe: None,
            data_pool: String::new(),
        }
    }
}

impl CloneOptions {
    /// Format 1, tracked, with order and features of the parent.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with another clone format, 1 or 2: see the field `format`.
    #[must_use]
    pub fn format(self, format: u32) -> Self {
        Self { format, ..self }
    }

    /// The same, whether the owner of the parent's pool can see the child or not: see
    /// the field `untracked`.
    #[must_use]
    pub fn untracked(self, untracked: bool) -> Self {
        Self { untracked, ..self }
    }

    /// The same with another log2 of the object size that `info` shows.
    #[must_use]
    pub fn order(self, order: u32) -> Self {
        Self { order: Some(order), ..self }
    }

    /// The same with other feature names that `info` shows, comma separated.
    #[must_use]
    pub fn features(self, features: impl Into<String>) -> Self {
        Self { features: Some(features.into()), ..self }
    }

    /// The same with another stripe that `info` shows: bytes of a unit, and number of objects.
    #[must_use]
    pub fn stripe(self, stripe_unit_bytes: u64, stripe_count: u64) -> Self {
        Self { stripe: Some((stripe_unit_bytes, stripe_count)), ..self }
    }

    /// The same with a data pool that `info` shows.
    #[must_use]
    pub fn data_pool(self, data_pool: impl Into<String>) -> Self {
        Self { data_pool: data_pool.into(), ..self }
    }
}

/// How long a clone waits at most for an unprotect that is looking for children. The search takes
/// milliseconds, or more where a store has many pools.
const UNPROTECTING_WAIT: Duration = Duration::from_secs(5);
/// The time between two looks at the head meanwhile: in a directory, and in a bucket, where each is a request.
const UNPROTECTING_INTERVAL: Duration = Duration::from_millis(1);
const UNPROTECTING_INTERVAL_IN_BUCKET: Duration = Duration::from_millis(50);

/// Reads the head of a parent, and waits while its snapshot is being unprotected. The unprotect may find
/// children and protect the snapshot again; then the clone can be made. Where the process that was
/// unprotecting is gone, its mark stays in the head and the clone is refused.
fn settled_head(parent: &Pool, image: ImageId, snap: &str) -> Result<HeadRecord> {
    let mut waited = Duration::ZERO;
    let interval = match parent.segments().shipping() {
        None => UNPROTECTING_INTERVAL,
        Some(_) => UNPROTECTING_INTERVAL_IN_BUCKET,
    };
    loop {
        let head = parent.read_head(image)?;
        let unsettled = head.snapshots.iter().any(|s| {
            s.name == snap && s.is_of_users() && s.protection() == Protection::Unprotecting
        });
        if !unsettled || waited >= UNPROTECTING_WAIT {
            return Ok(head);
        }
        // Another host may have it open.
        let is_open = head.owner.as_ref().is_some_and(|owner| !owner.closed);
        if !is_open && parent.owner_pid(image).is_none() {
            // Nobody has the parent open. The unprotect may have ended just now, so read again.
            return parent.read_head(image);
        }
        parent.store().inner.world.clock.pause(interval);
        waited += interval;
    }
}

fn snapshot_for_clone(
    parent: &Pool,
    head: &HeadRecord,
    snap: &str,
    format: u32,
) -> Result<SnapshotRecord> {
    let label = parent.image_label(head);
    refuse_source(head, &label)?;
    let found = head.snapshots.iter().find(|s| s.name == snap && s.is_of_users() && !s.removing);
    let Some(snapshot) = found else { return Err(no_snapshot(&label, snap)) };
    let protected = snapshot.protection() == Protection::Protected;
    if !protected && (format == 1 || parent.read_only()) {
        return fail(ErrorKind::NotProtected, "parent snapshot must be protected");
    }
    // As with RBD: an empty parent has nothing to share.
    if snapshot.root.as_ref().is_none_or(|root| root.size_bytes == 0) {
        return fail(
            ErrorKind::Invalid,
            format!("{label}@{snap} is empty (0 bytes); create an image instead"),
        );
    }
    Ok(snapshot.clone())
}

/// A snapshot of an image of a pool, by its name: what is cloned. Nothing is opened or read while it exists.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    pool: &'a Pool,
    image: ImageId,
    name: &'a str,
}

impl Pool {
    /// A snapshot of an image of this pool. That it exists is found out by what is done to it.
    #[must_use]
    pub fn snapshot<'a>(&'a self, image: ImageId, name: &'a str) -> Snapshot<'a> {
        Snapshot { pool: self, image, name }
    }
}

impl Snapshot<'_> {
    /// Clones it as `name` in `dest`, a pool of the same store. Nothing is copied, and read access to the
    /// snapshot's pool is enough.
    ///
    /// # Errors
    /// `NotProtected`; `Invalid` for a snapshot of 0 bytes; `NotFound`; `Exists`; `ReadOnly` for `dest`;
    /// `PermissionDenied` where the parent belongs to another store and no marker can be left there (see
    /// [`CloneOptions::untracked`]); `Owned` for format 2 where another process has the parent open,
    /// which should be asked for [`crate::Image::mark_shared`] first.
    pub fn clone_to(
        &self,
        dest: &Pool,
        name: impl Into<ImageName>,
        options: &CloneOptions,
    ) -> Result<ImageId> {
        let child = name.into();
        check_image_name(child.name())?;
        self.make_child(dest, &child, false, options, Ok)
    }

    /// Clones it into an image that is hidden until [`Pool::publish_partial`], and whose final name will be
    /// `name`. The caller must keep it open until then.
    ///
    /// # Errors
    /// As [`Self::clone_to`] and [`Pool::open`].
    pub fn clone_to_partial(
        &self,
        dest: &Pool,
        name: &ImageName,
        options: &CloneOptions,
    ) -> Result<Image> {
        check_image_name(name.name())?;
        self.make_child(dest, name, true, options, |id| dest.open(id))
    }

    /// Makes a clone, hidden or not, and calls `then` before anybody else can change the catalogue.
    fn make_child<T>(
        &self,
        dest: &Pool,
        child: &ImageName,
        hidden: bool,
        options: &CloneOptions,
        then: impl FnOnce(ImageId) -> Result<T>,
    ) -> Result<T> {
        let namespace = child.namespace().in_records();
        let Self { pool: parent, image, name: snap } = *self;
        dest.check_writable()?;
        if !(1..=2).contains(&options.format) {
            return fail(ErrorKind::Invalid, "the clone format is 1 or 2");
        }
        let head = settled_head(parent, image, snap)?;
        let snapshot = snapshot_for_clone(parent, &head, snap, options.format)?;
        if parent.foreign().is_some() {
            // The child will be one's own and may name everything, so the names that it takes over are
            // checked now, when all pools of the store are known.
            parent.store().pools_of_children()?;
            for pool in snapshot.root.iter().flat_map(|root| &root.pools) {
                parent.files().check_named(parent.id(), PoolId(*pool))?;
            }
        }
        ensure_shared(parent, image, &head, &snapshot)?;
        let _lock = dest.lock(LockMode::Exclusive)?;
        dest.check_free(namespace, child.name())?;
        let id = ImageId(dest.unique());
        let name = if hidden { partial_name(id) } else { child.name().to_owned() };
        let name = name.as_str();
        let mut child = child_head(parent, &head, &snapshot, dest, id, (namespace, name), options);
        if let Some(root) = &mut child.root {
            let of = RootOf { pool: parent.clone(), image, snap: Some(SnapId(snapshot.id)) };
            settle_places(root, &of, dest);
        }
        let Some(link) = &child.parent else { return fail(ErrorKind::Invalid, "no parent") };
        let root = child.root.as_ref();
        if parent.id() != dest.id() && root.is_some_and(|root| root.pools.contains(&dest.id().0)) {
            dest.mark_heir(None, id)?;
        }
        let late = fault::is(Fault::CloneRecordLate);
        if !late {
            record_child(parent, dest, link, id, (namespace, name), options.untracked)?;
        }
        // An unprotect marks the snapshot before it looks for our record. So read the head again.
        let published = settled_head(parent, image, snap)
            .and_then(|head| {
                if fault::is(Fault::CloneUnchecked) {
                    return Ok(());
                }
                let again = snapshot_for_clone(parent, &head, snap, options.format)?;
                // Another snapshot may have the name by now.
                let same = again.id == snapshot.id;
                if same { Ok(()) } else { Err(no_snapshot(&parent.image_label(&head), snap)) }
            })
            .and_then(|()| dest.publish_image(id, &child, name));
        if let Err(error) = published {
            // Where the child could not be removed again, it stays complete, and so does its record.
            if dest.read_head(id).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
                let snap_id = SnapId(link.snap_id);
                forget_child(dest, link, snap_id, id)?;
            }
            return Err(error);
        }
        if late {
            record_child(parent, dest, link, id, (namespace, name), options.untracked)?;
        }
        then(id)
    }
}

/// Has the root of a new clone name data in the clone's own pool only where it lies there now. The flatten
/// of an ancestor may have copied it to another pool, and places in the own pool are never looked up again.
/// The lock of the clone's pool is held, so what lies there now stays until the clone is published.
pub(super) fn settle_places(root: &mut RootRecord, parent: &RootOf, dest: &Pool) {
    let mut places = Place::all(root);
    let in_dest = |place: &Place| parent.pool.id() != dest.id() && place.pool == dest.id();
    if !places.iter().any(in_dest) {
        return;
    }
    let now = parent.places().unwrap_or_default();
    for (place, now) in places.iter_mut().zip(now).filter(|(place, _)| in_dest(place)) {
        if now != Place::UNKNOWN {
            *place = now;
        }
    }
    Place::put_all(&places, root);
}

/// Makes sure that the parent's owner does not free segments that the snapshot names.
fn ensure_shared(
    parent: &Pool,
    image: ImageId,
    head: &HeadRecord,
    snapshot: &SnapshotRecord,
) -> Result<()> {
    let shared = head.shared_below.unwrap_or_default();
    let marks = snapshot.marks.unwrap_or_default();
    if shared.data >= marks.data && shared.map >= marks.map && shared.table >= marks.table {
        return Ok(());
    }
    if parent.read_only() {
        return fail(ErrorKind::NotProtected, "parent snapshot must be protected");
    }
    let mut owner = parent.open(image)?;
    owner.mark_shared(&snapshot.name)?;
    owner.close()
}

fn child_head(
    parent: &Pool,
    head: &HeadRecord,
    snapshot: &SnapshotRecord,
    dest: &Pool,
    id: ImageId,
    (namespace, name): (&str, &str),
    options: &CloneOptions,
) -> HeadRecord {
    let root = snapshot.root.clone().unwrap_or_else(empty_root);
    let link = ParentRecord {
        pool_id: parent.id().0,
        image_id: head.image_id,
        snap_id: snapshot.id,
        overlap_bytes: root.size_bytes,
        pool_name: parent.name().to_owned(),
        namespace: head.namespace.clone(),
        image_name: parent.name_for_link(head),
        snap_name: snapshot.name.clone(),
        clone_format: options.format,
        untracked: options.untracked,
    };
    let mut child = first_head(id, namespace, name, dest.now_s());
    child.root = Some(root);
    child.parent = Some(link);
    child.order = options.order.unwrap_or(head.order);
    let stripe = (head.stripe_unit_bytes, head.stripe_count);
    (child.stripe_unit_bytes, child.stripe_count) = options.stripe.unwrap_or(stripe);
    child.data_pool.clone_from(&options.data_pool);
    // As with RBD, a clone begins with its parent's notes.
    child.metadata.clone_from(&head.metadata);
    child.features = options.features.clone().unwrap_or_else(|| head.features.clone());
    child
}

/// Records the child in its own pool, and leaves a marker in the parent's pool if that is another one.
pub(super) fn record_child(
    parent: &Pool,
    dest: &Pool,
    link: &ParentRecord,
    id: ImageId,
    (namespace, name): (&str, &str),
    untracked: bool,
) -> Result<()> {
    let record = ChildRecord {
        parent_pool_id: link.pool_id,
        parent_image_id: link.image_id,
        parent_snap_id: link.snap_id,
        child_pool_id: dest.id().0,
        child_image_id: id.0,
        child_pool_name: dest.name().to_owned(),
        child_name: name.to_owned(),
        child_pool_directory: String::new(),
        created_s: dest.now_s(),
        clone_format: link.clone_format,
        child_namespace: namespace.to_owned(),
        ..ChildRecord::default()
    };
    dest.record_child(&record)?;
    if parent.id() == dest.id() {
        return Ok(());
    }
    // Where the parent's pool belongs to this user, the marker also says where the child's pool lies.
    let mut marker = record;
    if parent.foreign().is_none() {
        marker.child_pool_directory = dest.directory().to_string_lossy().into_owned();
    }
    let left = match parent.foreign() {
        Some(_) => parent.check_room_for_marker(dest),
        None => Ok(()),
    };
    // Everybody may list the directory of markers. So the fact that there is a child is public, but its
    // names are not.
    match left.and_then(|()| parent.leave_marker(&marker)) {
        Err(error) if parent.attached() && !untracked => {
            forget_child(dest, link, SnapId(link.snap_id), id)?;
            let message = format!(
                "no marker can be left in pool '{}', so its owner would not see this clone",
                parent.name()
            );
            Err(error.context(message).with_remedy(Remedy::CloneUntracked))
        }
        _ => Ok(()),
    }
}
