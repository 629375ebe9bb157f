//! Records as objects.
//!
//! ```text
//! P/pool                          the pool's record
//! P/namespaces/POOL               the namespaces, see `namespaces`
//! P/names/NUMBER/HH               64 directories of names for each namespace, see `names`
//! P/images/NUMBER/head            an image's head
//! P/images/NUMBER/name            the name that it was given later: a hint
//! P/children/P.I.S.p.i            a child, or a marker
//! P/heirs/...                     marks of heirs, see [`HeirKey`]
//! ```
//!
//! No name occurs in a key, so every name that is legal in RBD can be stored.
//!
//! Invariants:
//! - Everything is durable when the call returns that stored or removed it.
//! - A head that was removed leaves a tombstone, for ever. So a request to create or replace the head that is
//!   carried out late cannot bring it back. The pool's record leaves one too; only a new pool replaces it.
//! - A note beside a head that is removed while its image lives becomes an empty record. So a request to remove it that
//!   is carried out late cannot take a note that was put later.
//! - Other objects are removed. A request that creates one of them again, late, leaves a stale record of a
//!   child, mark of an heir or hint, all of which are recognized as stale.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use marcot_format::{ImageId, PoolId};

use super::Retry;
use super::envelope::{Objects, PutError, Stored, TOMBSTONE_BYTES};
use super::leases::HostDirectory;
use super::names::{Names, won};
use crate::fault::{self, Fault};
use crate::{
    Beside, ChildKey, HeirKey, Key, Leftover, Listed, NameRead, Prefix, Records, Stamp, SwapError,
};

/// The object of the pool's record.
pub(super) const POOL: &str = "pool";
const IMAGES: &str = "images/";
const CHILDREN: &str = "children/";
const HEIRS: &str = "heirs/";
const GROUPS: &str = "groups/";
const HEAD: &str = "head";

/// Heads whose version is remembered, so that they are replaced without being read again.
const KNOWN_HEADS_MAX: usize = 256;

/// The records of a pool in a bucket.
pub struct ObjectRecords {
    objects: Arc<Objects>,
    names: Names,
    user: u32,
    host: Option<HostDirectory>,
    /// How long the swap of a head waits for the service; `None`: as long as everything else.
    patient: Option<Retry>,
    known: Mutex<KnownHeads>,
}

/// Versions of heads that were read or stored, the oldest first. They may be old: a swap with an old version
/// changes nothing, and the head is read then.
#[derive(Default)]
struct KnownHeads(VecDeque<(ImageId, Stamp, Stored)>);

impl KnownHeads {
    fn forget(&mut self, image: ImageId) {
        self.0.retain(|(known, ..)| *known != image);
    }

    fn note(&mut self, image: ImageId, stamp: Stamp, version: Stored) {
        self.forget(image);
        if self.0.len() >= KNOWN_HEADS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((image, stamp, version));
    }

    fn version(&self, image: ImageId, stamp: Stamp) -> Option<Stored> {
        let known = self.0.iter().find(|(known, at, _)| (*known, *at) == (image, stamp))?;
        Some(known.2.clone())
    }
}

/// Where a record is kept.
enum Kept<'a> {
    /// In an object of its own.
    Object(String),
    /// In a directory of names.
    Name(&'a str, &'a str),
    /// In the list of namespaces.
    Namespace(&'a str),
}

impl ObjectRecords {
    /// The records of the pool with this number. `user` is the user of this process.
    #[must_use]
    pub fn new(objects: Arc<Objects>, pool: PoolId, user: u32) -> Self {
        let names = Names::new(Arc::clone(&objects), pool);
        Self { objects, names, user, host: None, patient: None, known: Mutex::default() }
    }

    /// The same. What the host keeps for an image goes with the image.
    #[must_use]
    pub fn beside(self, host: HostDirectory) -> Self {
        Self { host: Some(host), ..self }
    }

