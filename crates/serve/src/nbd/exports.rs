//! Which images clients can ask for, and which of them are open now.
//!
//! An image is opened when the first client asks for it and closed when nobody has used it for a
//! while, or earlier, where another image needs its place. Invariants: an image is open at most once,
//! however many names or clients ask, and nobody gets another image than the one that has the name
//! now: slots are found by identity, which a renamed image keeps, and opening and closing of one slot
//! exclude each other. At most so many images are open as the process has descriptors for (module
//! `places`).
//!
//! Whatever may block does so in a thread of its own: closing here, opening in the acceptor's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};

use super::negotiation::ExportInfo;
use super::peer::PeerKey;
use super::places::{Place, Places};
use crate::host::{Hold, HostHandle};

/// How often an image is opened that gives way to a command before its client has it.
const OPEN_ATTEMPTS_MAX: u32 = 10;

/// When everything is closed, an open that is under way is waited for so long. Nothing is lost with
/// it: no client has the image yet.
const OPENING_TIME_MAX: Duration = Duration::from_secs(5);

/// How often a slot that is in use is looked at when everything is closed.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// An export as it is listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportName {
    /// What a client asks for.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
}

/// Where a server's exports come from. Calls come from several threads, and may block where not said
/// otherwise.
pub trait Exports: Send + Sync {
    /// The exports to tell a client that asks for a list.
    ///
    /// # Errors
    /// Those of the engine.
    fn list(&self) -> Result<Vec<ExportName>>;

    /// The one canonical name of what a client calls `name` (empty for the default export), and
    /// its description. It need not exist. Does not block.
    ///
    /// # Errors
    /// `NotFound` or `Invalid` if there can be no such export.
    fn describe(&self, name: &str) -> Result<ExportName>;

    /// Where the export with this canonical name lies: exports of one pool may hang together, and
    /// wait for each other; those of two do not. Does not block.
    fn pool(&self, _name: &str) -> String {
        String::new()
    }

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
    state: Mutex<State>,
    /// Clients that hold it without being served yet. Counted before `state` is locked.
    leases: AtomicUsize,
    /// Somebody opens it, with `state` locked.
    opening: AtomicBool,
    /// A thread is on its way to close it.
    closing: AtomicBool,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// As it was called when it was opened, for people.
    name: String,
    unused_since: Option<Instant>,
}

/// An open image and its place among those that may be.
struct Open {
    host: HostHandle,
    place: Place,
}

/// The open images of a server.
pub(super) struct OpenExports {
    exports: Arc<dyn Exports>,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    places: Places,
    idle_time: Duration,
    /// Nothing is opened any more. Looked at with the state of a slot locked.
    closing: AtomicBool,
}

/// An open image that stays open while this exists.
pub(super) struct Lease {
    pub(super) host: HostHandle,
    pub(super) info: ExportInfo,
    _hold: Hold,
    _lease: SlotLease,
}

/// Keeps a slot from being closed.
struct SlotLease(Arc<Slot>);

impl SlotLease {
    fn new(slot: Arc<Slot>) -> Self {
        slot.leases.fetch_add(1, Ordering::SeqCst);
        Self(slot)
    }
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(locked) => Some(locked),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl OpenExports {
    pub(super) fn new(exports: Arc<dyn Exports>, idle_time: Duration, images_max: usize) -> Self {
        Self {
            exports,
            slots: Mutex::default(),
            places: Places::new(images_max),
            idle_time,
            closing: false.into(),
        }
    }

    pub(super) fn list(&self) -> Result<Vec<ExportName>> {
        self.exports.list()
    }

    /// The canonical name of what a client calls `name`, and its pool. Does not block.
    pub(super) fn describe(&self, name: &str) -> Result<(ExportName, String)> {
        let name = self.exports.describe(name)?;
        let pool = self.exports.pool(&name.name);
        Ok((name, pool))
    }

    /// The image of this canonical name, opened if need be. Blocks.
    pub(super) fn open(&self, name: &str, peer: PeerKey) -> Result<Lease> {
        let name = self.exports.describe(name)?;
        let identity = self.exports.identify(&name.name)?;
        let lease = {
            let mut slots = lock(&self.slots);
            SlotLease::new(Arc::clone(slots.entry(identity.clone()).or_default()))
        };
        let mut state = lock(&lease.0.state);
        lease.0.opening.store(true, Ordering::SeqCst);
        let opened = self.open_slot(&name.name, &identity, peer, &mut state);
        lease.0.opening.store(false, Ordering::SeqCst);
        drop(state);
        let (host, hold) = opened?;
        let info = ExportInfo { name, size_bytes: host.size_bytes(), read_only: host.read_only() };
        Ok(Lease { host, info, _hold: hold, _lease: lease })
    }

    fn open_slot(
        &self,
        name: &str,
        identity: &str,
        peer: PeerKey,
        state: &mut State,
    ) -> Result<(HostHandle, Hold)> {
        self.check_open()?;
        state.unused_since = None;
        if let Some(open) = &state.open
            && let Some(hold) = open.host.hold()
        {
            return Ok((open.host.clone(), hold));
        }
        if let Some(over) = state.open.take() {
            // It has ended, or it is giving way to a command.
            report_close(name, over.host.wait());
        }
        let place = self.places.take(peer, |of| self.close_longest_unused(of))?;
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let host = self.exports.open(name)?;
            if self.exports.identify(name).is_ok_and(|now| now != identity) {
                // Another image may have taken the name before it was opened.
                host.stop()?;
                let message = format!("{name} was given to another image meanwhile; try again");
                return Err(Error::new(ErrorKind::Busy, message));
            }
            if let Err(error) = self.check_open() {
                host.stop()?;
                return Err(error);
            }
            // A command may have wanted the image for itself in between.
            let Some(hold) = host.hold() else { continue };
            state.open = Some(Open { host: host.clone(), place });
            name.clone_into(&mut state.name);
            tracing::info!(export = name, "opened");
            return Ok((host, hold));
        }
        Err(Error::new(ErrorKind::Busy, format!("{name} is wanted by commands; try again")))
    }

