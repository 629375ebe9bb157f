//! Work that belongs to a command but cannot be done on the image's thread, because the image must be served
//! meanwhile: freezing a file system writes to its device, and resizing a block device may wait for its
//! requests.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use marcot::{Error, ErrorKind, Result};

use crate::wake::Wake;

/// Longest time that a snapshot waits for [`Attendant::before_snapshot`] and for
/// [`Attendant::after_snapshot`]. Hooks have a shorter limit of their own. This limit is for hooks that
/// cannot be ended.
pub(super) const SNAPSHOT_WAIT: Duration = Duration::from_secs(90);
/// Longest time that a command waits for [`Attendant::resized`].
pub(super) const RESIZE_WAIT: Duration = Duration::from_secs(30);

/// Does work around commands on an image while the image's thread goes on serving. Each event calls it from
/// a new thread. A call that does not return in time is not waited for any longer.
pub trait Attendant: Send + Sync {
    /// A snapshot is about to be taken.
    ///
    /// # Errors
    /// Then the snapshot is not taken. [`Self::after_snapshot`] is called all the same.
    fn before_snapshot(&self) -> Result<()>;

    /// A snapshot was taken, or will not be.
    fn after_snapshot(&self);

    /// The image has this size now.
    ///
    /// # Errors
    /// An error is logged; the image keeps its new size.
    fn resized(&self, size_bytes: u64) -> Result<()>;
}

/// An attendant's work on one event.
pub(super) struct Attendance(Arc<Mutex<Option<Result<()>>>>);

impl Attendance {
    /// Starts `work`, and raises `wake` when it is done.
    pub(super) fn begin(
        attendant: &Arc<dyn Attendant>,
        wake: &Arc<Wake>,
        work: impl FnOnce(&dyn Attendant) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let outcome = Arc::new(Mutex::new(None));
        let (attendant, wake, done) = (Arc::clone(attendant), Arc::clone(wake), outcome.clone());
        let run = move || {
            let result = work(&*attendant);
            *done.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            wake.raise();
        };
        let started = thread::Builder::new().name("attendant".to_owned()).spawn(run);
        started.map_err(|e| Error::from_io("cannot start a thread", e))?;
        Ok(Self(outcome))
    }

    /// The outcome; `None` while the work goes on.
    pub(super) fn take(&self) -> Option<Result<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The error for work that did not end in time.
pub(super) fn too_slow(what: &str, limit: Duration) -> Error {
    Error::new(ErrorKind::Io, format!("{what} did not end within {} s", limit.as_secs()))
}
