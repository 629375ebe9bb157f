//! What users note in an image's head: metadata, features, a limit for snapshots, advisory locks.

use marcot_format::record::{HEAD_LOCKS_MAX, LockRecord, MetaRecord};

use super::Image;
use crate::catalog::LockInfo;
use crate::catalog::advisory::{EXCLUSIVE_LOCK, check_unlocked};
use crate::error::{ErrorKind, Result, fail};

/// Longest metadata key or value in bytes.
const META_BYTES_MAX: usize = 64 << 10;
/// Longest name, tag or address of a lock in bytes.
const LOCK_BYTES_MAX: usize = 4 << 10;

/// Features that can be given to an image and taken from it.
const MUTABLE: [&str; 3] = [EXCLUSIVE_LOCK, "object-map", "fast-diff"];
/// Features that can only be taken from it.
const REMOVABLE: &str = "deep-flatten";
/// The features that need [`EXCLUSIVE_LOCK`]. They come and go together.
const MAPS: [&str; 2] = ["object-map", "fast-diff"];
/// The order in which features are stored and shown.
const ORDER: [&str; 6] =
    ["layering", "striping", EXCLUSIVE_LOCK, "object-map", "fast-diff", REMOVABLE];

/// The features after a change, comma separated.
///
/// # Errors
/// `Invalid`, as RBD refuses it.
fn changed_features(now: &str, names: &[String], enable: bool) -> Result<String> {
    let refuse = |message: &str| fail(ErrorKind::Invalid, message);
    let mut has: Vec<&str> = now.split(',').filter(|name| !name.is_empty()).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    let may_change = |name: &&str| MUTABLE.contains(name) || (!enable && *name == REMOVABLE);
    if !names.iter().all(may_change) {
        return refuse("cannot update immutable features");
    }
    if names.is_empty() {
        return refuse("update requires at least one feature");
    }
    if enable && names.iter().any(|name| has.contains(name)) {
        return refuse("one or more requested features are already enabled");
    }
    if !enable && names.iter().any(|name| !has.contains(name)) {
        return refuse("one or more requested features are already disabled");
    }
    if names.iter().any(|name| MAPS.contains(name)) {
        names.extend(MAPS);
    }
    match enable {
        true => has.extend(names),
        false => has.retain(|name| !names.contains(name)),
    }
    if !has.contains(&EXCLUSIVE_LOCK) && MAPS.iter().any(|name| has.contains(name)) {
        return refuse(match enable {
            true => {
                "cannot enable object-map. exclusive-lock must be enabled before enabling object-map."
            }
            false => {
                "cannot disable exclusive-lock. object-map must be disabled before disabling \
                 exclusive-lock."
            }
        });
    }
    let others = has.iter().copied().filter(|name| !ORDER.contains(name));
    let known = ORDER.into_iter().filter(|name| has.contains(name));
    Ok(known.chain(others).collect::<Vec<_>>().join(","))
}

impl Image {
    pub(super) fn store_metadata(&mut self, key: &str, value: &str) -> Result<()> {
        self.check_may_change()?;
        if key.is_empty() || key.len() > META_BYTES_MAX || value.len() > META_BYTES_MAX {
            return fail(ErrorKind::Invalid, "metadata keys and values have 1 to 65536 bytes");
        }
        self.publish(|head| {
            head.metadata.retain(|m| m.key != *key);
            if !value.is_empty() {
                head.metadata.push(MetaRecord { key: key.to_owned(), value: value.to_owned() });
            }
        })
    }

    pub(super) fn store_features(&mut self, names: &[String], enable: bool) -> Result<()> {
        self.check_owner()?;
        let features = changed_features(&self.head.features, names, enable)?;
        self.check_may_change()?;
        self.publish(|head| head.features.clone_from(&features))
    }

    /// Notes the most snapshots that there may be; `None`: as many as the format allows.
    pub(super) fn store_snapshot_limit(&mut self, limit: Option<u64>) -> Result<()> {
        self.check_may_change()?;
        let count = self.user_snapshots();
        if let Some(limit) = limit
            && limit < count
        {
            let message = format!("{} has {count} snapshots already", self.identity.label);
            return fail(ErrorKind::OutOfRange, message);
        }
        self.publish(|head| head.snapshot_limit = limit)
    }

    fn user_snapshots(&self) -> u64 {
        self.head.snapshots.iter().filter(|s| !s.trashed).count() as u64
    }