    fn check_open(&self) -> Result<()> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Interrupted, "the server is being stopped"));
        }
        Ok(())
    }

    /// Has images closed that nobody has used for the idle time. Does not block.
    pub(super) fn close_idle(&self, now: Instant) {
        let mut slots = lock(&self.slots);
        for slot in slots.values() {
            // A slot that is locked is in use.
            if let Some(mut state) = try_lock(&slot.state)
                && unused_for(slot, &mut state, now).is_some_and(|time| time >= self.idle_time)
            {
                close_in_background(slot);
            }
        }
        // With the table locked nobody can take another reference.
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || !is_closed(slot));
    }

    /// Has the image closed that was not used for longest, of this peer's where one is given; false
    /// if there is none. Does not block.
    fn close_longest_unused(&self, peer: Option<PeerKey>) -> bool {
        let now = Instant::now();
        let slots = lock(&self.slots);
        let unused = slots.values().filter_map(|slot| {
            let mut state = try_lock(&slot.state)?;
            let time = unused_for(slot, &mut state, now)?;
            let of_peer = |open: &Open| peer.is_none_or(|peer| open.place.peer() == peer);
            state.open.as_ref().is_some_and(of_peer).then_some((time, slot))
        });
        let longest = unused.max_by_key(|(time, _)| *time);
        longest.map(|(_, slot)| close_in_background(slot)).is_some()
    }

    /// Closes everything, for good. Blocks.
    pub(super) fn close_all(&self) -> Result<()> {
        self.closing.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + OPENING_TIME_MAX;
        let slots: Vec<_> = lock(&self.slots).drain().collect();
        let mut outcome = Ok(());
        for (_, slot) in slots {
            let Some(mut state) = lock_unless_opening(&slot, deadline) else { continue };
            let Some(open) = state.open.take() else { continue };
            if let Err(error) = open.host.stop() {
                let message = error.to_string();
                tracing::error!(export = state.name, error = message, "closing failed");
                outcome = Err(error);
            }
        }
        outcome
    }
}

/// Waits for whoever has the slot; after `deadline` only where it is not opened.
fn lock_unless_opening(slot: &Slot, deadline: Instant) -> Option<MutexGuard<'_, State>> {
    loop {
        if let Some(state) = try_lock(&slot.state) {
            return Some(state);
        }
        if Instant::now() >= deadline && slot.opening.load(Ordering::SeqCst) {
            tracing::warn!("an export that is still being opened is not waited for");
            return None;
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

fn is_closed(slot: &Slot) -> bool {
    try_lock(&slot.state).is_some_and(|state| state.open.is_none())
}

/// For how long neither a client nor a lease has used an open image; `None` if one does, or somebody
/// closes it. One that has ended by itself counts as unused for ever.
fn unused_for(slot: &Slot, state: &mut State, now: Instant) -> Option<Duration> {
    let open = state.open.as_ref()?;
    if slot.closing.load(Ordering::SeqCst) {
        return None;
    }
    if open.host.is_over() {
        return Some(Duration::MAX);
    }
    let used = open.host.connections() > 0 || open.host.control_clients() > 0;
    if used || slot.leases.load(Ordering::SeqCst) > 0 {
        state.unused_since = None;
        return None;
    }
    Some(now.saturating_duration_since(*state.unused_since.get_or_insert(now)))
}

/// Closes an image that is still unused then: closing makes its writes durable, which may take a
/// while, and for ever where its pool hangs.
fn close_in_background(slot: &Arc<Slot>) {
    if slot.closing.swap(true, Ordering::SeqCst) {
        return;
    }
    let closed = Arc::clone(slot);
    let thread = thread::Builder::new().name("nbd-close".to_owned());
    let started = thread.spawn(move || {
        let mut state = lock(&closed.state);
        closed.closing.store(false, Ordering::SeqCst);
        if unused_for(&closed, &mut state, Instant::now()).is_some()
            && let Some(open) = &state.open
        {
            // A command of another process may be in its midst.
            match open.host.stop_if_unused() {
                None => state.unused_since = None,
                Some(outcome) => {
                    report_close(&state.name, outcome);
                    state.open = None;
                }
            }
        }
    });
    if let Err(error) = started {
        slot.closing.store(false, Ordering::SeqCst);
        tracing::warn!(%error, "cannot start a thread that closes an image");
    }
}

fn report_close(export: &str, outcome: Result<()>) {
    match outcome {
        Ok(()) => tracing::info!(export, "closed"),
        Err(error) => {
            tracing::error!(export, error = error.to_string(), "closed with an error");
        }
    }
}
