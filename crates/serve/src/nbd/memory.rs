//! Limits on the memory that clients take: each connection, each peer, and all clients of a server together.
//!
//! A client can make a server hold much memory: it asks for 32 MiB in 28 bytes and does not take the reply,
//! or it sends all of a write except the last byte. Therefore each connection may always use a little (the
//! `*_BYTES_MIN` of module `host::connection`). With this it can serve every request, long ones in parts. It
//! asks here for more, and is refused when the clients have too much. So no client has to wait for memory
//! that another one holds. A refusal only makes long requests slower.
//!
//! Invariant: the bytes counted are those of all [`Grant`]s, and never more than [`CLIENTS_BYTES_MAX`]. In
//! the steady state nothing is asked for, because buffers keep their size while they are used.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::permits::Permit;

/// Limit on the memory of all clients of a server beyond their minimum, in bytes. It is enough for thirty
/// clients that move 4 MiB each, and small beside the memory of a host of virtual machines.
pub const CLIENTS_BYTES_MAX: usize = 128 << 20;

/// Limit on the part of it for the connections of one peer, in bytes. A quarter is left for others.
pub const PEER_BYTES_MAX: usize = CLIENTS_BYTES_MAX / 4 * 3;

/// Limit on the part of it for one connection, in bytes. The largest reply fits with its headers.
pub const CONNECTION_BYTES_MAX: usize = 40 << 20;

/// The count of a server's clients.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    bytes: AtomicUsize,
    refusals: AtomicU64,
}

impl Ledger {
    /// Counts `bytes` more for the server and for a peer. Returns false, and counts nothing, where that
    /// would be too many.
    pub(super) fn take(&self, peer: &AtomicUsize, bytes: usize) -> bool {
        let taken = add(&self.bytes, bytes, CLIENTS_BYTES_MAX);
        if taken && add(peer, bytes, PEER_BYTES_MAX) {
            return true;
        }
        if taken {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.refusals.fetch_add(1, Ordering::Relaxed);
        false
    }

    pub(super) fn give_back(&self, peer: &AtomicUsize, bytes: usize) {
        peer.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How often memory was refused so far.
    pub(super) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }
}

/// Adds `bytes`, if the sum stays within `max`.
fn add(count: &AtomicUsize, bytes: usize, max: usize) -> bool {
    let sum = |now: usize| now.checked_add(bytes).filter(|sum| *sum <= max);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

/// Memory that one connection has beyond its minimum. It is given back on drop. A connection without a
/// permit, such as the kernel's, is never refused memory.
#[derive(Debug)]
pub(crate) struct Grant {
    permit: Option<Permit>,
    bytes: usize,
    refusals_seen: u64,
}

impl Grant {
    pub(crate) fn new(permit: Option<Permit>) -> Self {
        Self { permit, bytes: 0, refusals_seen: 0 }
    }

    /// True if the connection may use `bytes` from now on, besides its minimum.
    pub(crate) fn covers(&mut self, bytes: usize) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        if let Some(permit) = &self.permit
            && (bytes > CONNECTION_BYTES_MAX || !permit.take_bytes(bytes - self.bytes))
        {
            return false;
        }
        self.bytes = bytes;
        true
    }

    /// Gives back everything beyond `bytes`.
    pub(crate) fn keep(&mut self, bytes: usize) {
        let back = self.bytes.saturating_sub(bytes);
        if let Some(permit) = &self.permit
            && back > 0
        {
            permit.give_back_bytes(back);
        }
        self.bytes -= back;
    }

    /// True if some connection was refused memory since the last call.
    pub(crate) fn memory_was_short(&mut self) -> bool {
        let Some(permit) = &self.permit else { return false };
        let refusals = permit.refusals();
        std::mem::replace(&mut self.refusals_seen, refusals) != refusals
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::PeerKey;
    use super::super::permits::Permits;
    use super::*;

    fn grant(permits: &mut Permits, uid: u32) -> Grant {
        Grant::new(permits.take(PeerKey::Uid(uid)))
    }

    #[test]
    fn connections_peers_and_the_server_each_have_a_limit() {
        let mut permits = Permits::new(100);
        let mut first: Vec<Grant> = (0..3).map(|_| grant(&mut permits, 1)).collect();
        assert!(!first[0].covers(CONNECTION_BYTES_MAX + 1));
        assert!(first[0].covers(CONNECTION_BYTES_MAX));
        assert!(first[1].covers(CONNECTION_BYTES_MAX));
        assert!(!first[2].covers(CONNECTION_BYTES_MAX), "the peer has too much");
        let mut other = grant(&mut permits, 2);
        assert!(other.covers(PEER_BYTES_MAX / 3), "a quarter is left to others");
        assert!(!other.covers(CONNECTION_BYTES_MAX + (16 << 20)), "the server has too much");
        first.clear();
        let mut again = grant(&mut permits, 3);
        assert!(again.covers(CONNECTION_BYTES_MAX), "what was dropped was given back");
    }

    #[test]
    fn what_is_not_kept_can_be_had_by_others() {
        let mut permits = Permits::new(100);
        let (mut a, mut b) = (grant(&mut permits, 1), grant(&mut permits, 1));
        let mut c = grant(&mut permits, 1);
        assert!(a.covers(CONNECTION_BYTES_MAX) && b.covers(CONNECTION_BYTES_MAX));
        assert!(!c.memory_was_short());
        assert!(!c.covers(CONNECTION_BYTES_MAX));
        assert!(a.memory_was_short() && !a.memory_was_short(), "it is told once");
        a.keep(1000);
        assert!(c.covers(CONNECTION_BYTES_MAX) && a.covers(1000));
    }

    #[test]
    fn a_connection_without_a_permit_is_never_refused() {
        assert!(Grant::new(None).covers(1 << 40));
    }
}
