//! Which images clients can ask for, and which of them are open now.
//!
//! An image is opened when the first client asks for it and closed when nobody has used it for a
//! while. Invariant: an image is open at most once, however many names or clients ask, and nobody
//! gets another image than the one that has the name now: slots are found by identity, which a
//! renamed image keeps, and opening and closing of one slot exclude each other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};

use super::negotiation::ExportInfo;
use crate::host::HostHandle;

/// An export as it is listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportName {
    /// What a client asks for.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
}

/// Where a server's exports come from. Calls may block; they come from several threads.
pub trait Exports: Send + Sync {
    /// The exports to tell a client that asks for a list.
    ///
    /// # Errors
    /// Those of the engine.
    fn list(&self) -> Result<Vec<ExportName>>;

    /// The one canonical name of what a client calls `name` (empty for the default export), and
    /// its description. It need not exist.
    ///
    /// # Errors
    /// `NotFound` or `Invalid` if there can be no such export.
    fn describe(&self, name: &str) -> Result<ExportName>;

    /// What the export with this canonical name is, whatever its name: two names of one image at
    /// two times have one identity, and two images that have one name in turn have two.
    ///
    /// # Errors
    /// `NotFound` if there is no such export; those of the engine.
    fn identify(&self, name: &str) -> Result<String> {
        Ok(name.to_owned())
    }

    /// Opens the export with this canonical name and starts to serve it.
    ///
    /// # Errors
    /// `NotFound`, `Owned`, and those of the engine.
    fn open(&self, name: &str) -> Result<HostHandle>;
}

/// An image that is open, or that is being opened or closed.
#[derive(Default)]
struct Slot {
    open: Option<HostHandle>,
    /// As it was called when it was opened, for people.
    name: String,
    unused_since: Option<Instant>,
}

/// The open images of a server.
pub(super) struct OpenExports {
    exports: Arc<dyn Exports>,
    slots: Mutex<HashMap<String, Arc<Mutex<Slot>>>>,
    idle_time: Duration,
    /// Nothing is opened any more. Looked at under the lock of a slot.
    closing: AtomicBool,
}

/// An open image that stays open while this exists.
pub(super) struct Lease {
    pub(super) host: HostHandle,
    pub(super) info: ExportInfo,
    _slot: Arc<Mutex<Slot>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenExports {
    pub(super) fn new(exports: Arc<dyn Exports>, idle_time: Duration) -> Self {
        Self { exports, slots: Mutex::default(), idle_time, closing: false.into() }
    }

    pub(super) fn list(&self) -> Result<Vec<ExportName>> {
        self.exports.list()
    }

    /// The image that a client calls `name`, opened if need be. Blocks.
    pub(super) fn open(&self, name: &str) -> Result<Lease> {
        let name = self.exports.describe(name)?;
        let identity = self.exports.identify(&name.name)?;
        let slot = Arc::clone(lock(&self.slots).entry(identity.clone()).or_default());
        let host = self.open_slot(&name.name, &identity, &slot)?;
        let info = ExportInfo { name, size_bytes: host.size_bytes(), read_only: host.read_only() };
        Ok(Lease { host, info, _slot: slot })
    }

    fn open_slot(&self, name: &str, identity: &str, slot: &Mutex<Slot>) -> Result<HostHandle> {
        let mut slot = lock(slot);
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Interrupted, "the server is being stopped"));
        }
        slot.unused_since = None;
        if let Some(host) = slot.open.take_if(|host| host.is_over()) {
            report_close(name, host.wait());
        }
        if let Some(host) = &slot.open {
            return Ok(host.clone());
        }
        let host = self.exports.open(name)?;
        if self.exports.identify(name).is_ok_and(|now| now != identity) {
            // Another image may have taken the name before it was opened.
            host.stop()?;
            let message = format!("{name} was given to another image meanwhile; try again");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        slot.open = Some(host.clone());
        name.clone_into(&mut slot.name);
        tracing::info!(export = name, "opened");
        Ok(host)
    }

    /// Closes images that nobody has used for the idle time. Blocks while they close.
    pub(super) fn close_idle(&self, now: Instant) {
        let identities: Vec<String> = lock(&self.slots).keys().cloned().collect();
        for identity in identities {
            self.close_if_idle(&identity, now);
        }
    }

    fn close_if_idle(&self, identity: &str, now: Instant) {
        let Some(slot) = lock(&self.slots).get(identity).map(Arc::clone) else { return };
        // A slot that is locked is in use.
        if let Ok(mut locked) = slot.try_lock()
            && is_unused(&slot, &mut locked, now, self.idle_time)
            && let Some(host) = locked.open.take()
        {
            report_close(&locked.name, host.stop());
        }
        let mut slots = lock(&self.slots);
        // Two references: the table's and ours. With the table locked nobody can take another.
        if Arc::strong_count(&slot) == 2 && lock(&slot).open.is_none() {
            slots.remove(identity);
        }
    }

    /// Closes everything, for good. Blocks.
    pub(super) fn close_all(&self) -> Result<()> {
        self.closing.store(true, Ordering::SeqCst);
        let slots: Vec<_> = lock(&self.slots).drain().collect();
        let mut outcome = Ok(());
        for (_, slot) in slots {
            let mut slot = lock(&slot);
            let Some(host) = slot.open.take() else { continue };
            if let Err(error) = host.stop() {
                tracing::error!(export = slot.name, "closing failed: {error}");
                outcome = Err(error);
            }
        }
        outcome
    }
}

/// True if an image is to be closed now: it has ended by itself, or neither a client nor a lease
/// has used it for `idle_time`.
fn is_unused(
    slot: &Arc<Mutex<Slot>>,
    locked: &mut Slot,
    now: Instant,
    idle_time: Duration,
) -> bool {
    let Some(host) = &locked.open else { return false };
    if host.is_over() {
        return true;
    }
    // More than the table's reference and the caller's: a lease.
    if Arc::strong_count(slot) > 2 || host.connections() > 0 {
        locked.unused_since = None;
        return false;
    }
    now.saturating_duration_since(*locked.unused_since.get_or_insert(now)) >= idle_time
}

fn report_close(export: &str, outcome: Result<()>) {
    match outcome {
        Ok(()) => tracing::info!(export, "closed"),
        Err(error) => tracing::error!(export, "closed with an error: {error}"),
    }
}
