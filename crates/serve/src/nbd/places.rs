//! The limit on the open images of a server.
//!
//! An open image needs descriptors for its locks, its sockets and its log, and from time to time for new
//! segments and synced directories. If there are none, its guest gets I/O errors. So the number of open images
//! is limited by the descriptors of the process. A client that asks for one more image is refused; clients
//! with open images are not disturbed. One peer never has all places: an eighth is left for others. An unused
//! image is closed first, to make room.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};

use super::peer::PeerKey;

/// One part in this many of the places is not given to a peer that has all the others.
const OTHERS_SHARE: usize = 8;

/// How long to wait for an unused image to be closed.
const WAIT_TIME_MAX: Duration = Duration::from_secs(5);

/// All places.
pub(super) struct Places(Arc<Shared>);

struct Shared {
    max: usize,
    taken: Mutex<HashMap<PeerKey, usize>>,
    given_back: Condvar,
}

/// The place of an open image. It is free again on drop.
pub(super) struct Place {
    shared: Arc<Shared>,
    peer: PeerKey,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<PeerKey, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no place.
enum Full {
    Server,
    Peer,
}

impl Places {
    pub(super) fn new(max: usize) -> Self {
        let (taken, given_back) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { max: max.max(1), taken, given_back }))
    }

    /// Takes a place for an image that `peer` asks for. Where there is none, calls `close_one`, which starts
    /// to close an unused image, one of this peer where a peer is given; then waits for that.
    ///
    /// # Errors
    /// `Busy` if there is none.
    pub(super) fn take(
        &self,
        peer: PeerKey,
        close_one: impl Fn(Option<PeerKey>) -> bool,
    ) -> Result<Place> {
        let deadline = Instant::now() + WAIT_TIME_MAX;
        let mut closing = false;
        loop {
            let mut taken = self.0.lock();
            let full = match self.full(&taken, peer) {
                None => {
                    *taken.entry(peer).or_default() += 1;
                    return Ok(Place { shared: Arc::clone(&self.0), peer });
                }
                Some(full) => full,
            };
            drop(taken);
            closing |= close_one(match full {
                Full::Server => None,
                Full::Peer => Some(peer),
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if !closing || left.is_zero() {
                return Err(self.refusal(&full));
            }
            self.wait(peer, left);
        }
    }

    /// Waits until there may be a place.
    fn wait(&self, peer: PeerKey, limit: Duration) {
        let taken = self.0.lock();
        if self.full(&taken, peer).is_some() {
            drop(self.0.given_back.wait_timeout(taken, limit));
        }
    }

    fn full(&self, taken: &HashMap<PeerKey, usize>, peer: PeerKey) -> Option<Full> {
        let max = self.0.max;
        if taken.values().sum::<usize>() >= max {
            return Some(Full::Server);
        }
        let of_peer = taken.get(&peer).copied().unwrap_or(0);
        (of_peer >= max - max / OTHERS_SHARE).then_some(Full::Peer)
    }

    fn refusal(&self, full: &Full) -> Error {
        let max = self.0.max;
        let who = match full {
            Full::Server => "in this server",
            Full::Peer => "by this client, and the rest is left to others",
        };
        let message = format!(
            "too many images are open {who}: it may have {max} with the descriptors of its process \
             (--images-max, ulimit -n)"
        );
        Error::new(ErrorKind::Busy, message)
    }
}

impl Place {
    pub(super) fn peer(&self) -> PeerKey {
        self.peer
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shared.lock();
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
        drop(taken);
        self.shared.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerKey = PeerKey::Uid(1);
    const OTHER: PeerKey = PeerKey::Uid(2);

    #[test]
    fn places_are_limited_for_a_peer_and_in_all() {
        let places = Places::new(16);
        let of = |peer| places.take(peer, |_| false);
        let mut held: Vec<Place> = (0..14).map(|_| of(PEER).unwrap()).collect();
        assert!(of(PEER).err().unwrap().message().contains("by this client"));
        held.extend((0..2).map(|_| of(OTHER).unwrap()));
        assert!(of(OTHER).err().unwrap().message().contains("in this server"));
        held.remove(0);
        assert!(of(OTHER).is_ok());
    }

    #[test]
    fn an_unused_image_makes_room() {
        let places = Places::new(1);
        let unused = Mutex::new(Some(places.take(PEER, |_| false).unwrap()));
        let close_one = |_| {
            let place = unused.lock().unwrap().take();
            let closed = place.is_some();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                drop(place);
            });
            closed
        };
        let _taken = places.take(OTHER, close_one).unwrap();
        assert!(places.take(OTHER, close_one).is_err(), "nothing is left to close");
    }
}