    /// Fails where the user's limit allows no further snapshot.
    pub(super) fn check_snapshot_limit(&self) -> Result<()> {
        // As with RBD, 0 is shown as a limit, and is none.
        let Some(limit) = self.head.snapshot_limit.filter(|limit| *limit > 0) else {
            return Ok(());
        };
        if self.user_snapshots() < limit {
            return Ok(());
        }
        let message = format!(
            "{} has as many snapshots as its limit of {limit} allows; remove some, or raise the limit",
            self.identity.label
        );
        fail(ErrorKind::TooMany, message)
    }

    pub(super) fn store_lock(&mut self, lock: &LockInfo) -> Result<()> {
        self.check_owner()?;
        if [&lock.cookie, &lock.tag, &lock.address].iter().any(|text| text.len() > LOCK_BYTES_MAX) {
            return fail(ErrorKind::Invalid, "names of locks have at most 4096 bytes");
        }
        let taken = |held: &LockRecord| !(lock.shared && held.shared && held.tag == lock.tag);
        if let Some(held) = self.head.locks.iter().find(|held| taken(held)) {
            let message = format!("{} is locked by client.{}", self.identity.label, held.client);
            return fail(ErrorKind::Busy, message);
        }
        let same = |held: &LockRecord| held.client == lock.client && held.cookie == lock.cookie;
        if self.head.locks.iter().any(same) {
            return fail(ErrorKind::Exists, format!("{} has this lock", self.identity.label));
        }
        if self.head.locks.len() >= HEAD_LOCKS_MAX {
            let message = format!(
                "{} has {HEAD_LOCKS_MAX} locks, the most there can be",
                self.identity.label
            );
            return fail(ErrorKind::TooMany, message);
        }
        let LockInfo { client, cookie, address, shared, tag } = lock.clone();
        let record = LockRecord { client, cookie, address, shared, tag };
        self.publish(|head| head.locks.push(record.clone()))
    }

    pub(super) fn drop_lock(&mut self, client: u64, cookie: &str) -> Result<()> {
        self.check_owner()?;
        let same = |held: &LockRecord| held.client == client && held.cookie == cookie;
        if !self.head.locks.iter().any(same) {
            let message =
                format!("{} has no lock '{cookie}' of client.{client}", self.identity.label);
            return fail(ErrorKind::NotFound, message);
        }
        self.publish(|head| head.locks.retain(|held| !same(held)))
    }

