//! The names of a pool in a bucket.
//!
//! The names of a namespace lie in 64 *directories*: objects that change by compare-and-swap. A name's
//! directory is `crc32c(name) % 64`. An absent directory has no names. A directory is never removed while its
//! namespace exists; see [`super::namespaces`].
//!
//! A rename within a directory is one swap. A rename from `a` in one directory to `b` in another takes three,
//! and may be interrupted between them:
//!
//! 1. `a` is marked: *moving*, with a random number and the name `b`.
//! 2. `b` is inserted: *moved*, with the same number and the name `a`. **This is the commit.**
//! 3. `a` is removed.
//!
//! Invariants:
//! - Who finds `a` moving looks for `b`. If `b` has the number of the move, `a` is gone, whatever its directory
//!   says. Otherwise `a` counts.
//! - `b` is not removed or renamed before the old entry `a` is removed. So `a` cannot come back.
//! - Who wants to change `a` while it is moving completes the move, or calls it off: the number is put down in
//!   the directory of `b` first, then the mark is removed, then the number. Step 2 fails in a directory that
//!   was changed after it was read. It is tried again only where the number is not put down and `a` is still
//!   marked. So a move that was called off is never committed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use marcot_format::frame::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{MoveRecord, NAMES_MAX, NameEntry, NamesRecord};
use marcot_format::{PoolId, crc32c};

use crate::fault::{self, Fault};

use super::envelope::{Objects, PutError, Stored};

/// Directories of a namespace.
const DIRECTORIES: u32 = 64;

/// How often a swap that others win is tried again. Each time somebody else has made a change.
const LOST_MAX: u32 = 1000;

/// The names of a pool.
pub(super) struct Names {
    pub objects: Arc<Objects>,
    pub pool: PoolId,
    /// The directory that was read last for a name, and lacked it. Who makes an image looks whether its name is free
    /// first. The name is then inserted into what was read: that swap fails where the directory has changed since.
    lacking: Mutex<Option<Directory>>,
}

/// A directory that was read.
#[derive(Clone)]
pub(super) struct Directory {
    key: String,
    stored: Option<Stored>,
    pub record: NamesRecord,
    read_only: bool,
}

/// The index of a name's directory.
fn index_of(name: &str) -> u32 {
    crc32c(name.as_bytes()) % DIRECTORIES
}

/// The prefix of the keys of a namespace's directories. The number of the default namespace is the pool's.
pub(super) fn directories(namespace: u64) -> String {
    format!("names/{namespace:016x}/")
}

fn directory_key(namespace: u64, index: u32) -> String {
    format!("{}{index:02x}", directories(namespace))
}

/// The index of the directory with this key.
fn parse_directory(namespace: u64, key: &str) -> Option<u32> {
    let index = key.strip_prefix(&directories(namespace))?;
    let index = u32::from_str_radix(index, 16).ok().filter(|index| *index < DIRECTORIES)?;
    (directory_key(namespace, index) == key).then_some(index)
}

impl Directory {
    pub(super) fn find(&self, name: &str) -> Option<&NameEntry> {
        self.record.names.iter().find(|entry| entry.name == name)
    }

    /// True where the name is there that a move has brought.
    fn has_arrived(&self, moving: &MoveRecord) -> bool {
        let moved = self.find(&moving.name).and_then(|entry| entry.moved.as_ref());
        moved.is_some_and(|moved| moved.number == moving.number)
    }

    /// True where the name is leaving by this move.
    fn is_leaving(&self, name: &str, number: u64) -> bool {
        let moving = self.find(name).and_then(|entry| entry.moving.as_ref());
        moving.is_some_and(|moving| moving.number == number)
    }

