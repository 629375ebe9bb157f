//! The exports of a server, and the images that are open now.
//!
//! An image is opened when the first client asks for it. It is closed when nobody has used it for a while, or
//! earlier, where another image needs its place.
//!
//! Invariants:
//! - An image is open at most once, whatever names clients use. Slots are found by the image's identity, which
//!   renaming does not change. Opening and closing of one slot exclude each other.
//! - A client gets only the image that has the name now.
//! - The number of open images is limited by the process's descriptors (module `places`).
//!
//! Work that may block is done in other threads: closing in threads of this module, opening in those of the
//! acceptor.

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

/// How often an image is opened at most, if it gives way to a command before its client is attached.
const OPEN_ATTEMPTS_MAX: u32 = 10;

/// How long an open in progress is waited for when everything is closed. Nothing is lost with it, because no
/// client has the image yet.
const OPENING_TIME_MAX: Duration = Duration::from_secs(5);

/// Time between two looks at a slot in use when everything is closed.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// An export as it is listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportName {
    /// The name that a client asks for.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
}

/// The source of a server's exports. It is called from several threads. Methods may block unless they say
/// otherwise.
pub trait Exports: Send + Sync {
    /// The exports for a client that asks for a list.
    ///
    /// # Errors
    /// Those of the engine.
    fn list(&self) -> Result<Vec<ExportName>>;

    /// The canonical name of the export that a client calls `name` (empty for the default export), and
    /// its description. The export need not exist. Does not block.
    ///
    /// # Errors
    /// `NotFound` or `Invalid` if there can be no export of this name.
    fn describe(&self, name: &str) -> Result<ExportName>;

    /// The pool of the export with this canonical name. Exports of one pool may hang together and wait
    /// for each other; exports of different pools do not. Does not block.
    fn pool(&self, _name: &str) -> String {
        String::new()
    }

    /// The identity of the export with this canonical name. An image that is renamed keeps its identity.
    /// Two images that have the same name one after the other have different identities.
    ///
    /// # Errors
    /// `NotFound` if there is no export of this name; those of the engine.
    fn identify(&self, name: &str) -> Result<String> {
        Ok(name.to_owned())
    }

    /// Opens the export with this canonical name and starts to serve it.
    ///
    /// # Errors
    /// `NotFound`, `Owned`, and those of the engine.
    fn open(&self, name: &str) -> Result<HostHandle>;
}

/// An image that is open, or is being opened or closed.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    /// Clients that hold it and are not served yet. They are counted before `state` is locked.
    leases: AtomicUsize,
    /// A thread opens it, with `state` locked.
    opening: AtomicBool,
    /// A thread was started to close it.
    closing: AtomicBool,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// Its name when it was opened, for messages.
    name: String,
    unused_since: Option<Instant>,
}

/// An open image, and its place in the limit of open images.
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
    /// Nothing is opened any more. It is read with the state of a slot locked.
    closing: AtomicBool,
}

/// A lease of an open image: the image stays open while this exists.
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

    /// The description of the export that a client calls `name`, and its pool. Does not block.
    pub(super) fn describe(&self, name: &str) -> Result<(ExportName, String)> {
        let name = self.exports.describe(name)?;
        let pool = self.exports.pool(&name.name);
        Ok((name, pool))
    }

    /// A lease of the image with this canonical name. Opens the image if needed. Blocks.
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
            // The host has ended, or is giving way to a command.
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
            // The image may have given way to a command in between.
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

    /// Starts to close images that nobody has used for the idle time. Does not block.
    pub(super) fn close_idle(&self, now: Instant) {
        let mut slots = lock(&self.slots);
        for slot in slots.values() {
            // A locked slot is in use.
            if let Some(mut state) = try_lock(&slot.state)
                && unused_for(slot, &mut state, now).is_some_and(|time| time >= self.idle_time)
            {
                close_in_background(slot);
            }
        }
        // While the table is locked, nobody can take another reference.
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || !is_closed(slot));
    }

    /// Starts to close the image that has been unused for longest; where a peer is given, among those that
    /// the peer has opened. Returns false if there is none. Does not block.
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
                let message = error.sentence().to_string();
                tracing::error!(export = state.name, error = message, "closing failed");
                outcome = Err(error);
            }
        }
        outcome
    }
}

/// Waits for the lock of a slot. After `deadline`, does not wait any longer for one that is being opened.
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

/// How long an open image has had neither a client nor a lease; `None` if it has one, or is being closed. A
/// host that has ended by itself counts as unused for ever.
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

/// Starts a thread that closes an image if it is still unused then. Closing makes writes durable, which may
/// take a while, or for ever where the pool hangs.
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
            // A command of another process may be running on it.
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
            tracing::error!(export, error = error.sentence().to_string(), "closed with an error");
        }
    }
}
