//! What all processes of a host have asked of the service for the objects of each image of a pool.
//!
//! ```text
//! HOST/requests.d/HH     the images whose numbers end in these two digits: for each its number and six numbers
//!                        as in HOST/requests, 56 bytes
//! ```
//!
//! The image of a request stands in the key of its object. So the requests for a template's segments count for the
//! template, whichever clone needs them. As in [`super::tally`], the numbers are for people: they are not synced, and
//! nobody waits for another process.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use marcot_format::ImageId;
use marcot_store::{Disk, DiskFile, LockMode};

use super::leases::HOST_DIRECTORY_MODE;
use super::requests::{self, Requests};

/// A record: the image's number and its counts.
const RECORD_BYTES: usize = 8 + requests::BYTES;

/// See the module.
pub(super) struct ImageTallies {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    /// What is not in the files yet.
    pending: Mutex<BTreeMap<ImageId, Requests>>,
}

fn lock(
    pending: &Mutex<BTreeMap<ImageId, Requests>>,
) -> MutexGuard<'_, BTreeMap<ImageId, Requests>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageTallies {
    /// The tallies in a directory, which is made with the first request.
    pub(super) fn new(disk: Arc<dyn Disk>, directory: PathBuf) -> Self {
        Self { disk, directory, pending: Mutex::default() }
    }

    /// Adds requests for objects of an image.
    pub(super) fn add(&self, image: ImageId, requests: Requests) {
        let mut pending = lock(&self.pending);
        let more = pending.entry(image).or_default();
        *more = *more + requests;
        let all = *more;
        match self.write(image, all) {
            Ok(true) => drop(pending.remove(&image)),
            Ok(false) => {}
            Err(error) => {
                // As on a full disk. The requests themselves matter more.
                tracing::debug!(%image, %error, "requests are not counted");
            }
        }
    }

    /// What was asked for until now, of all images for whose objects something was asked.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn now(&self) -> io::Result<BTreeMap<ImageId, Requests>> {
        let mut all = lock(&self.pending).clone();
        let shards = match self.disk.list(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            shards => shards?,
        };
        for shard in shards {
            let file = self.disk.open(&self.directory.join(shard), false)?;
            for (image, requests) in records(&*file)? {
                let sum = all.entry(image).or_default();
                *sum = *sum + requests;
            }
        }
        Ok(all)
    }

    /// Forgets an image that is gone. Where another process writes, it is forgotten another time.
    pub(super) fn forget(&self, image: ImageId) {
        lock(&self.pending).remove(&image);
        if let Err(error) = self.remove(image)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%image, %error, "the count of an image that is gone stays");
        }
    }

    fn shard(&self, image: ImageId) -> PathBuf {
        self.directory.join(format!("{:02x}", image.0 & 0xff))
    }

    /// Returns false where another process writes.
    fn write(&self, image: ImageId, more: Requests) -> io::Result<bool> {
        let path = self.shard(image);
        let Some(_lock) = self.lock(&path)? else { return Ok(false) };
        let file = self.disk.open(&path, true)?;
        let there = records(&*file)?;
        let at = there.iter().position(|(of, _)| *of == image);
        let before = at.map_or_else(Requests::default, |at| there[at].1);
        write_record(&*file, at.unwrap_or(there.len()), image, before + more)?;
        Ok(true)
    }

    fn remove(&self, image: ImageId) -> io::Result<()> {
        let path = self.shard(image);
        let file = self.disk.open(&path, true)?;
        let Some(_lock) = self.disk.lock(&path, LockMode::Exclusive, false)? else { return Ok(()) };
        let there = records(&*file)?;
        let at = there.iter().position(|(of, _)| *of == image);
        if let (Some(at), Some((last, requests))) = (at, there.last()) {
            write_record(&*file, at, *last, *requests)?;
            file.set_length(((there.len() - 1) * RECORD_BYTES) as u64)?;
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn marcot_store::Lock>>> {
        match self.disk.lock(path, LockMode::Exclusive, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match self.disk.create_directory(&self.directory, HOST_DIRECTORY_MODE) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made?,
                }
                self.disk.lock(path, LockMode::Exclusive, false)
            }
            locked => locked,
        }
    }
}

