//! The limit on map searches in a round, for requests that name long ranges.
//!
//! A BLOCK_STATUS or a CACHE takes 28 bytes and has a short reply, but may search the map of 4 GiB. So the
//! size of the buffers and the number of requests do not limit the time of a round. This limit does, for
//! all connections together.

use crate::nbd::request::Request;
use crate::nbd::wire::command;

/// Bytes of the image that are searched in a round before other requests have their turn. At least one
/// request is carried out. Dense data takes about 10 ms a GiB.
const LOOKED_BYTES_MAX: u64 = 1 << 30;

/// Bytes that are read ahead for one CACHE. The request is a hint, so the rest of a longer one is ignored.
const CACHE_BYTES_MAX: u64 = 32 << 20;

/// Reading a byte ahead takes as much time as searching the map for this many bytes.
const CACHE_COST: u64 = 8;

/// What is left of the limit in a round.
#[derive(Debug)]
pub(super) struct Looking {
    left_bytes: u64,
}

impl Looking {
    pub(super) fn new() -> Self {
        Self { left_bytes: LOOKED_BYTES_MAX }
    }

    /// True if no more of these requests are taken in this round.
    pub(super) fn is_spent(&self) -> bool {
        self.left_bytes == 0
    }

    /// True if the request can be taken in this round.
    pub(super) fn admits(&self, request: &Request) -> bool {
        cost(request) == 0 || !self.is_spent()
    }

    /// Counts a request that is taken.
    pub(super) fn take(&mut self, request: &Request) {
        self.left_bytes = self.left_bytes.saturating_sub(cost(request));
    }
}

fn cost(request: &Request) -> u64 {
    match request.command {
        command::BLOCK_STATUS => request.length.into(),
        command::CACHE => CACHE_COST * range_bytes(request),
        _ => 0,
    }
}

/// Bytes of the range of a request that are acted on.
pub(super) fn range_bytes(request: &Request) -> u64 {
    let most = if request.command == command::CACHE { CACHE_BYTES_MAX } else { u64::MAX };
    u64::from(request.length).min(most)
}
