//! The other files that an image names: its backing file and its data file.
//!
//! An image that somebody else has made could name any file of this machine. So a file is opened only if it lies in a
//! directory that the caller names, and is reached without leaving it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Error, ErrorKind, Result};
use crate::file::FileSource;
use crate::qcow2::header::Needed;
use crate::source::Source;

/// Longest chain of backing files.
pub const CHAIN_MAX: usize = 256;

/// Opens the files that an image needs.
pub trait Files {
    /// Opens the file that the image at `from` names, and tells where it lies.
    ///
    /// # Errors
    /// `Refused` if it is not allowed or not there; those of opening.
    fn open(&mut self, from: &Path, needed: &Needed) -> Result<(Arc<dyn Source>, PathBuf)>;
}

/// Allows no other file.
pub struct Nobody;

impl Files for Nobody {
    fn open(&mut self, _: &Path, needed: &Needed) -> Result<(Arc<dyn Source>, PathBuf)> {
        let message = format!(
            "it needs the file '{}', and no directory is allowed from which other files are read",
            needed.name
        );
        Err(Error::new(ErrorKind::Refused, message))
    }
}

/// Allows the files in one directory, and in those below it.
pub struct Directory {
    path: PathBuf,
    fd: OwnedFd,
    opened: usize,
}

impl Directory {
    /// Opens the directory.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open(path: &Path) -> Result<Self> {
        let path = path.canonicalize()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self { path, fd, opened: 0 })
    }

    /// How many files were asked for.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.opened
    }
}

impl Files for Directory {
    fn open(&mut self, from: &Path, needed: &Needed) -> Result<(Arc<dyn Source>, PathBuf)> {
        let name = needed.name.as_str();
        let refused = |why: &str| {
            let message = format!("it needs the file '{name}', {why}");
            Error::new(ErrorKind::Refused, message)
        };
        self.opened += 1;
        if self.opened > CHAIN_MAX {
            let message = format!("its chain of backing files has no end after {CHAIN_MAX} files");
            return Err(Error::damaged(message));
        }
        let name = name.strip_prefix("file:").unwrap_or(name);
        // As QEMU tells a protocol from a path.
        let before = name.split(['/', ':']).next().unwrap_or_default();
        if name[before.len()..].starts_with(':') {
            return Err(refused("which is no local file: convert the image to one without it"));
        }
        let joined = from.parent().unwrap_or(Path::new("")).join(name);
        let path = joined.canonicalize().map_err(|error| refused(&format!("but: {error}")))?;
        let within = path.strip_prefix(&self.path).map_err(|_| {
            refused(&format!("which does not lie in the directory '{}'", self.path.display()))
        })?;
        // The names on the way may have changed since: no link is followed, and the directory not left.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&self.fd, within, flags, Mode::empty(), resolve);
        let file =
            file.map_err(|errno| refused(&format!("but: {}", std::io::Error::from(errno))))?;
        let source = FileSource::new(File::from(file)).map_err(|error| error.of(name))?;
        Ok((Arc::new(source), path))
    }
}
