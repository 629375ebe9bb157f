//! One fetch for all threads of the process that need its bytes.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How a fetch ended.
#[derive(Clone)]
pub(super) enum Landed {
    /// The bytes of the object from the first chunk of the flight up to the chunk `end`. Where they are fewer,
    /// the object ends with them.
    Bytes { bytes: Arc<Vec<u8>>, end: u32 },
    /// Nothing was fetched. The chunk may be here now, or the thread that fetched has ended by a panic.
    Nothing,
    /// It failed.
    Failed(Arc<io::Error>),
}

/// A fetch that goes on.
pub(super) struct Flight {
    /// First chunk.
    pub first: u32,
    /// Chunk behind the last one. The flight may end earlier.
    pub end: u32,
    landed: Mutex<Option<Landed>>,
    changed: Condvar,
}

impl Flight {
    pub(super) fn new(first: u32, end: u32) -> Self {
        Self { first, end, landed: Mutex::new(None), changed: Condvar::new() }
    }

    fn landed(&self) -> MutexGuard<'_, Option<Landed>> {
        self.landed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits. Only the first call counts.
    pub(super) fn land(&self, how: Landed) {
        let mut landed = self.landed();
        if landed.is_none() {
            *landed = Some(how);
            self.changed.notify_all();
        }
    }

    /// Waits for the end.
    pub(super) fn wait(&self) -> Landed {
        let waited = self.changed.wait_while(self.landed(), |landed| landed.is_none());
        let landed = waited.unwrap_or_else(PoisonError::into_inner);
        landed.clone().unwrap_or(Landed::Nothing)
    }
}

/// The same error once more, for another thread.
pub(super) fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
