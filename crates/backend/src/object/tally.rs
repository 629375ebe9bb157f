//! What all processes of a host have asked of the service of a pool, in a file of the host's directory.
//!
//! ```text
//! HOST/requests      six numbers of eight bytes, little endian: PUTs, GETs, LISTs, DELETEs, bytes sent, bytes received
//! ```
//!
//! The numbers are for people. So they are not synced, and nobody waits for another process to write them: what
//! finds the file locked is added a little later. A process that is killed takes what it has not added with it.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use marcot_store::{Disk, LockMode};

use super::requests::Requests;

/// The numbers in the file.
const NUMBERS: usize = 6;
const BYTES: usize = NUMBERS * 8;

/// See the module.
pub struct Tally {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// What is not in the file yet.
    pending: Mutex<Requests>,
}

impl Tally {
    /// The tally in a file. It is made with the first request.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self { disk, path, pending: Mutex::default() }
    }

    /// Adds requests.
    pub fn add(&self, requests: Requests) {
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

    fn read(&self) -> io::Result<Requests> {
        let mut bytes = [0; BYTES];
        let n = self.disk.open(&self.path, false)?.read_at(0, &mut bytes)?;
        // Another process has just made the file.
        Ok(if n < BYTES { Requests::default() } else { decode(&bytes) })
    }

    /// Returns false where another process writes.
    fn write(&self, more: Requests) -> io::Result<bool> {
        let Some(_lock) = self.disk.lock(&self.path, LockMode::Exclusive, false)? else {
            return Ok(false);
        };
        let all = self.read()? + more;
        self.disk.open(&self.path, true)?.write_at(0, &[&encode(all)])?;
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

fn encode(requests: Requests) -> Vec<u8> {
    let Requests { puts, gets, lists, removes, sent_bytes, received_bytes } = requests;
    let numbers = [puts, gets, lists, removes, sent_bytes, received_bytes];
    numbers.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn decode(bytes: &[u8; BYTES]) -> Requests {
    let number = |index: usize| {
        let mut part = [0; 8];
        part.copy_from_slice(&bytes[8 * index..8 * index + 8]);
        u64::from_le_bytes(part)
    };
    Requests {
        puts: number(0),
        gets: number(1),
        lists: number(2),
        removes: number(3),
        sent_bytes: number(4),
        received_bytes: number(5),
    }
}

#[cfg(test)]
mod tests {
    use marcot_store::World;

    use super::*;

    const GET: Requests =
        Requests { puts: 0, gets: 1, lists: 0, removes: 0, sent_bytes: 0, received_bytes: 7 };

    fn tally(directory: &tempfile::TempDir) -> Tally {
        Tally::new(World::system().disk, directory.path().join("requests"))
    }

    #[test]
    fn what_several_processes_add_is_there_together() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (tally(&directory), tally(&directory));
        assert_eq!(one.now().unwrap(), Requests::default());
        std::thread::scope(|scope| {
            for tally in [&one, &two] {
                scope.spawn(move || (0..200).for_each(|_| tally.add(GET)));
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
        tally.add(GET);
        let lock = disk.lock(&directory.path().join("requests"), LockMode::Exclusive, false);
        tally.add(GET);
        assert_eq!(tally.now().unwrap().gets, 2);
        drop(lock);
        tally.add(GET);
        assert_eq!(self::tally(&directory).now().unwrap().gets, 3);
    }
}