    /// The same. The swap of a head waits for the service with this patience: where it is not known whether a head
    /// was stored, its image has to be opened again.
    #[must_use]
    pub fn patient(self, retry: Retry) -> Self {
        Self { patient: Some(retry), ..self }
    }

    fn known(&self) -> MutexGuard<'_, KnownHeads> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a head that has the stamp `from`. Where its version is known, it is not read before.
    fn swap_head(
        &self,
        image: ImageId,
        key: &str,
        from: Stamp,
        bytes: &[u8],
    ) -> Result<(), SwapError> {
        let known = self.known().version(image, from);
        if let Some(known) = known {
            match self.replace_head(image, key, &known, bytes) {
                // What was known may be old. The head itself says whether it is.
                Err(SwapError::Changed) => {}
                replaced => return replaced,
            }
        }
        let read = || {
            let stored = self.objects.get(key)?.ok_or(io::ErrorKind::NotFound)?;
            let stamp = Stamp::in_bytes(stored.body().ok_or(io::ErrorKind::NotFound)?);
            Ok((stamp.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?, stored))
        };
        let (stamp, stored) = read().map_err(SwapError::Unchanged)?;
        if stamp != from && !fault::is(Fault::SkipFence) {
            return Err(SwapError::Changed);
        }
        self.replace_head(image, key, &stored, bytes)
    }

    fn replace_head(
        &self,
        image: ImageId,
        key: &str,
        replaced: &Stored,
        bytes: &[u8],
    ) -> Result<(), SwapError> {
        self.known().forget(image);
        let stored = match &self.patient {
            None => self.objects.replace(key, replaced, bytes),
            Some(retry) => self.objects.replace_with(retry, key, replaced, bytes),
        };
        match stored {
            Ok(version) => {
                if let (Some(version), Ok(stamp)) = (version, Stamp::in_bytes(bytes)) {
                    self.known().note(image, stamp, version);
                }
                Ok(())
            }
            Err(PutError::Lost) => Err(SwapError::Changed),
            Err(PutError::Failed(error)) => Err(SwapError::Unchanged(error)),
            Err(PutError::Unknown(error)) => Err(SwapError::Unknown(error)),
        }
    }

