//! A pool in a directory of this machine.
//!
//! [`layout`] says where everything lies. Records are files that are replaced whole, by writing another
//! file and renaming it. Leases are locks on files.
//!
//! A swap reads the head, compares its stamp, and renames. The lease of the image's owner protects the time
//! between. Where locks do not work, as on some network file systems, a head that another owner stores in
//! that moment is replaced unnoticed.

mod home;
pub mod layout;
mod leases;
mod litter;
mod records;
mod segments;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_store::{Disk, Random};

use crate::{Backend, SharedDirectory};

pub use home::LocalHome;
pub(crate) use home::sweep;
pub use litter::leftovers_in;

/// Mask for the permission bits of new directories: other users never get the permission to write.
const DIRECTORY_MODE_MASK: u32 = 0o755;
/// Mask for the permission bits of new files: other users never get the permission to write.
const FILE_MODE_MASK: u32 = 0o644;

/// The directory of a pool, and how it is reached.
pub(crate) struct Place {
    pub disk: Arc<dyn Disk>,
    pub directory: PathBuf,
    pub random: Arc<dyn Random>,
    /// Permission bits of the directory.
    pub mode: u32,
}

impl Place {
    /// Permission bits of new files. Users who may read the pool's directory may read the files.
    fn file_mode(&self) -> u32 {
        self.mode & FILE_MODE_MASK
    }

    fn directory_mode(&self) -> u32 {
        self.mode & DIRECTORY_MODE_MASK
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// The bytes of a small file.
fn read_whole(disk: &dyn Disk, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, false)?;
    let length = file.length()?;
    if length > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; length as usize];
    let n = file.read_at(0, &mut bytes)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// The back end for the pool in a directory. `disk` reaches the directory. `mode` has the directory's
/// permission bits, from which those of new files are derived.
#[must_use]
pub fn open(disk: Arc<dyn Disk>, directory: &Path, mode: u32, random: Arc<dyn Random>) -> Backend {
    backend(Place { disk, directory: directory.to_owned(), random, mode })
}

fn backend(place: Place) -> Backend {
    let place = Arc::new(place);
    let shared =
        SharedDirectory { disk: Arc::clone(&place.disk), path: layout::children(&place.directory) };
    Backend {
        records: Arc::new(records::LocalRecords(Arc::clone(&place))),
        segments: Arc::new(segments::LocalSegments(Arc::clone(&place))),
        leases: Arc::new(leases::LocalLeases(place)),
        shared: Some(shared),
    }
}
