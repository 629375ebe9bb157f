//! Opening a pool. What a directory says about itself is only a claim until it is checked.

use std::sync::{Arc, Mutex};

use marcot_backend::{At, Key, Opened, Part, is_absent};
use marcot_format::PoolId;
use marcot_format::frame::{FrameKind, decode_message};
use marcot_format::record::{AttachedRecord, PoolRecord};

use super::bucket::read_note;
use super::level::Levels;
use super::pool::{Pool, PoolInner, RECORD_BYTES_MAX};
use super::store::Store;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::segment::Place;

/// Fails where a directory holds another pool than the one that was attached.
fn check_attached(
    name: &str,
    attached: &AttachedRecord,
    record: &PoolRecord,
    owner_id: u32,
) -> Result<()> {
    let remedy = format!(
        "if that is right, 'pool detach {name}' and attach it again; else ask whom it belongs to"
    );
    let place = match &*attached.url {
        "" => &attached.directory,
        url => url,
    };
    if record.pool_id != attached.pool_id {
        let message = format!(
            "the pool in {place} has the number {:016x}, and had {:016x} when it was attached as '{name}': it is another one; {remedy}",
            record.pool_id, attached.pool_id
        );
        return fail(ErrorKind::Invalid, message);
    }
    match attached.owner {
        Some(user) if user != owner_id => {
            let message = format!(
                "the pool in {} belongs to user {owner_id}, and belonged to user {user} when it was attached as '{name}'; {remedy}",
                attached.directory
            );
            fail(ErrorKind::Invalid, message)
        }
        _ => Ok(()),
    }
}

/// Where the store looks for a pool.
pub(crate) enum Whereabouts {
    /// In the store itself, by its name.
    Own(String),
    /// Elsewhere, as noted when it was attached.
    Attached(AttachedRecord),
}

impl Whereabouts {
    fn at(&self, name: &str) -> Result<At> {
        match self {
            Self::Own(name) => Ok(At::Own(name.clone())),
            Self::Attached(record) if record.url.is_empty() => {
                Ok(At::Elsewhere(record.directory.clone()))
            }
            Self::Attached(record) => Ok(At::Bucket(Box::new(read_note(name, record)?))),
        }
    }
}

impl Store {
    /// Fails where another user's store leads to a pool by a symbolic link, which could point anywhere.
    pub(crate) fn check_no_link_of_others(&self, name: &str) -> Result<()> {
        let home = &self.inner.home;
        let Some(user) = home.foreign().filter(|_| home.is_link(name)) else { return Ok(()) };
        let message = format!(
            "pool '{name}' lies elsewhere, by the symbolic link {} of user {user}, and links of another user are not followed: run the command as that user, or attach the directory that the link leads to, to a store of your own ('pool attach')",
            home.show(&Part::Pool(name.to_owned()))
        );
        fail(ErrorKind::PermissionDenied, message)
    }
}

/// An opened pool's place, with the record that it holds.
struct Claim {
    opened: Opened,
    record: PoolRecord,
    /// The record was written by a newer version.
    newer: bool,
}

fn read_claim(store: &Store, at: &At, context: &dyn Fn() -> String) -> Result<Claim> {
    let shown = match at {
        At::Own(name) => store.inner.home.show(&Part::Pool(name.clone())),
        At::Elsewhere(directory) => directory.clone(),
        At::Bucket(bucket) => bucket.location.to_string(),
    };
    let absent =
        || Error::new(ErrorKind::NotFound, format!("{shown} holds no pool")).context(context());
    let opened = match store.inner.home.open(at) {
        Err(error) if is_absent(&error) => return Err(absent()),
        opened => opened.at(context)?,
    };
    let bytes = match opened.backend.records.get(&Key::Pool, RECORD_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(absent()),
        bytes => bytes.at(context)?,
    };
    let decoded = decode_message::<PoolRecord>(FrameKind::Pool, &bytes);
    let (record, newer) = decoded.map_err(|e| Error::from_format(context(), e))?;
    Levels::of(&record).check_readable().map_err(|error| error.context(context()))?;
    Ok(Claim { opened, record, newer })
}

impl Pool {
    /// Opens the pool at a place. Everything in the pool is reached from this one opening.
    ///
    /// # Errors
    /// `NotFound` where there is none; `Invalid` where it is not the one that was attached, or its
    /// number is that of another pool; `Corrupt`, `NewerFormat`.
    pub(crate) fn open_at(store: &Store, name: &str, at: &Whereabouts) -> Result<Self> {
        let context = || format!("cannot open pool '{name}'");
        let Claim { opened, record, newer } = read_claim(store, &at.at(name)?, &context)?;
        let Opened { backend, access } = opened;
        if record.pool_id == 0 {
            return fail(ErrorKind::Corrupt, format!("{}: it has no number", context()));
        }
        if let Whereabouts::Attached(attached) = at {
            check_attached(name, attached, &record, access.owner_id)?;
        }
        if store.foreign().is_some_and(|user| user != access.owner_id) {
            let message = format!(
                "pool '{name}' belongs to user {}; the store of another user does not lead to it: open it in its own store",
                access.owner_id
            );
            return fail(ErrorKind::PermissionDenied, message);
        }
        // A pool in a bucket belongs to the store that made it, though it has a note like those of others.
        let elsewhere =
            matches!(at, Whereabouts::Attached(attached) if !attached.directory.is_empty());
        let attached = elsewhere || record.store_id != store.inner.id;
        let foreign = (!access.own).then_some(access.owner_id);
        let place = Place {
            shown: access.shown.clone(),
            backend,
            identity: access.identity,
            foreign,
            public: access.public,
            attached,
        };
        let backend = store.inner.files.add_pool(PoolId(record.pool_id), place);
        let backend = backend.map_err(|e| e.context(context()))?;
        let inner = PoolInner {
            store: store.clone(),
            name: name.to_owned(),
            backend,
            read_only: newer
                || !Levels::of(&record).is_writable()
                || !access.own
                || !access.writable,
            newer,
            shown: access.shown,
            directory: access.directory,
            record,
            attached,
            foreign,
            owner_id: access.owner_id,
            names_read: Mutex::default(),
            names_found: Mutex::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The number in the record of the pool at a place.
    pub(crate) fn number_at(store: &Store, at: &At) -> Result<PoolId> {
        let context = || match at {
            At::Own(place) | At::Elsewhere(place) => format!("cannot attach the pool in {place}"),
            At::Bucket(bucket) => format!("cannot attach the pool in {}", bucket.location),
        };
        let claim = read_claim(store, at, &context)?;
        Ok(PoolId(claim.record.pool_id))
    }
}
