//! The limit on the clients of a server.
//!
//! A client takes a descriptor while it is connected. Images need descriptors too, and many clients must not
//! take them. So there are `connections_max` permits. A client that gets none is disconnected at once. One
//! peer never has all permits: an eighth is left for others. A silent client costs an attacker little. So
//! while `negotiating_max` clients negotiate, a new client replaces the one that has negotiated longest.
//!
//! The memory of a client is counted in its permit (module `memory`).

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::memory::Ledger;
use super::peer::PeerKey;

/// Least time between two log lines about refused clients.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// One part in this many of the permits is not given to a peer that has all the others.
const OTHERS_SHARE: usize = 8;

/// A client's permit. It is free again when its last copy is dropped.
#[derive(Debug, Clone)]
pub struct Permit(Arc<Place>);

impl PartialEq for Permit {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Permit {}

impl Permit {
    pub(super) fn take_bytes(&self, bytes: usize) -> bool {
        self.0.room.ledger.take(&self.0.peer.bytes, bytes)
    }

    pub(super) fn give_back_bytes(&self, bytes: usize) {
        self.0.room.ledger.give_back(&self.0.peer.bytes, bytes);
    }

    pub(super) fn refusals(&self) -> u64 {
        self.0.room.ledger.refusals()
    }
}

/// A permit in use. The numbers of references to `room` and to `peer` are the counts.
#[derive(Debug)]
struct Place {
    room: Arc<Room>,
    peer: Arc<Share>,
}

/// The share of all clients together.
#[derive(Debug, Default)]
struct Room {
    ledger: Ledger,
}

/// The share of one peer's clients.
#[derive(Debug, Default)]
struct Share {
    bytes: AtomicUsize,
}

/// All permits of a server.
pub(super) struct Permits {
    room: Arc<Room>,
    peers: HashMap<PeerKey, Weak<Share>>,
    max: usize,
    refused: u64,
    replaced: u64,
    tell_after: Option<Instant>,
}

impl Permits {
    pub(super) fn new(max: usize) -> Self {
        Self {
            room: Arc::default(),
            peers: HashMap::new(),
            max: max.max(1),
            refused: 0,
            replaced: 0,
            tell_after: None,
        }
    }

    /// The number of permits in use.
    fn count(&self) -> usize {
        Arc::strong_count(&self.room) - 1
    }

    /// A permit for a new client of `peer`; `None` if there is none for it.
    pub(super) fn take(&mut self, peer: PeerKey) -> Option<Permit> {
        let share = self.peers.get(&peer).and_then(Weak::upgrade);
        // One reference was just made by `upgrade`.
        let permits_of_peer = share.as_ref().map_or(0, |share| Arc::strong_count(share) - 1);
        if self.count() >= self.max || permits_of_peer >= self.max - self.max / OTHERS_SHARE {
            self.refused += 1;
            return None;
        }
        let share = share.unwrap_or_else(|| self.new_share(peer));
        Some(Permit(Arc::new(Place { room: Arc::clone(&self.room), peer: share })))
    }

    fn new_share(&mut self, peer: PeerKey) -> Arc<Share> {
        // Forget peers that have no clients any more.
        self.peers.retain(|_, share| share.strong_count() > 0);
        let share = Arc::default();
        self.peers.insert(peer, Arc::downgrade(&share));
        share
    }

    /// Notes that a client was disconnected to make room for another.
    pub(super) fn note_replaced(&mut self) {
        self.replaced += 1;
    }

    /// Logs refused and replaced clients from time to time.
    pub(super) fn tell(&mut self, now: Instant) {
        if self.refused + self.replaced == 0 || self.tell_after.is_some_and(|after| now < after) {
            return;
        }
        if self.refused > 0 {
            tracing::warn!(
                refused = self.refused,
                connections_max = self.max,
                "nbd clients refused: as many are connected as this server takes, or takes of one peer \
                 (--connections-max, ulimit -n)"
            );
        }
        if self.replaced > 0 {
            tracing::warn!(
                disconnected = self.replaced,
                "nbd clients that did not finish their negotiation made room for new ones"
            );
        }
        (self.refused, self.replaced) = (0, 0);
        self.tell_after = Some(now + TELL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerKey = PeerKey::Uid(1);

    #[test]
    fn a_permit_is_free_when_its_last_copy_is_gone() {
        let mut permits = Permits::new(2);
        let first = permits.take(PEER).unwrap();
        let copy = first.clone();
        drop(first);
        let second = permits.take(PEER);
        assert!(second.is_some());
        assert!(permits.take(PEER).is_none());
        drop(copy);
        assert!(permits.take(PEER).is_some());
    }

    #[test]
    fn one_peer_never_has_all_permits() {
        let mut permits = Permits::new(16);
        let greedy: Vec<Permit> = std::iter::from_fn(|| permits.take(PEER)).collect();
        assert_eq!(greedy.len(), 14);
        let others: Vec<Permit> =
            (2..10).map_while(|uid| permits.take(PeerKey::Uid(uid))).collect();
        assert_eq!(others.len(), 2);
        drop(greedy);
        assert!(permits.take(PEER).is_some());
        assert_eq!(permits.peers.len(), 3);
    }
}