impl Drop for ImageTallies {
    fn drop(&mut self) {
        for (image, requests) in std::mem::take(&mut *lock(&self.pending)) {
            let _ = self.write(image, requests);
        }
    }
}

/// The records of a file. What is behind the last whole one is none: another process adds it now.
fn records(file: &dyn DiskFile) -> io::Result<Vec<(ImageId, Requests)>> {
    let mut bytes = vec![0; usize::try_from(file.length()?).unwrap_or(0)];
    let n = file.read_at(0, &mut bytes)?;
    let record = |bytes: &[u8; RECORD_BYTES]| {
        let (image, counts) = bytes.split_first_chunk::<8>()?;
        let counts = counts.first_chunk::<{ requests::BYTES }>()?;
        Some((ImageId(u64::from_le_bytes(*image)), Requests::decode(counts)))
    };
    Ok(bytes[..n].as_chunks::<RECORD_BYTES>().0.iter().filter_map(record).collect())
}

fn write_record(
    file: &dyn DiskFile,
    at: usize,
    image: ImageId,
    requests: Requests,
) -> io::Result<()> {
    let place = (at * RECORD_BYTES) as u64;
    file.write_at(place, &[&image.0.to_le_bytes(), &requests.encode()])
}

#[cfg(test)]
mod tests {
    use marcot_store::World;

    use super::*;

    const GET: Requests =
        Requests { puts: 0, gets: 1, lists: 0, removes: 0, sent_bytes: 0, received_bytes: 7 };
    /// Both in one file.
    const ONE: ImageId = ImageId(0x1_0a);
    const TWO: ImageId = ImageId(0x2_0a);

    fn tallies(directory: &tempfile::TempDir) -> ImageTallies {
        ImageTallies::new(World::system().disk, directory.path().join("requests.d"))
    }

    fn gets(tallies: &ImageTallies) -> Vec<(u64, u64)> {
        tallies.now().unwrap().iter().map(|(image, requests)| (image.0, requests.gets)).collect()
    }

    #[test]
    fn what_several_processes_add_is_counted_for_each_image() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (tallies(&directory), tallies(&directory));
        assert_eq!(gets(&one), []);
        std::thread::scope(|scope| {
            for tallies in [&one, &two] {
                scope.spawn(move || {
                    for i in 0..200 {
                        tallies.add(if i % 4 == 0 { ONE } else { TWO }, GET);
                    }
                });
            }
        });
        drop((one, two));
        assert_eq!(gets(&tallies(&directory)), [(ONE.0, 100), (TWO.0, 300)]);
    }

    #[test]
    fn an_image_that_is_gone_takes_its_count_with_it_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let tallies = tallies(&directory);
        tallies.forget(ONE);
        for (image, count) in [(ONE, 1), (TWO, 2), (ImageId(7), 3)] {
            (0..count).for_each(|_| tallies.add(image, GET));
        }
        tallies.forget(ONE);
        assert_eq!(gets(&tallies), [(7, 3), (TWO.0, 2)]);
        tallies.forget(TWO);
        tallies.forget(TWO);
        tallies.add(ONE, GET);
        assert_eq!(gets(&tallies), [(7, 3), (ONE.0, 1)]);
    }

    #[test]
    fn nobody_waits_for_a_process_that_was_stopped_while_it_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let (tallies, disk) = (tallies(&directory), World::system().disk);
        tallies.add(ONE, GET);
        let lock = disk.lock(&tallies.shard(ONE), LockMode::Exclusive, false);
        tallies.add(ONE, GET);
        tallies.add(TWO, GET);
        assert_eq!(gets(&tallies), [(ONE.0, 2), (TWO.0, 1)]);
        drop(lock);
        drop(tallies);
        assert_eq!(gets(&self::tallies(&directory)), [(ONE.0, 2), (TWO.0, 1)]);
    }
}