    fn is_same(&self, other: &Self) -> bool {
        match (&self.stored, &other.stored) {
            (Some(one), Some(other)) => one.is_same(other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }

    fn without(&self, name: &str) -> NamesRecord {
        let mut record = self.record.clone();
        record.names.retain(|entry| entry.name != name);
        record
    }

    fn check_open(&self) -> io::Result<()> {
        match self.record.closed {
            0 => Ok(()),
            _ => Err(being_removed()),
        }
    }
}

pub(super) fn being_removed() -> io::Error {
    let why = "its namespace or pool is being removed; if that was interrupted, remove it again";
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

/// True where a swap was done; false where it was lost.
pub(super) fn won(put: Result<Option<Stored>, PutError>) -> io::Result<bool> {
    match put {
        Ok(_) => Ok(true),
        Err(PutError::Lost) => Ok(false),
        Err(PutError::Failed(error) | PutError::Unknown(error)) => Err(error),
    }
}

impl Names {
    pub(super) fn new(objects: Arc<Objects>, pool: PoolId) -> Self {
        Self { objects, pool, lacking: Mutex::default() }
    }

    fn lacking(&self) -> std::sync::MutexGuard<'_, Option<Directory>> {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries until `attempt` has a result.
    pub(super) fn until_won<T>(
        &self,
        mut attempt: impl FnMut() -> io::Result<Option<T>>,
    ) -> io::Result<T> {
        for lost in 1..=LOST_MAX {
            if let Some(done) = attempt()? {
                return Ok(done);
            }
            self.objects.make_way(lost);
        }
        let why = "others change the same object all the time; try again later";
        Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
    }

    fn read(&self, namespace: u64, name: &str) -> io::Result<Directory> {
        self.read_index(namespace, index_of(name))
    }

    pub(super) fn read_index(&self, namespace: u64, index: u32) -> io::Result<Directory> {
        let key = directory_key(namespace, index);
        let stored = self.objects.get(&key)?;
        let (record, read_only) = match stored.as_ref().map(Stored::body) {
            None => (NamesRecord::default(), false),
            Some(body) => decode_message(FrameKind::Names, body.unwrap_or_default())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
        };
        Ok(Directory { key, stored, record, read_only })
    }

    /// Stores a directory in place of the one that was read. Returns false where another one is stored.
    pub(super) fn put(&self, read: &Directory, record: &NamesRecord) -> io::Result<bool> {
        if read.read_only {
            let why = "it was written by a newer marcot, and this one may only read it";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let body = encode_message(FrameKind::Names, record);
        let too_long = body.len() > FRAME_BODY_BYTES_MAX + FRAME_HEADER_BYTES;
        if too_long || record.names.len() > NAMES_MAX {
            let why = "the namespace has as many names as it can have";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, why));
        }
        won(match &read.stored {
            None => self.objects.create(&read.key, &body),
            Some(stored) => self.objects.replace(&read.key, stored, &body),
        })
    }

    /// The record of a name.
    pub(super) fn get(&self, namespace: u64, name: &str) -> io::Result<Vec<u8>> {
        self.until_won(|| {
            let here = self.read(namespace, name)?;
            let Some(entry) = here.find(name) else {
                *self.lacking() = Some(here);
                return Err(io::ErrorKind::NotFound.into());
            };
            let Some(moving) = &entry.moving else { return Ok(Some(entry.record.clone())) };
            if self.read(namespace, &moving.name)?.has_arrived(moving) {
                return Err(io::ErrorKind::NotFound.into());
            }
            // It has not arrived, or it has been removed from there since. Then the old entry was removed
            // before.
            let unchanged = self.read(namespace, name)?.is_same(&here);
            Ok(unchanged.then(|| entry.record.clone()))
        })
    }

    /// Inserts a name. Returns true where its directory did not exist before.
    pub(super) fn create(&self, namespace: u64, name: &str, record: &[u8]) -> io::Result<bool> {
        let key = directory_key(namespace, index_of(name));
        let is_right = |read: &Directory| {
            read.key == key && read.find(name).is_none() && read.check_open().is_ok()
        };
        let mut read_before = self.lacking().take().filter(is_right);
        self.until_won(|| {
            let here = match read_before.take() {
                Some(read) => read,
                None => self.settled(namespace, name)?,
            };
            here.check_open()?;
            if here.find(name).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let mut after = here.record.clone();
            let (name, record) = (name.to_owned(), record.to_vec());
            after.names.push(NameEntry { name, record, ..NameEntry::default() });
            Ok(self.put(&here, &after)?.then_some(here.stored.is_none()))
        })
    }

    /// Removes a name.
    pub(super) fn remove(&self, namespace: u64, name: &str) -> io::Result<()> {
        self.remove_if(namespace, name, |_| true)
    }

    /// Removes a name whose record is the right one. Another one counts as none.
    pub(super) fn remove_if(
        &self,
        namespace: u64,
        name: &str,
        is_right: impl Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        self.until_won(|| {
            let here = self.settled(namespace, name)?;
            let entry = here.find(name).filter(|entry| is_right(&entry.record));
            let entry = entry.ok_or(io::ErrorKind::NotFound)?;
            self.remove_old_entry(namespace, entry)?;
            Ok(self.put(&here, &here.without(name))?.then_some(()))
        })
    }

    /// Gives a record another name of the same namespace, where it is the right one. Another one counts as none.
    pub(super) fn rename(
        &self,
        namespace: u64,
        from: &str,
        to: &str,
        is_right: impl Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        self.until_won(|| {
            let here = self.settled(namespace, from)?;
            let entry = here.find(from).filter(|entry| is_right(&entry.record));
            let entry = entry.ok_or(io::ErrorKind::NotFound)?;
            self.remove_old_entry(namespace, entry)?;
            let there = self.settled(namespace, to)?;
            there.check_open()?;
            if there.find(to).is_some() {
                // The old name may have moved there since it was read.
                return match self.read(namespace, from)?.is_same(&here) {
                    true => Err(io::ErrorKind::AlreadyExists.into()),
                    false => Ok(None),
                };
            }
            let mut renamed = entry.clone();
            (renamed.name, renamed.moved, renamed.moving) = (to.to_owned(), None, None);
            if index_of(from) == index_of(to) {
                if !here.is_same(&there) {
                    return Ok(None);
                }
                let mut after = here.without(from);
                after.names.push(renamed);
                return Ok(self.put(&here, &after)?.then_some(()));
            }
            let number = self.objects.number();
            let mut marked = here.record.clone();
            for entry in marked.names.iter_mut().filter(|entry| entry.name == from) {
                entry.moving = Some(MoveRecord { number, name: to.to_owned() });
                entry.moved = None;
            }
            if !fault::is(Fault::RenameUnmarked) && !self.put(&here, &marked)? {
                return Ok(None);
            }
            renamed.moved = Some(MoveRecord { number, name: from.to_owned() });
            let moved = self.arrive(namespace, there, renamed, number, from)?;
            let left = || {
                let here = self.read(namespace, from)?;
                match here.is_leaving(from, number) || fault::is(Fault::RenameUnmarked) {
                    true => Ok(self.put(&here, &here.without(from))?.then_some(())),
                    false => Ok(Some(())),
                }
            };
            if moved {
                self.until_won(left)?;
            }
            Ok(moved.then_some(()))
        })
    }

    /// Inserts a name that is moving. `there` was read before the old entry was marked. Returns false where
    /// the move was called off.
    fn arrive(
        &self,
        namespace: u64,
        there: Directory,
        renamed: NameEntry,
        number: u64,
        from: &str,
    ) -> io::Result<bool> {
        let mut next = Some(there);
        self.until_won(|| {
            let there = match next.take() {
                Some(there) => there,
                None => {
                    let there = self.settled(namespace, &renamed.name)?;
                    if there.record.called_off.contains(&number)
                        || !self.read(namespace, from)?.is_leaving(from, number)
                    {
                        return Ok(Some(false));
                    }
                    there
                }
            };
            if there.record.closed != 0 || there.find(&renamed.name).is_some() {
                let moving = MoveRecord { number, name: renamed.name.clone() };
                self.settle_move(namespace, from, &moving)?;
                there.check_open()?;
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let mut after = there.record.clone();
            after.names.push(renamed.clone());
            Ok(self.put(&there, &after)?.then_some(true))
        })
    }

    /// Removes what a name that was moved has left under its old name, if it has.
    fn remove_old_entry(&self, namespace: u64, entry: &NameEntry) -> io::Result<()> {
        let Some(moved) = &entry.moved else { return Ok(()) };
        self.until_won(|| {
            let old = self.read(namespace, &moved.name)?;
            match old.is_leaving(&moved.name, moved.number) {
                true => Ok(self.put(&old, &old.without(&moved.name))?.then_some(())),
                false => Ok(Some(())),
            }
        })
    }

    /// The directory of a name. A move of the name that was under way is completed, or called off.
    fn settled(&self, namespace: u64, name: &str) -> io::Result<Directory> {
        self.until_won(|| {
            let here = self.read(namespace, name)?;
            let Some(moving) = here.find(name).and_then(|entry| entry.moving.clone()) else {
                return Ok(Some(here));
            };
            self.settle_move(namespace, name, &moving)?;
            Ok(None)
        })
    }

    /// Completes a move that was committed, and calls off one that was not.
    fn settle_move(&self, namespace: u64, name: &str, moving: &MoveRecord) -> io::Result<()> {
        let number = moving.number;
        let arrived = self.until_won(|| {
            let there = self.read(namespace, &moving.name)?;
            if there.has_arrived(moving) || there.record.called_off.contains(&number) {
                return Ok(Some(there.has_arrived(moving)));
            }
            let mut after = there.record.clone();
            after.called_off.push(number);
            Ok(self.put(&there, &after)?.then_some(false))
        })?;
        self.until_won(|| {
            let here = self.read(namespace, name)?;
            if !here.is_leaving(name, number) {
                return Ok(Some(()));
            }
            let mut after = match arrived {
                true => here.without(name),
                false => here.record.clone(),
            };
            for entry in after.names.iter_mut().filter(|entry| entry.name == name) {
                entry.moving = None;
            }
            Ok(self.put(&here, &after)?.then_some(()))
        })?;
        self.until_won(|| {
            let there = self.read(namespace, &moving.name)?;
            if !there.record.called_off.contains(&number) {
                return Ok(Some(()));
            }
            let mut after = there.record.clone();
            after.called_off.retain(|called_off| *called_off != number);
            Ok(self.put(&there, &after)?.then_some(()))
        })
    }

    /// The directories of a namespace that exist.
    pub(super) fn all(&self, namespace: u64) -> io::Result<Vec<Directory>> {
        let mut indices = Vec::new();
        self.objects.list(&directories(namespace), &mut |object| {
            indices.extend(parse_directory(namespace, &object.key));
            true
        })?;
        indices.into_iter().map(|index| self.read_index(namespace, index)).collect()
    }

    /// The names of a namespace with their records, sorted. The directories are read one after the other. A
    /// name that is there all the time is among them. One that is renamed meanwhile may be there under its old
    /// name, or its new one, or be missing.
    pub(super) fn list(&self, namespace: u64) -> io::Result<BTreeMap<String, Vec<u8>>> {
        let read = self.all(namespace)?;
        let entries: HashMap<&str, &NameEntry> = read
            .iter()
            .flat_map(|directory| &directory.record.names)
            .map(|entry| (&*entry.name, entry))
            .collect();
        let mut found = BTreeMap::new();
        for entry in entries.values() {
            let Some(moving) = &entry.moving else {
                found.insert(entry.name.clone(), entry.record.clone());
                continue;
            };
            match self.get(namespace, &entry.name) {
                Ok(record) => drop(found.insert(entry.name.clone(), record)),
                // It is listed by its new name. That directory may have been read too early.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if let Ok(record) = self.get(namespace, &moving.name) {
                        found.insert(moving.name.clone(), record);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        // A name that was read before it moved, and again after that.
        for entry in entries.values() {
            if let Some(moved) = &entry.moved
                && found.get(&moved.name) == Some(&entry.record)
            {
                found.remove(&moved.name);
            }
        }
        Ok(found)
    }

    /// Closes all directories of a namespace, so that they take no names. Returns false where a name was
    /// found; then some are closed.
    pub(super) fn close(&self, namespace: u64, removal: u64) -> io::Result<bool> {
        for index in 0..DIRECTORIES {
            let empty = self.until_won(|| {
                let here = self.read_index(namespace, index)?;
                if let Some(entry) = here.record.names.first() {
                    // Where it has moved, this removes it.
                    let still = self.settled(namespace, &entry.name)?.find(&entry.name).is_some();
                    return Ok(still.then_some(false));
                }
                let after = NamesRecord { closed: removal, ..here.record.clone() };
                Ok(self.put(&here, &after)?.then_some(true))
            })?;
            if !empty {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens the directories that a removal has closed.
    pub(super) fn reopen(&self, namespace: u64, removal: u64) -> io::Result<()> {
        for index in 0..DIRECTORIES {
            self.until_won(|| {
                let here = self.read_index(namespace, index)?;
                if here.record.closed != removal {
                    return Ok(Some(()));
                }
                let after = NamesRecord { closed: 0, ..here.record.clone() };
                Ok(self.put(&here, &after)?.then_some(()))
            })?;
        }
        Ok(())
    }
}