    /// Fails where this process does not own the image, and where somebody's lock keeps it from changing it.
    pub(super) fn check_may_change(&self) -> Result<()> {
        self.check_owner()?;
        check_unlocked(&self.head, &self.identity.label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateOptions, Pool, Store};

    const ALL: &str = "layering,exclusive-lock,object-map,fast-diff,deep-flatten";

    fn change(now: &str, names: &str, enable: bool) -> Result<String> {
        let names: Vec<String> =
            names.split(' ').filter(|n| !n.is_empty()).map(str::to_owned).collect();
        changed_features(now, &names, enable)
    }

    #[test]
    fn features_change_as_with_rbd() {
        let kept = [
            (ALL, "fast-diff", false, "layering,exclusive-lock,deep-flatten"),
            (ALL, "object-map fast-diff", false, "layering,exclusive-lock,deep-flatten"),
            (ALL, "exclusive-lock object-map fast-diff", false, "layering,deep-flatten"),
            (ALL, "deep-flatten", false, "layering,exclusive-lock,object-map,fast-diff"),
            ("layering", "exclusive-lock fast-diff", true, &ALL[..ALL.len() - 13]),
            ("layering,exclusive-lock", "object-map", true, &ALL[..ALL.len() - 13]),
        ];
        for (now, names, enable, then) in kept {
            assert_eq!(change(now, names, enable).unwrap(), then, "{now} {names} {enable}");
        }
        let refused = [
            (ALL, "layering", false),
            (ALL, "deep-flatten", true),
            (ALL, "fast-diff", true),
            ("layering", "object-map", true),
            ("layering", "object-map", false),
            (ALL, "exclusive-lock", false),
            (ALL, "journaling", true),
            (ALL, "", true),
        ];
        for (now, names, enable) in refused {
            let error = change(now, names, enable).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{now} {names} {enable}");
        }
    }

    type Call = fn(&mut Image) -> Result<()>;

    fn an_image(features: &str) -> (tempfile::TempDir, Pool, Image) {
        let directory = tempfile::tempdir().unwrap();
        let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
        let id = pool.create("a", &CreateOptions::sized(1 << 20).features(features)).unwrap();
        let image = pool.open(id).unwrap();
        (directory, pool, image)
    }

    fn a_lock(cookie: &str, tag: Option<&str>) -> LockInfo {
        LockInfo {
            client: 5,
            cookie: cookie.to_owned(),
            address: String::new(),
            shared: tag.is_some(),
            tag: tag.unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn a_lock_keeps_writers_out_until_it_is_removed() {
        let (_directory, pool, mut image) = an_image(ALL);
        image.snapshot("s").unwrap();
        image.add_lock(&a_lock("mine", None)).unwrap();
        let calls: [(&str, Call); 9] = [
            ("write", |image| image.write_at(0, b"x")),
            ("discard", |image| image.discard(0, 4096)),
            ("resize", |image| image.resize(2 << 20, false)),
            ("snapshot", |image| image.snapshot("t").map(drop)),
            ("remove_snapshot", |image| image.remove_snapshot("s", false)),
            ("roll_back", |image| image.roll_back("s")),
            ("set_metadata", |image| image.set_metadata("k", "v")),
            ("change_features", |image| image.change_features(&["fast-diff".to_owned()], false)),
            ("limit_snapshots", |image| image.limit_snapshots(Some(5))),
        ];
        for (name, call) in calls {
            assert_eq!(call(&mut image).unwrap_err().kind(), ErrorKind::ReadOnly, "{name}");
        }
        let (id, store) = (image.id(), pool.store().clone());
        image.close().unwrap();
        let removed = store.remove_image(&pool, id, &mut |_, _| {}).unwrap_err();
        assert_eq!(removed.kind(), ErrorKind::HasSnapshots);
        let mut image = pool.open(id).unwrap();
        image.rename_snapshot("s", "t").unwrap();
        assert_eq!(pool.info(id).unwrap().locks, [a_lock("mine", None)]);
        let missing = image.remove_lock(6, "mine").unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        image.remove_lock(5, "mine").unwrap();
        for (name, call) in calls {
            // The snapshot was renamed, so some find none.
            let outcome = call(&mut image);
            let kind = outcome.as_ref().err().map(crate::Error::kind);
            assert!(matches!(kind, None | Some(ErrorKind::NotFound | ErrorKind::Exists)), "{name}");
        }
    }

    #[test]
    fn an_image_with_a_lock_is_not_removed() {
        let (_directory, pool, mut image) = an_image(ALL);
        image.add_lock(&a_lock("mine", None)).unwrap();
        let (id, store) = (image.id(), pool.store().clone());
        image.close().unwrap();
        let removed = store.remove_image(&pool, id, &mut |_, _| {}).unwrap_err();
        assert_eq!(removed.kind(), ErrorKind::ReadOnly);
        let renamed = pool.rename("a", "b").unwrap_err();

        assert_eq!(renamed.kind(), ErrorKind::ReadOnly);
    }

    #[test]
    fn locks_of_images_without_the_feature_are_notes() {
        let (_directory, pool, mut image) = an_image("layering");
        image.add_lock(&a_lock("mine", None)).unwrap();
        image.write_at(0, b"x").unwrap();
        image.snapshot("s").unwrap();
        image.remove_snapshot("s", false).unwrap();
        let id = image.id();
        image.close().unwrap();
        pool.store().remove_image(&pool, id, &mut |_, _| {}).unwrap();
    }

    #[test]
    fn shared_locks_have_one_tag() {
        let (_directory, pool, mut image) = an_image(ALL);
        image.add_lock(&a_lock("a", Some("t"))).unwrap();
        image.add_lock(&a_lock("b", Some("t"))).unwrap();
        for (refused, kind) in [
            (a_lock("c", Some("u")), ErrorKind::Busy),
            (a_lock("c", None), ErrorKind::Busy),
            (a_lock("a", Some("t")), ErrorKind::Exists),
        ] {
            assert_eq!(image.add_lock(&refused).unwrap_err().kind(), kind);
        }
        assert_eq!(pool.info(image.id()).unwrap().locks.len(), 2);
    }

    #[test]
    fn a_limit_holds_for_the_snapshots_of_users() {
        let (_directory, pool, mut image) = an_image(ALL);
        image.limit_snapshots(Some(2)).unwrap();
        image.snapshot("s").unwrap();
        image.snapshot("t").unwrap();
        assert_eq!(image.snapshot("u").unwrap_err().kind(), ErrorKind::TooMany);
        assert_eq!(image.limit_snapshots(Some(1)).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(pool.info(image.id()).unwrap().snapshot_limit, Some(2));
        image.remove_snapshot("s", false).unwrap();
        image.snapshot("u").unwrap();
        image.limit_snapshots(None).unwrap();
        image.snapshot("v").unwrap();
        assert_eq!(pool.info(image.id()).unwrap().snapshot_limit, None);
    }
}
