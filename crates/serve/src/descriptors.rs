//! How the file descriptors of a server are divided.
//!
//! A server needs a descriptor for every client and several for every image. Its descriptors are divided
//! beforehand, so that clients can use up only their own part:
//!
//! | part | of the limit |
//! |---|---|
//! | what every server needs | [`BASE_MAX`] |
//! | pools, one each, which all images share | the existing ones, and [`POOLS_MORE`] |
//! | clients | a quarter, or what the user asks for |
//! | segments open for reading, of all images | an eighth, at most [`SEGMENT_FILES_MAX`] |
//! | opens in progress, [`OPEN_DESCRIPTORS_MAX`] each | a sixteenth, for [`OPENS_MIN`] to [`OPENS_MAX`] |
//! | open images, [`IMAGE_DESCRIPTORS_MAX`] each | the rest |

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Limit on the descriptors that one open image takes. While it is idle it takes seven: its locks, its
/// control socket and directory, its thread's epoll and events. A guest that writes without a flush adds
/// the segments of its log, up to eight. A checkpoint adds segments of map and table, the head, and
/// directories that are synced.
pub const IMAGE_DESCRIPTORS_MAX: u64 = 24;

/// Descriptors of a server besides those of clients and images: standard streams, listening sockets, its own
/// threads, the store, and those needed to list exports: eight pools at a time, four descriptors each.
pub const BASE_MAX: u64 = 48;

/// Pools that can be created or attached while a server runs, and that it can then use.
pub const POOLS_MORE: u64 = 16;

/// Descriptors needed to find out which image a client wants. Another user's pool is checked before it is
/// opened, and so is a file in it.
pub const OPEN_DESCRIPTORS_MAX: u64 = 4;

/// Concurrent opens where descriptors are few: one pool that hangs must not take them all.
pub const OPENS_MIN: u64 = 8;

/// Concurrent opens where descriptors are plenty. Each takes a thread. Several pools would have to hang
/// before clients of other pools wait.
pub const OPENS_MAX: u64 = 128;

/// Segments open for reading where descriptors are plenty.
pub const SEGMENT_FILES_MAX: u64 = 512;

/// Descriptors of a process without a limit. Linux has a limit for all processes together, so this is enough.
const UNLIMITED: u64 = 1 << 20;

/// How many of each a server may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Clients.
    pub connections: u64,
    /// Segments that are open for reading.
    pub segment_files: u64,
    /// Images.
    pub images: u64,
    /// Pools.
    pub pools: u64,
    /// Opens in progress.
    pub opens: u64,
}

/// Limit on the segments open for reading, for a process with this limit of descriptors.
#[must_use]
pub fn segment_files(limit: Option<u64>) -> u64 {
    (limit.unwrap_or(UNLIMITED) / 8).clamp(1, SEGMENT_FILES_MAX)
}

/// Divides `limit` descriptors of a server whose store has `pools` pools now, with at most
/// `connections` for clients; `None` where nothing is left for an image.
#[must_use]
pub fn divide(
    limit: Option<u64>,
    pools: u64,
    connections: Option<u64>,
    connections_max: u64,
) -> Option<Shares> {
    let segment_files = segment_files(limit);
    let limit = limit.unwrap_or(UNLIMITED);
    let connections = connections.unwrap_or((limit / 4).clamp(1, connections_max));
    let opens = (limit / 16 / OPEN_DESCRIPTORS_MAX).clamp(OPENS_MIN, OPENS_MAX);
    let pools = pools + POOLS_MORE;
    let others = [BASE_MAX, pools, connections, segment_files, opens * OPEN_DESCRIPTORS_MAX];
    let left = others.iter().try_fold(limit, |left, part| left.checked_sub(*part))?;
    let images = left / IMAGE_DESCRIPTORS_MAX;
    (images > 0).then_some(Shares { connections, segment_files, images, pools, opens })
}

/// Raises the soft limit of descriptors to the hard one. Returns the new limit; `None` where there is
/// none. The usual soft limit is too low for a server.
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // No kernel refuses this. If one did, the old limit would stay.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_never_exceed_the_limit() {
        for limit in [256, 512, 1024, 4096, 20_000, 1 << 20] {
            for (pools, asked) in [(1, None), (5, Some(10)), (40, Some(40))] {
                let shares = divide(Some(limit), pools, asked, 2048).unwrap();
                let images = shares.images * IMAGE_DESCRIPTORS_MAX;
                let opens = shares.opens * OPEN_DESCRIPTORS_MAX;
                let others = shares.connections + shares.segment_files + shares.pools;
                assert!(BASE_MAX + others + opens + images <= limit, "{limit} {shares:?}");
                assert!(shares.connections <= 2048 && shares.pools > pools, "{limit} {shares:?}");
            }
        }
        assert_eq!(divide(Some(64), 1, None, 2048), None);
        assert_eq!(divide(Some(512), 1, Some(500), 2048), None);
        assert_eq!(divide(Some(512), 400, None, 2048), None);
        assert!(divide(None, 1000, None, 2048).unwrap().images > 10_000);
    }
}
