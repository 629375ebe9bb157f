//! Fetching what is missing, once for all threads and processes of the host.
//!
//! - A thread that needs a chunk joins the flight that brings it, or begins one.
//! - A flight takes the lock of its first chunk. It waits for that one, and only for a limited time: a process
//!   that was stopped may hold it. Locks of the chunks behind it are taken only if they are free. So nobody waits
//!   while holding a lock, and what another process fetches is left to it.
//! - The kernel frees the locks of a process that ends. Two fetches of one chunk do no harm: it has one content.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use marcot_store::{Lock, LockMode};

use super::flight::{Flight, Landed, again};
use super::layout::CHUNK_BYTES;
use super::state::State;
use super::streams::WINDOW_MAX;
use super::{CachedObject, Inner};

/// After this time of waiting for another process, a chunk is fetched all the same. It is longer than a service
/// normally takes.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// The first wait between two looks at another process's lock, and the longest one.
const LOOKS: Range<Duration> = Duration::from_millis(1)..Duration::from_millis(16);

/// Whose turn it is to fetch a chunk.
enum Turn {
    /// Ours.
    Ours(Box<dyn Lock>),
    /// Ours, but others may do it too.
    Unlocked,
    /// Another process has fetched it.
    Here,
}

/// Ends a flight, even by a panic.
struct Leading<'a> {
    state: &'a State,
    flight: &'a Arc<Flight>,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.flight.land(Landed::Nothing);
        self.state.slot().flights.retain(|flight| !Arc::ptr_eq(flight, self.flight));
    }
}

impl Inner {
    /// Gets chunks that are not here: `chunk`, and those behind it up to `end` that are missing too. Up to
    /// `needed` they are needed; more are fetched only if they can be kept. Returns the first chunk of what was
    /// fetched.
    pub(super) fn obtain(
        self: &Arc<Self>,
        object: &CachedObject,
        chunk: u32,
        needed: u32,
        end: u32,
    ) -> io::Result<(u32, Landed)> {
        let state = &object.state;
        let (flight, leads) = {
            let mut slot = state.slot();
            let covers = |flight: &&Arc<Flight>| (flight.first..flight.end).contains(&chunk);
            match slot.flights.iter().find(covers) {
                Some(flight) => (Arc::clone(flight), false),
                None => {
                    let open = slot.open.as_ref();
                    let taken = |chunk: &u32| {
                        open.is_some_and(|open| open.has(*chunk))
                            || slot.flights.iter().any(|f| (f.first..f.end).contains(chunk))
                    };
                    let end = end.min(chunk + WINDOW_MAX);
                    let end = (chunk + 1..end).find(taken).unwrap_or(end).max(chunk + 1);
                    let flight = Arc::new(Flight::new(chunk, end));
                    slot.flights.push(Arc::clone(&flight));
                    (flight, true)
                }
            }
        };
        if leads {
            let leading = Leading { state, flight: &flight };
            self.lead(object, &flight, needed);
            drop(leading);
        }
        match flight.wait() {
            Landed::Failed(error) => Err(again(&error)),
            landed => Ok((flight.first, landed)),
        }
    }

    /// Performs a fetch.
    fn lead(self: &Arc<Self>, object: &CachedObject, flight: &Flight, needed: u32) {
        let state = &object.state;
        let (mut locks, mut end) = (Vec::new(), flight.first + 1);
        match self.turn(state, flight.first) {
            Turn::Here => return,
            Turn::Unlocked => end = needed.clamp(end, flight.end),
            Turn::Ours(lock) => {
                locks.push(lock);
                while end < flight.end {
                    let path = self.place.paths.chunk_lock(state.number, end);
                    let lock = self.place.disk().lock(&path, LockMode::Exclusive, false);
                    let Ok(Some(lock)) = lock else { break };
                    if self.is_here(state, end) {
                        break;
                    }
                    locks.push(lock);
                    end += 1;
                }
            }
        }
        let from = u64::from(flight.first) * CHUNK_BYTES;
        match self.fetch(object, from..u64::from(end) * CHUNK_BYTES) {
            Err(error) => flight.land(Landed::Failed(Arc::new(error))),
            Ok(bytes) => {
                if bytes.is_empty() && flight.first > 0 && self.is_here(state, flight.first - 1) {
                    // It ends with the chunk before.
                    state.set_length(from);
                }
                let bytes = Arc::new(bytes);
                flight.land(Landed::Bytes { bytes: Arc::clone(&bytes), end });
                self.keep(object, flight.first, &bytes);
            }
        }
        drop(locks);
    }

    /// Waits until no other process fetches the chunk.
    fn turn(&self, state: &Arc<State>, chunk: u32) -> Turn {
        let path = self.place.paths.chunk_lock(state.number, chunk);
        let (mut waited, mut pause, mut made) = (Duration::ZERO, LOOKS.start, false);
        loop {
            match self.place.disk().lock(&path, LockMode::Exclusive, false) {
                Ok(Some(lock)) => {
                    return match self.is_here(state, chunk) {
                        true => Turn::Here,
                        false => Turn::Ours(lock),
                    };
                }
                Ok(None) if waited >= WAIT_MAX => {
                    tracing::debug!(key = %state.id.key, chunk, "fetched by two processes");
                    return Turn::Unlocked;
                }
                Ok(None) => {}
                // Somebody has removed the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !made => {
                    made = true;
                    match self.place.make() {
                        Ok(()) => continue,
                        Err(error) => {
                            self.trouble(&error);
                            return Turn::Unlocked;
                        }
                    }
                }
                Err(error) => {
                    self.trouble(&error);
                    return Turn::Unlocked;
                }
            }
            self.place.world.clock.pause(pause);
            waited += pause;
            pause = (2 * pause).min(LOOKS.end);
            if self.is_here(state, chunk) {
                return Turn::Here;
            }
        }
    }

    /// Asks the service for a range, which is cut at the object's end.
    pub(super) fn fetch(&self, object: &CachedObject, range: Range<u64>) -> io::Result<Vec<u8>> {
        let length = object.state.length();
        let end = length.map_or(range.end, |length| range.end.min(length));
        let range = range.start.min(end)..end;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let key = &object.state.id.key;
        let bytes = object.source.fetch(key, range.clone())?;
        let (asked, have) = (range.end - range.start, bytes.len() as u64);
        self.fetches.fetch_add(1, Ordering::Relaxed);
        self.fetched_bytes.fetch_add(have, Ordering::Relaxed);
        if have > asked || (have < asked && length.is_some()) {
            let kind = io::ErrorKind::UnexpectedEof;
            let message = format!("{key}: the service has sent {have} bytes of {asked}");
            return Err(io::Error::new(kind, message));
        }
        if have < asked && (have > 0 || range.start == 0) {
            object.state.set_length(range.start + have);
        }
        Ok(bytes)
    }
}