    /// Creates the record of an object of its own. Only the pool's record replaces a tombstone.
    fn create_object(&self, key: &Key, object: &str, bytes: &[u8]) -> io::Result<()> {
        let buried = match key {
            Key::Pool => self.objects.get_any(object)?,
            _ => None,
        };
        let created = match &buried {
            None => self.objects.create(object, bytes),
            Some(buried) if buried.body().is_none() => self.objects.replace(object, buried, bytes),
            Some(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        };
        match won(created)? {
            true => Ok(()),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn put_object(&self, object: &str, bytes: &[u8]) -> io::Result<()> {
        self.names.until_won(|| {
            let put = match self.objects.get_any(object)? {
                None => self.objects.create(object, bytes),
                Some(stored) if stored.body().is_none() => {
                    return Err(io::ErrorKind::NotFound.into());
                }
                Some(stored) => self.objects.replace(object, &stored, bytes),
            };
            Ok(won(put)?.then_some(()))
        })
    }

    /// Puts a tombstone in the place of a record.
    fn bury(&self, object: &str) -> io::Result<()> {
        self.names.until_won(|| match self.objects.get_any(object)? {
            Some(_) if fault::is(Fault::NoTombstone) => self.objects.remove(object).map(Some),
            Some(stored) if stored.body().is_some() => match self.objects.bury(object, &stored) {
                Ok(()) => Ok(Some(())),
                Err(PutError::Lost) => Ok(None),
                Err(PutError::Failed(error) | PutError::Unknown(error)) => Err(error),
            },
            _ => Err(io::ErrorKind::NotFound.into()),
        })
    }

    /// Puts an empty record in the place of a note, which counts as none.
    fn empty(&self, object: &str) -> io::Result<()> {
        self.names.until_won(|| match self.objects.get_any(object)? {
            Some(stored) if stored.body().is_some_and(|body| !body.is_empty()) => {
                Ok(won(self.objects.replace(object, &stored, &[]))?.then_some(()))
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn list_heads(&self, each: &mut dyn FnMut(Listed<'_>) -> bool) -> io::Result<()> {
        // The objects of an image are listed one after the other. The value is true where its head is a
        // tombstone and nothing else was listed yet.
        let mut last: Option<(ImageId, bool)> = None;
        let mut go_on = true;
        self.objects.list(IMAGES, &mut |object| {
            let rest = &object.key[IMAGES.len()..];
            let (number, part) = rest.split_once('/').unwrap_or((rest, ""));
            let Some(image) = parse_number(number).map(ImageId) else {
                go_on = each(Listed::Other(rest));
                return go_on;
            };
            let buried = part == HEAD && object.bytes == TOMBSTONE_BYTES;
            let told = last.is_some_and(|(told, buried)| told == image && !buried);
            if !told && !buried {
                go_on = each(Listed::Key(&Key::Head(image)));
            }
            last = Some((image, buried && !told));
            go_on
        })
    }

    /// Lists records whose keys are a prefix and a name.
    fn list_named(
        &self,
        prefix: &str,
        parse: impl Fn(&str) -> Option<Key>,
        each: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> io::Result<()> {
        self.objects.list(prefix, &mut |object| {
            let name = &object.key[prefix.len()..];
            match parse(name) {
                Some(key) => each(Listed::Key(&key)),
                None => each(Listed::Other(name)),
            }
        })
    }
}

/// True for an object that stays when its pool is removed, because a request may still create or replace it.
pub(super) fn outlives_pool(object: &str) -> bool {
    object == POOL || object.starts_with("names/") || object.starts_with("namespaces/")
}

fn kept(key: &Key) -> Kept<'_> {
    match key {
        Key::Pool => Kept::Object(POOL.to_owned()),
        Key::Namespace(namespace) => Kept::Namespace(namespace),
        Key::Name { namespace, name } => Kept::Name(namespace, name),
        Key::Head(image) => Kept::Object(format!("{IMAGES}{image}/{HEAD}")),
        Key::NameHint(image) => Kept::Object(format!("{IMAGES}{image}/name")),
        Key::TrashNote(image) => Kept::Object(format!("{IMAGES}{image}/trash")),
        Key::GroupNote(image) => Kept::Object(format!("{IMAGES}{image}/group")),
        Key::Group(number) => Kept::Object(format!("{GROUPS}{number:016x}")),
        Key::Child(child) | Key::Marker(child) => Kept::Object(format!("{CHILDREN}{child}")),
        Key::Heir(heir) => Kept::Object(format!("{HEIRS}{heir}")),
    }
}

/// True for what is put beside a head, removed, and put again.
fn is_note(key: &Key) -> bool {
    matches!(key, Key::NameHint(_) | Key::TrashNote(_) | Key::GroupNote(_))
}

/// A number as keys have it: 16 hexadecimal digits.
fn parse_number(text: &str) -> Option<u64> {
    let number = u64::from_str_radix(text, 16).ok()?;
    (format!("{number:016x}") == text).then_some(number)
}

fn limited(bytes: Vec<u8>, bytes_max: u64) -> io::Result<Vec<u8>> {
    match bytes.len() as u64 > bytes_max {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

impl Records for ObjectRecords {
    fn get(&self, key: &Key, bytes_max: u64) -> io::Result<Vec<u8>> {
        let bytes = match kept(key) {
            Kept::Object(object) => {
                let stored = self.objects.get(&object)?.ok_or(io::ErrorKind::NotFound)?;
                if let (Key::Head(image), Some(body)) = (key, stored.body())
                    && let Ok(stamp) = Stamp::in_bytes(body)
                {
                    self.known().note(*image, stamp, stored.without_body());
                }
                let is_there = |body: &Vec<u8>| !(body.is_empty() && is_note(key));
                stored.into_body().filter(is_there).ok_or(io::ErrorKind::NotFound)?
            }
            Kept::Name(namespace, name) => self.names.get(self.names.number(namespace)?, name)?,
            Kept::Namespace(namespace) => self.names.number(namespace).map(|_| Vec::new())?,
        };
        limited(bytes, bytes_max)
    }

    fn exists(&self, key: &Key) -> io::Result<bool> {
        let found = match kept(key) {
            Kept::Object(_) if is_note(key) => self.get(key, u64::MAX).map(drop),
            Kept::Object(object) => {
                let start = self.objects.start_of(&object, TOMBSTONE_BYTES + 1)?;
                return Ok(start.is_some_and(|start| start.len() as u64 > TOMBSTONE_BYTES));
            }
            Kept::Name(namespace, name) => self
                .names
                .number(namespace)
                .and_then(|number| self.names.get(number, name))
                .map(drop),
            Kept::Namespace(namespace) => self.names.number(namespace).map(drop),
        };
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => found.map(|()| true),
        }
    }

    fn create(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        match kept(key) {
            Kept::Object(object) => self.create_object(key, &object, bytes),
            Kept::Name(namespace, name) => self.names.create_in(namespace, name, bytes),
            Kept::Namespace(namespace) => self.names.create_namespace(namespace),
        }
    }

    fn put(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        match kept(key) {
            Kept::Object(object) => self.put_object(&object, bytes),
            Kept::Name(..) | Kept::Namespace(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn swap(&self, key: &Key, from: Stamp, bytes: &[u8]) -> Result<(), SwapError> {
        match (key, kept(key)) {
            (Key::Head(image), Kept::Object(object)) => {
                self.swap_head(*image, &object, from, bytes)
            }
            _ => Err(SwapError::Unchanged(io::ErrorKind::Unsupported.into())),
        }
    }

    fn replace(&self, key: &Key, from: &[u8], bytes: &[u8]) -> Result<(), SwapError> {
        let Kept::Object(object) = kept(key) else {
            return Err(SwapError::Unchanged(io::ErrorKind::Unsupported.into()));
        };
        let stored = self.objects.get(&object).map_err(SwapError::Unchanged)?;
        let stored = stored.filter(|stored| stored.body().is_some());
        let stored = stored.ok_or_else(|| SwapError::Unchanged(io::ErrorKind::NotFound.into()))?;
        if stored.body() != Some(from) {
            return Err(SwapError::Changed);
        }
        match self.objects.replace(&object, &stored, bytes) {
            Ok(_) => Ok(()),
            Err(PutError::Lost) => Err(SwapError::Changed),
            Err(PutError::Failed(error)) => Err(SwapError::Unchanged(error)),
            Err(PutError::Unknown(error)) => Err(SwapError::Unknown(error)),
        }
    }

    fn rename(&self, from: &Key, to: &Key) -> io::Result<()> {
        match (kept(from), kept(to)) {
            (Kept::Name(namespace, from), Kept::Name(same, to)) if namespace == same => {
                self.names.rename(self.names.number(namespace)?, from, to, |_| true)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn rename_name(&self, from: &Key, to: &Key, record: &[u8]) -> io::Result<()> {
        match (kept(from), kept(to)) {
            (Kept::Name(namespace, from), Kept::Name(same, to)) if namespace == same => {
                self.names.rename(self.names.number(namespace)?, from, to, |found| found == record)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn remove(&self, key: &Key) -> io::Result<()> {
        match (key, kept(key)) {
            (Key::Head(image), Kept::Object(object)) => {
                self.known().forget(*image);
                let buried = self.bury(&object);
                // Also where the head is gone already: the process that removed it may have been killed.
                let image = *image;
                for beside in [Key::NameHint, Key::TrashNote, Key::GroupNote].map(|key| key(image))
                {
                    if let Kept::Object(object) = kept(&beside) {
                        let _ = self.objects.remove(&object);
                    }
                }
                if let Some(host) = &self.host {
                    host.forget_image(image);
                }
                buried
            }
            (Key::Pool, Kept::Object(object)) => {
                if !self.exists(key)? {
                    return Err(io::ErrorKind::NotFound.into());
                }
                self.names.close_pool()?;
                self.bury(&object)
            }
            (_, Kept::Object(object)) if is_note(key) => self.empty(&object),
            (_, Kept::Object(object)) => match self.exists(key)? {
                true => self.objects.remove(&object),
                false => Err(io::ErrorKind::NotFound.into()),
            },
            (_, Kept::Name(namespace, name)) => {
                self.names.remove(self.names.number(namespace)?, name)
            }
            (_, Kept::Namespace(namespace)) => self.names.remove_namespace(namespace),
        }
    }

    fn remove_same(&self, key: &Key, record: &[u8]) -> io::Result<()> {
        match kept(key) {
            Kept::Name(namespace, name) => {
                self.names.remove_if(self.names.number(namespace)?, name, |found| found == record)
            }
            Kept::Object(_) if is_note(key) => match self.replace(key, record, &[]) {
                Ok(()) => Ok(()),
                Err(SwapError::Changed) => Err(io::ErrorKind::NotFound.into()),
                Err(SwapError::Unchanged(error) | SwapError::Unknown(error)) => Err(error),
            },
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn forbid(&self, key: &Key) -> io::Result<()> {
        match (key, kept(key)) {
            (Key::Head(_), Kept::Object(object)) => self.objects.forbid(&object),
            _ => Ok(()),
        }
    }

    /// Everything is durable already.
    fn settle(&self, key: &Key) -> io::Result<()> {
        match kept(key) {
            Kept::Name(namespace, _) => self.names.number(namespace).map(drop),
            _ => Ok(()),
        }
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed<'_>) -> bool) -> io::Result<()> {
        let keys: Vec<Key> = match prefix {
            Prefix::Heads => return self.list_heads(each),
            Prefix::Children => {
                let parse = |name: &str| ChildKey::parse(name).map(Key::Child);
                return self.list_named(CHILDREN, parse, each);
            }
            Prefix::Heirs => {
                let parse = |name: &str| HeirKey::parse(name).map(Key::Heir);
                return self.list_named(HEIRS, parse, each);
            }
            Prefix::Groups => {
                let parse = |name: &str| parse_number(name).map(Key::Group);
                return self.list_named(GROUPS, parse, each);
            }
            Prefix::Namespaces => {
                self.names.namespaces()?.into_iter().map(Key::Namespace).collect()
            }
            Prefix::Names(namespace) => {
                let found = self.names.list(self.names.number(namespace)?)?;
                let key = |name| Key::Name { namespace: namespace.clone(), name };
                found.into_keys().map(key).collect()
            }
        };
        for key in &keys {
            if !each(Listed::Key(key)) {
                break;
            }
        }
        Ok(())
    }

    fn names(&self, namespace: &str, bytes_max: u64) -> io::Result<Vec<NameRead>> {
        let found = self.names.list(self.names.number(namespace)?)?;
        Ok(found.into_iter().map(|(name, bytes)| (name, limited(bytes, bytes_max))).collect())
    }

    /// The user of this process: the service decides who may write, not the numbers of users.
    fn owner(&self, key: &Key) -> io::Result<u32> {
        match self.exists(key)? {
            true => Ok(self.user),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// There are none: an object is stored as a whole or not at all.
    fn leftovers(&self, _: &Beside) -> Vec<Leftover> {
        Vec::new()
    }

    fn remove_leftover(&self, _: &Leftover) -> bool {
        false
    }

    fn show(&self, key: &Key) -> String {
        let service = self.objects.service();
        match kept(key) {
            Kept::Object(object) => service.show(&object),
            Kept::Name("", name) => format!("the name '{name}' in {}", service.show("names")),
            Kept::Name(namespace, name) => {
                format!("the name '{namespace}/{name}' in {}", service.show("names"))
            }
            Kept::Namespace(namespace) => {
                format!("the namespace '{namespace}' in {}", service.show("namespaces"))
            }
        }
    }
}
