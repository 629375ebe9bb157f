//! How much is looked through in a round for requests that name long ranges.
//!
//! A BLOCK_STATUS or a CACHE has 28 bytes and no payload, its reply is short, and it may have the map
//! of 4 GiB looked through. So neither the buffers nor the number of requests bounds the time of a
//! round; this does, for all connections together.

use crate::nbd::request::Request;
use crate::nbd::wire::command;

/// What is looked through in a round before other requests have their turn, in bytes of the image.
/// One request is carried out in any case. For dense data that takes some 10 ms a GiB.
const LOOKED_BYTES_MAX: u64 = 1 << 30;

/// What is read ahead for one CACHE, in bytes: it is a hint, and the rest of a longer one is ignored.
const CACHE_BYTES_MAX: u64 = 32 << 20;

/// A byte to be read ahead costs as much time as so many of which only the map is asked for.
const CACHE_COST: u64 = 8;

/// What is left of that in a round.
#[derive(Debug)]
pub(super) struct Looking {
    left_bytes: u64,
}

impl Looking {
    pub(super) fn new() -> Self {
        Self { left_bytes: LOOKED_BYTES_MAX }
    }

    /// True if no more of such requests are taken in this round.
    pub(super) fn is_spent(&self) -> bool {
        self.left_bytes == 0
    }

    /// True if the request can be taken in this round.
    pub(super) fn admits(&self, request: &Request) -> bool {
        cost(request) == 0 || !self.is_spent()
    }

    /// The request is taken.
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
