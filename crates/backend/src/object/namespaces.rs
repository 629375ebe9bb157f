//! The namespaces of a pool in a bucket: one object that changes by compare-and-swap.
//!
//! A namespace has a random number, under which its names are stored. A namespace that is removed and made again
//! has another number. So a request that is carried out late cannot touch the names of the new one.
//!
//! A namespace is removed in these steps. Other hosts may create names in it meanwhile.
//!
//! 1. The list notes the number of the removal. A later removal notes its own, and takes over.
//! 2. Every directory of names is closed, with that number. A directory with names cannot be closed; then those
//!    that this removal has closed are opened again, and the note is removed.
//! 3. The namespace is dropped from the list, if the note is still there. **This is the commit.**
//! 4. The directories are removed.
//!
//! Invariants:
//! - A closed directory takes no names, and was empty when it was closed.
//! - Only a removal that is noted is committed, and only a removal that failed opens directories, and only its
//!   own. So all directories are closed when the namespace is dropped.
//! - Who creates a directory looks afterwards whether the namespace still exists, because the directory may
//!   have been removed in step 4.
//!
//! The default namespace has the pool's number. It is closed the same way before a pool is removed; the closed
//! directories stay.

use std::io;

use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{NAMESPACES_MAX, NamespaceEntry, NamespacesRecord};

use super::envelope::Stored;
use super::names::{Names, being_removed, directories, won};

/// The list of namespaces, as it was read.
struct Namespaces {
    stored: Option<Stored>,
    record: NamespacesRecord,
    read_only: bool,
}

impl Namespaces {
    fn find(&self, name: &str) -> Option<&NamespaceEntry> {
        self.record.namespaces.iter().find(|entry| entry.name == name)
    }
}

/// What is removed: a namespace, or the whole pool.
#[derive(Clone, Copy)]
enum Removed<'a> {
    Namespace(&'a str),
    Pool,
}

impl Removed<'_> {
    /// Where the number of its removal is noted.
    fn note(self, record: &mut NamespacesRecord) -> Option<&mut u64> {
        match self {
            Self::Pool => Some(&mut record.removing),
            Self::Namespace(name) => {
                let mut entries = record.namespaces.iter_mut();
                entries.find(|entry| entry.name == name).map(|entry| &mut entry.removing)
            }
        }
    }
}

impl Names {
    fn namespaces_key(&self) -> String {
        format!("namespaces/{}", self.pool)
    }

    fn read_namespaces(&self) -> io::Result<Namespaces> {
        let stored = self.objects.get(&self.namespaces_key())?;
        let (record, read_only) = match stored.as_ref().map(Stored::body) {
            None => (NamespacesRecord::default(), false),
            Some(body) => decode_message(FrameKind::Namespaces, body.unwrap_or_default())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
        };
        Ok(Namespaces { stored, record, read_only })
    }

    fn put_namespaces(&self, read: &Namespaces, record: &NamespacesRecord) -> io::Result<bool> {
        if read.read_only {
            let why = "the list of namespaces was written by a newer marcot";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        if record.namespaces.len() > NAMESPACES_MAX {
            let why = "the pool has as many namespaces as it can have";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, why));
        }
        let (key, body) = (self.namespaces_key(), encode_message(FrameKind::Namespaces, record));
        won(match &read.stored {
            None => self.objects.create(&key, &body),
            Some(stored) => self.objects.replace(&key, stored, &body),
        })
    }

    /// The names of all namespaces except the default one, sorted.
    pub(super) fn namespaces(&self) -> io::Result<Vec<String>> {
        let entries = self.read_namespaces()?.record.namespaces.into_iter();
        let mut names: Vec<String> = entries.map(|entry| entry.name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The number under which the names of a namespace are stored.
    pub(super) fn number(&self, namespace: &str) -> io::Result<u64> {
        if namespace.is_empty() {
            return Ok(self.pool.0);
        }
        let found = self.read_namespaces()?.find(namespace).map(|entry| entry.number);
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Creates a name in a namespace.
    pub(super) fn create_in(&self, namespace: &str, name: &str, record: &[u8]) -> io::Result<()> {
        let number = self.number(namespace)?;
        let first_of_directory = self.create(number, name, record)?;
        if namespace.is_empty() || !first_of_directory {
            return Ok(());
        }
        match self.number(namespace) {
            Ok(now) if now == number => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            // The namespace was removed meanwhile.
            Ok(_) | Err(_) => {
                let _ = self.remove_directories(number);
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }

    pub(super) fn create_namespace(&self, namespace: &str) -> io::Result<()> {
        self.until_won(|| {
            let read = self.read_namespaces()?;
            if read.record.removing != 0 {
                return Err(being_removed());
            }
            if namespace.is_empty() || read.find(namespace).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let mut after = read.record.clone();
            let (name, number) = (namespace.to_owned(), self.objects.number());
            after.namespaces.push(NamespaceEntry { name, number, removing: 0 });
            Ok(self.put_namespaces(&read, &after)?.then_some(()))
        })
    }

    /// Removes an empty namespace.
    pub(super) fn remove_namespace(&self, namespace: &str) -> io::Result<()> {
        let number = self.number(namespace)?;
        let removed = Removed::Namespace(namespace);
        let removal = self.begin_removal(removed, number)?;
        self.until_won(|| {
            let read = self.read_namespaces()?;
            let mut after = read.record.clone();
            match removed.note(&mut after) {
                None => return Err(io::ErrorKind::NotFound.into()),
                Some(noted) if *noted != removal => return Err(taken_over()),
                Some(_) => after.namespaces.retain(|entry| entry.name != namespace),
            }
            Ok(self.put_namespaces(&read, &after)?.then_some(()))
        })?;
        // What stays is litter.
        let _ = self.remove_directories(number);
        Ok(())
    }

    /// Makes sure that the pool has no names, and that none can be created any more.
    pub(super) fn close_pool(&self) -> io::Result<()> {
        self.begin_removal(Removed::Pool, self.pool.0)?;
        for namespace in self.namespaces()? {
            match self.remove_namespace(&namespace) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Steps 1 and 2 of a removal. Returns its number.
    fn begin_removal(&self, removed: Removed<'_>, number: u64) -> io::Result<u64> {
        // Most of the namespaces that hold names are found out before anything is changed.
        if !self.list(number)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let removal = self.objects.number();
        self.note_removal(removed, |noted| *noted = removal)?;
        if self.close(number, removal)? {
            return Ok(removal);
        }
        self.reopen(number, removal)?;
        self.note_removal(removed, |noted| {
            if *noted == removal {
                *noted = 0;
            }
        })?;
        Err(io::ErrorKind::DirectoryNotEmpty.into())
    }

    fn note_removal(&self, removed: Removed<'_>, change: impl Fn(&mut u64)) -> io::Result<()> {
        self.until_won(|| {
            let read = self.read_namespaces()?;
            let mut after = read.record.clone();
            change(removed.note(&mut after).ok_or(io::ErrorKind::NotFound)?);
            match after == read.record {
                true => Ok(Some(())),
                false => Ok(self.put_namespaces(&read, &after)?.then_some(())),
            }
        })
    }

    fn remove_directories(&self, number: u64) -> io::Result<()> {
        let mut keys = Vec::new();
        self.objects.list(&directories(number), &mut |object| {
            keys.push(object.key.clone());
            true
        })?;
        keys.iter().try_for_each(|key| self.objects.remove(key))
    }
}

fn taken_over() -> io::Error {
    let why = "another process removes it at the same time";
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}
