//! The directory of the cache.

use std::io;
use std::path::{Path, PathBuf};

use marcot_store::{Disk, World};

use super::layout::{
    DIRECTORY_MODE, FILE_MODE, FOREIGN_WRITE_BITS, MARKER_BYTES, Marked, Paths, marker, read_marker,
};

/// The directory, and the way to it.
pub(super) struct Place {
    pub world: World,
    pub paths: Paths,
}

fn refuse<T>(directory: &Path, why: &str) -> io::Result<T> {
    let message = format!("the cache directory {} {why}", directory.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

fn ignore_existing(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

impl Place {
    /// Makes the directory if it is missing, and checks that it is a cache of this user.
    ///
    /// # Errors
    /// `InvalidInput` for a directory that somebody or something else uses.
    pub(super) fn open(world: &World, directory: PathBuf) -> io::Result<Self> {
        let place = Self { world: world.clone(), paths: Paths { directory } };
        place.make()?;
        Ok(place)
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.world.disk
    }

    /// Makes what is missing of the directory.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn make(&self) -> io::Result<()> {
        let (disk, directory) = (self.disk(), &self.paths.directory);
        ignore_existing(disk.create_directory(directory, DIRECTORY_MODE)).map_err(|error| {
            let message = format!("the cache directory {}: {error}", directory.display());
            io::Error::new(error.kind(), message)
        })?;
        self.identify()?;
        for part in [self.paths.locks(), self.paths.objects()] {
            ignore_existing(disk.create_directory(&part, DIRECTORY_MODE))?;
        }
        Ok(())
    }

    /// Checks whose directory it is. An empty one becomes a cache.
    fn identify(&self) -> io::Result<()> {
        let (disk, directory) = (self.disk(), &self.paths.directory);
        let owner = disk.owner_id(directory)?;
        if owner != disk.user_id() {
            return refuse(
                directory,
                &format!("belongs to user {owner}; each user needs a cache of its own (--cache)"),
            );
        }
        if disk.mode(directory)? & FOREIGN_WRITE_BITS != 0 {
            return refuse(directory, "can be written to by other users; 'chmod go-w' it first");
        }
        let mut marked = self.marked()?;
        if marked.is_none() {
            let Some(name) = self.something_else()? else { return self.mark() };
            // Another process may have made the cache meanwhile.
            marked = self.marked()?;
            if marked.is_none() {
                return refuse(
                    directory,
                    &format!("is no cache of marcot: it holds '{name}'; give an empty directory"),
                );
            }
        }
        match marked.unwrap_or(Marked::Other) {
            Marked::Ours => Ok(()),
            Marked::Version(version) => refuse(
                directory,
                &format!(
                    "was made by another marcot (version {version}); remove it, or give another"
                ),
            ),
            Marked::Other => refuse(
                directory,
                "has a damaged marker 'marcot-cache'; remove the directory if it is a cache of marcot",
            ),
        }
    }

    /// What the marker says; `None` where there is none.
    fn marked(&self) -> io::Result<Option<Marked>> {
        let file = match self.disk().open(&self.paths.marker(), false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = [0; MARKER_BYTES + 1];
        let n = file.read_at(0, &mut bytes)?;
        Ok(Some(read_marker(&bytes[..n])))
    }

    /// The name of something that lies in the directory, except a marker that is being made.
    fn something_else(&self) -> io::Result<Option<String>> {
        let mut found = None;
        self.disk().visit(&self.paths.directory, &mut |name| {
            let name = name.to_string_lossy();
            if !is_unfinished_marker(&name) && name != MARKER {
                found = Some(name.escape_debug().to_string());
            }
            found.is_none()
        })?;
        Ok(found)
    }

    fn mark(&self) -> io::Result<()> {
        let (disk, directory) = (self.disk(), &self.paths.directory);
        let unique = self.world.random.number();
        let temporary = directory.join(format!("{UNFINISHED}{unique:016x}"));
        let file = disk.create_new(&temporary, FILE_MODE)?;
        // It is durable before anything else is made, because a directory without it, or with a damaged one, is
        // refused.
        let marked = file.write_at(0, &[&marker()]).and_then(|()| file.sync());
        let marked = marked.and_then(|()| disk.rename(&temporary, &self.paths.marker()));
        let marked = marked.and_then(|()| disk.sync_directory(directory));
        if marked.is_err() {
            let _ = disk.remove_file(&temporary);
        }
        marked
    }
}

const MARKER: &str = "marcot-cache";
/// The name of a marker begins with this while it is being made.
const UNFINISHED: &str = ".marcot-cache.";

fn is_unfinished_marker(name: &str) -> bool {
    name.starts_with(UNFINISHED)
}
