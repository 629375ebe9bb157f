//! A machine without files.

use std::io;
use std::path::Path;
use std::sync::Arc;

use marcot_store::{Confined, Disk, DiskFile, Lock, LockMode, Trust};

/// Whatever is asked of it fails.
pub struct NoDisk;

fn none<T>() -> io::Result<T> {
    Err(io::Error::other("there is no disk"))
}

impl Disk for NoDisk {
    fn create_new(&self, _: &Path, _: u32) -> io::Result<Arc<dyn DiskFile>> {
        none()
    }

    fn open(&self, _: &Path, _: bool) -> io::Result<Arc<dyn DiskFile>> {
        none()
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        none()
    }

    fn rename_new(&self, _: &Path, _: &Path) -> io::Result<()> {
        none()
    }

    fn remove_file(&self, _: &Path) -> io::Result<()> {
        none()
    }

    fn remove_directory(&self, _: &Path) -> io::Result<()> {
        none()
    }

    fn create_directory(&self, _: &Path, _: u32) -> io::Result<()> {
        none()
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        none()
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        none()
    }

    fn mode(&self, _: &Path) -> io::Result<u32> {
        none()
    }

    fn modified_s(&self, _: &Path) -> io::Result<i64> {
        none()
    }

    fn writable(&self, _: &Path) -> bool {
        false
    }

    fn lock(&self, _: &Path, _: LockMode, _: bool) -> io::Result<Option<Box<dyn Lock>>> {
        none()
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        none()
    }

    fn confine(&self, _: &Path, _: Trust) -> io::Result<Confined> {
        none()
    }
}
