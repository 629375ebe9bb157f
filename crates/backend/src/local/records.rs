//! Records as files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_store::{publish_new, replace};

use super::{Place, layout, litter, parent, read_whole};
use crate::fault::{self, Fault};
use crate::{Beside, Key, Leftover, Listed, Prefix, Records, Stamp, SwapError};

/// Permission bits of a marker. It holds names of private images, which only its owner and root may read.
const MARKER_MODE: u32 = 0o600;

/// Limit on the size of a head that is read to compare its stamp, in bytes.
const HEAD_BYTES_MAX: u64 =
    (marcot_format::frame::FRAME_BODY_BYTES_MAX + marcot_format::frame::FRAME_HEADER_BYTES) as u64;

pub(super) struct LocalRecords(pub Arc<Place>);

impl LocalRecords {
    fn path(&self, key: &Key) -> PathBuf {
        layout::record(&self.0.directory, key)
    }

    fn mode(&self, key: &Key) -> u32 {
        match key {
            Key::Marker(_) => MARKER_MODE,
            _ => self.0.file_mode(),
        }
    }

    fn publish(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        let unique = self.0.random.number();
        publish_new(&*self.0.disk, &self.path(key), unique, self.mode(key), bytes)
    }

    /// Creates the image's directory with the head in it. The directory's name is durable when this returns.
    fn publish_head(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        self.0.disk.create_directory(parent(&path), self.0.directory_mode())?;
        self.publish(key, bytes)?;
        self.0.disk.sync_directory(&layout::images(&self.0.directory))
    }

    fn create_namespace(&self, key: &Key) -> io::Result<()> {
        let path = self.path(key);
        self.0.disk.create_directory(&path, self.0.directory_mode())?;
        self.0.disk.sync_directory(parent(&path))
    }

    /// Creates a group, and the directory of groups with the first one.
    fn create_group(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        match self.0.disk.create_directory(parent(&path), self.0.directory_mode()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        self.0.disk.sync_directory(&self.0.directory)?;
        self.publish(key, bytes)
    }

    /// Creates a mark, and the directory of marks with the first one.
    fn create_heir(&self, key: &Key) -> io::Result<()> {
        let path = self.path(key);
        match self.0.disk.create_directory(parent(&path), self.0.directory_mode()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        self.0.disk.create_new(&path, self.0.file_mode())?.sync()?;
        self.settle(key)
    }

    /// Removes an image's directory with its content.
    fn remove_image(&self, head: &Path) -> io::Result<()> {
        let (disk, directory) = (&self.0.disk, parent(head));
        for name in disk.list(directory)? {
            // Below, the head shows whether the image is still there. Other files that stay are litter.
            let _ = disk.remove_file(&directory.join(name));
        }
        let removed = disk.remove_directory(directory);
        let _ = disk.sync_directory(parent(directory));
        match disk.mode(head) {
            Ok(_) => removed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn stamp(&self, key: &Key) -> io::Result<Stamp> {
        let bytes = self.get(key, HEAD_BYTES_MAX)?;
        Stamp::in_bytes(&bytes).map_err(io::Error::other)
    }
}

impl Records for LocalRecords {
    fn get(&self, key: &Key, bytes_max: u64) -> io::Result<Vec<u8>> {
        read_whole(&*self.0.disk, &self.path(key), bytes_max)
    }

    fn exists(&self, key: &Key) -> io::Result<bool> {
        match self.0.disk.mode(&self.path(key)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        match key {
            Key::Head(_) => self.publish_head(key, bytes),
            Key::Namespace(_) => self.create_namespace(key),
            Key::Heir(_) => self.create_heir(key),
            Key::Group(_) => self.create_group(key, bytes),
            _ => self.publish(key, bytes),
        }
    }

    fn put(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        let unique = self.0.random.number();
        replace(&*self.0.disk, &self.path(key), unique, self.mode(key), bytes)
    }

    fn swap(&self, key: &Key, from: Stamp, bytes: &[u8]) -> Result<(), SwapError> {
        let stamp = self.stamp(key).map_err(SwapError::Unchanged)?;
        if stamp != from && !fault::is(Fault::SkipFence) {
            return Err(SwapError::Changed);
        }
        self.put(key, bytes).map_err(|error| match self.stamp(key) {
            Ok(stamp) if stamp == from => SwapError::Unchanged(error),
            // The rename was done, but the directory was not synced.
            _ => SwapError::Unknown(error),
        })
    }

    fn replace(&self, key: &Key, from: &[u8], bytes: &[u8]) -> Result<(), SwapError> {
        let bytes_max = from.len() as u64;
        match self.get(key, bytes_max) {
            Ok(stored) if stored == from => {}
            Err(error) if error.kind() != io::ErrorKind::FileTooLarge => {
                return Err(SwapError::Unchanged(error));
            }
            _ => return Err(SwapError::Changed),
        }
        self.put(key, bytes).map_err(|error| match self.get(key, bytes_max) {
            Ok(stored) if stored == from => SwapError::Unchanged(error),
            // The rename was done, but the directory was not synced.
            _ => SwapError::Unknown(error),
        })
    }

    fn rename(&self, from: &Key, to: &Key) -> io::Result<()> {
        self.0.disk.rename_new(&self.path(from), &self.path(to))
    }

    fn remove(&self, key: &Key) -> io::Result<()> {
        let path = self.path(key);
        match key {
            Key::Head(_) => self.remove_image(&path),
            Key::Namespace(_) => self.0.disk.remove_directory(&path),
            _ => self.0.disk.remove_file(&path),
        }
    }

    fn settle(&self, key: &Key) -> io::Result<()> {
        let path = self.path(key);
        match (key, self.0.disk.sync_directory(parent(&path))) {
            (Key::Heir(_), Ok(())) => self.0.disk.sync_directory(&self.0.directory),
            // The image is gone, and its directory must not come back after a crash.
            (Key::Head(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                self.0.disk.sync_directory(&layout::images(&self.0.directory))
            }
            (_, settled) => settled,
        }
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed<'_>) -> bool) -> io::Result<()> {
        let directory = layout::prefix(&self.0.directory, prefix);
        self.0.disk.visit(&directory, &mut |file| {
            // This directory holds the names of the default namespace, which is not listed.
            if *prefix == Prefix::Namespaces && file == layout::DEFAULT_NAMESPACE {
                return true;
            }
            match file.to_str().and_then(|file| layout::parse_record(prefix, file)) {
                Some(key) => each(Listed::Key(&key)),
                None => each(Listed::Other(&file.to_string_lossy())),
            }
        })
    }

    fn owner(&self, key: &Key) -> io::Result<u32> {
        self.0.disk.owner_id(&self.path(key))
    }

    fn leftovers(&self, at: &Beside) -> Vec<Leftover> {
        litter::leftovers(&self.0, at)
    }

    fn remove_leftover(&self, leftover: &Leftover) -> bool {
        self.0.disk.remove_file(Path::new(&leftover.shown)).is_ok()
    }

    fn show(&self, key: &Key) -> String {
        self.path(key).display().to_string()
    }
}
