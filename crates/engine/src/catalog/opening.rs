//! Opening a pool: what its directory says of itself is a claim until it is checked.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use marcot_format::PoolId;
use marcot_format::frame::{FrameKind, decode_message};
use marcot_format::record::{AttachedRecord, PoolRecord};
use marcot_store::Trust;

use super::pool::{Pool, PoolInner, read_file};
use super::store::Store;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::segment::Place;

/// Permission bits of a directory that everybody may read.
const PUBLIC_MODE: u32 = 0o005;

/// What the system says of a directory that is not there.
pub(super) fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// True where everybody may pass through the directories above: a public pool in a private home is not
/// public.
fn is_within_reach(store: &Store, directory: &Path) -> bool {
    let passable =
        |path: &Path| store.inner.world.disk.mode(path).is_ok_and(|mode| mode & 0o001 != 0);
    directory.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).all(passable)
}

fn holds_no_pool(directory: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("{} holds no pool", directory.display()))
}

/// Fails where a directory holds another pool than the one that was attached: what it says of itself
/// is a claim.
fn check_attached(
    name: &str,
    attached: &AttachedRecord,
    record: &PoolRecord,
    owner_id: u32,
) -> Result<()> {
    let remedy = format!(
        "if that is right, 'pool detach {name}' and attach it again; else ask whom it belongs to"
    );
    if record.pool_id != attached.pool_id {
        let message = format!(
            "the pool in {} has the number {:016x}, and had {:016x} when it was attached as '{name}': it is another one; {remedy}",
            attached.directory, record.pool_id, attached.pool_id
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

/// Where a store has a pool.
pub(super) enum Whereabouts {
    /// In the store's own directory.
    Own(PathBuf),
    /// Elsewhere, as noted when it was attached.
    Attached(AttachedRecord),
}

impl Whereabouts {
    pub(super) fn directory(&self) -> PathBuf {
        match self {
            Self::Own(directory) => directory.clone(),
            Self::Attached(record) => PathBuf::from(&record.directory),
        }
    }
}

impl Store {
    /// Fails where another user's store leads to a pool by a link: it could lead anywhere.
    pub(super) fn check_no_link_of_others(&self, name: &str, own: &Path) -> Result<()> {
        let Some(user) = self.inner.foreign.filter(|_| self.is_link(own)) else { return Ok(()) };
        let message = format!(
            "pool '{name}' lies elsewhere, by the symbolic link {} of user {user}, and links of another user are not followed: run the command as that user, or attach the directory that the link leads to, to a store of your own ('pool attach')",
            own.display()
        );
        fail(ErrorKind::PermissionDenied, message)
    }

    pub(super) fn is_link(&self, path: &Path) -> bool {
        self.inner.disk.file_info(path).is_ok_and(|info| info.link)
    }
}

impl Pool {
    /// Opens the pool in a directory, by a descriptor of that directory that everything in it is
    /// reached from.
    ///
    /// # Errors
    /// `NotFound` where there is none; `Invalid` where it is not the one that was attached, or its
    /// number is that of another pool; `Corrupt`, `NewerFormat`.
    pub(super) fn open_directory(store: &Store, name: &str, at: &Whereabouts) -> Result<Self> {
        let context = || format!("cannot open pool '{name}'");
        let directory = at.directory();
        let confined = match at {
            // What another user's store leads to is that user's claim.
            Whereabouts::Own(_) if store.is_foreign() => {
                store.inner.disk.confine(&directory, Trust::Foreign)
            }
            Whereabouts::Attached(_) if store.is_foreign() => {
                store.inner.world.disk.confine(&directory, Trust::Foreign)
            }
            Whereabouts::Own(_) | Whereabouts::Attached(_) => {
                store.inner.world.disk.confine(&directory, Trust::ByOwner)
            }
        };
        let confined = match confined {
            Err(error) if is_absent(&error) => {
                return Err(holds_no_pool(&directory).context(context()));
            }
            confined => confined.at(context)?,
        };
        let disk = confined.disk;
        let bytes = match read_file(&*disk, &directory.join("pool")) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(holds_no_pool(&directory).context(context()));
            }
            bytes => bytes.map_err(|e| e.context(context()))?,
        };
        let decoded = decode_message::<PoolRecord>(FrameKind::Pool, &bytes);
        let (record, newer) = decoded.map_err(|e| Error::from_format(context(), e))?;
        if record.pool_id == 0 {
            return fail(ErrorKind::Corrupt, format!("{}: it has no number", context()));
        }
        if let Whereabouts::Attached(attached) = at {
            check_attached(name, attached, &record, confined.owner_id)?;
        }
        let read_only = newer || !confined.own || !disk.writable(&directory.join("images"));
        let mode = disk.mode(&directory).unwrap_or(0o700);
        let public = mode & PUBLIC_MODE == PUBLIC_MODE && is_within_reach(store, &directory);
        if store.inner.foreign.is_some_and(|user| user != confined.owner_id) {
            let message = format!(
                "pool '{name}' belongs to user {}; the store of another user does not lead to it: open it in its own store",
                confined.owner_id
            );
            return fail(ErrorKind::PermissionDenied, message);
        }
        let attached = matches!(at, Whereabouts::Attached(_)) || record.store_id != store.inner.id;
        let foreign = (!confined.own).then_some(confined.owner_id);
        let place = Place {
            directory: directory.clone(),
            disk,
            identity: (confined.identity.0, confined.identity.1, confined.owner_id),
            foreign,
            public,
            attached,
        };
        let disk = store.inner.files.add_pool(PoolId(record.pool_id), place);
        let disk = disk.map_err(|e| e.context(context()))?;
        let inner = PoolInner {
            store: store.clone(),
            name: name.to_owned(),
            disk,
            directory,
            record,
            read_only,
            attached,
            foreign,
            owner_id: confined.owner_id,
            directory_mode: mode & 0o755,
            names_read: Mutex::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The number that the pool in a directory says it has.
    pub(super) fn number_in(store: &Store, directory: &Path) -> Result<PoolId> {
        let context = || format!("cannot attach the pool in {}", directory.display());
        let disk = match store.inner.world.disk.confine(directory, Trust::ByOwner) {
            Err(error) if is_absent(&error) => return Err(holds_no_pool(directory)),
            confined => confined.at(context)?.disk,
        };
        let bytes = match read_file(&*disk, &directory.join("pool")) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(holds_no_pool(directory));
            }
            bytes => bytes.map_err(|e| e.context(context()))?,
        };
        let decoded = decode_message::<PoolRecord>(FrameKind::Pool, &bytes);
        let (record, _) = decoded.map_err(|e| Error::from_format(context(), e))?;
        Ok(PoolId(record.pool_id))
    }
}
