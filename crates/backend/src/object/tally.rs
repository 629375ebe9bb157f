//! What all processes of a host have asked of the service of a pool, in a file of the host's directory.
//!
//! ```text
//! HOST/requests      six numbers of eight bytes, little endian: PUTs, GETs, LISTs, DELETEs, bytes sent, bytes received
//! ```
//!
//! What was asked for the objects of each image is counted beside it; see the module `image_tallies`.
//!
//! The numbers are for people. So they are not synced, and nobody waits for another process to write them: what
//! finds the file locked is added a little later. A process that is killed takes what it has not added with it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use marcot_format::ImageId;
use marcot_store::{Disk, LockMode};

use super::image_tallies::ImageTallies;
use super::requests::{BYTES, Requests};

/// File of a pool's directory on a host that holds what was asked of the service.
const REQUESTS: &str = "requests";
/// Directory beside it that holds the same for each image.
const OF_IMAGES: &str = "requests.d";

/// See the module.
pub struct Tally {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// What is not in the file yet.
    pending: Mutex<Requests>,
    images: ImageTallies,
}

impl Tally {
    /// The tally in the host's directory for a pool. Its files are made with the first request.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, host: &Path) -> Self {
        let images = ImageTallies::new(Arc::clone(&disk), host.join(OF_IMAGES));
        Self { disk, path: host.join(REQUESTS), pending: Mutex::default(), images }
    }

    /// Adds requests, which were for objects of an image or for others of the pool.
    pub fn add(&self, image: Option<ImageId>, requests: Requests) {
        if let Some(image) = image {
            self.images.add(image, requests);
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        *pending = *pending + requests;
        match self.write(*pending) {
            Ok(true) => *pending = Requests::default(),
            Ok(false) => {}
            Err(error) => {
                // As on a full disk. The requests themselves matter more.
                tracing::debug!(path = %self.path.display(), %error, "requests are not counted");
            }
        }
    }

    /// What was asked for until now.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn now(&self) -> io::Result<Requests> {
        let pending = *self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match self.read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(pending),
            read => read.map(|read| read + pending),
        }
    }

    /// What was asked for the objects of each image until now. The rest of [`Self::now`] was for other objects, and
    /// for images that are gone.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn of_images(&self) -> io::Result<BTreeMap<ImageId, Requests>> {
        self.images.now()
    }

    /// Forgets the count of an image that is gone. All its requests stay in the count of the pool.
    pub fn forget(&self, image: ImageId) {
        self.images.forget(image);
    }

    fn read(&self) -> io::Result<Requests> {
        let mut bytes = [0; BYTES];
        let n = self.disk.open(&self.path, false)?.read_at(0, &mut bytes)?;
        // Another process has just made the file.
        Ok(if n < BYTES { Requests::default() } else { Requests::decode(&bytes) })
    }

    /// Returns false where another process writes.
    fn write(&self, more: Requests) -> io::Result<bool> {
        let Some(_lock) = self.disk.lock(&self.path, LockMode::Exclusive, false)? else {
            return Ok(false);
        };
        let all = self.read()? + more;
        self.disk.open(&self.path, true)?.write_at(0, &[&all.encode()])?;
        Ok(true)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let pending = *self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending != Requests::default() {
            let _ = self.write(pending);
        }
    }
}

#[cfg(test)]
mod tests {
    use marcot_store::World;

    use super::*;

    const GET: Requests =
        Requests { puts: 0, gets: 1, lists: 0, removes: 0, sent_bytes: 0, received_bytes: 7 };

    fn tally(directory: &tempfile::TempDir) -> Tally {
        Tally::new(World::system().disk, directory.path())
    }

    #[test]
    fn what_several_processes_add_is_there_together() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (tally(&directory), tally(&directory));
        assert_eq!(one.now().unwrap(), Requests::default());
        std::thread::scope(|scope| {
            for tally in [&one, &two] {
                scope.spawn(move || (0..200).for_each(|_| tally.add(None, GET)));
            }
        });
        drop((one, two));
        let all = tally(&directory).now().unwrap();
        assert_eq!((all.gets, all.received_bytes, all.total()), (400, 2800, 400));
    }

    #[test]
    fn nobody_waits_for_a_process_that_was_stopped_while_it_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let (tally, disk) = (tally(&directory), World::system().disk);
        tally.add(None, GET);
        let lock = disk.lock(&directory.path().join("requests"), LockMode::Exclusive, false);
        tally.add(None, GET);
        assert_eq!(tally.now().unwrap().gets, 2);
        drop(lock);
        tally.add(None, GET);
        assert_eq!(self::tally(&directory).now().unwrap().gets, 3);
    }
}
