//! How many files and connections this process may have open, and what for.
//!
//! A server needs a descriptor for every client and some for every image. What it has is divided
//! beforehand, so that clients can use up their part and no more:
//!
//! | part | of the limit |
//! |---|---|
//! | what every server needs | [`BASE_MAX`] |
//! | pools, one each, which all images share | those that there are, and [`POOLS_MORE`] |
//! | clients | a quarter, or what is asked for |
//! | segments that are open for reading, of all images | an eighth, at most [`SEGMENT_FILES_MAX`] |
//! | opens that are under way, [`OPEN_DESCRIPTORS_MAX`] each | a sixteenth, for [`OPENS_MIN`] to [`OPENS_MAX`] |
//! | open images, [`IMAGE_DESCRIPTORS_MAX`] each | the rest |

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that one open image takes at most. Seven while it is idle: its locks, its control
/// socket and directory, its thread's epoll and events. A guest that writes without a flush adds the
/// segments of its log, up to eight, and a checkpoint those of map and table, the head, and
/// directories that are synced.
pub const IMAGE_DESCRIPTORS_MAX: u64 = 24;

/// Descriptors of a server besides those of clients and images: standard streams, listening sockets,
/// its own threads, the store, and what is read for a list: eight pools at a time, four each.
pub const BASE_MAX: u64 = 48;

/// Pools that can be created or attached while a server runs, and be used by it.
pub const POOLS_MORE: u64 = 16;

/// Descriptors that it takes to find out which image a client wants: a pool of another user is looked
/// at before it is opened, and so is a file in it.
pub const OPEN_DESCRIPTORS_MAX: u64 = 4;

/// Opens at a time where descriptors are few: one pool that hangs must not take all.
pub const OPENS_MIN: u64 = 8;

/// Opens at a time where descriptors are plenty. Each is a thread; several pools would have to hang
/// before others wait.
pub const OPENS_MAX: u64 = 128;

/// Segments open for reading where descriptors are plenty.
pub const SEGMENT_FILES_MAX: u64 = 512;

/// Descriptors where there is no limit: Linux has one for all processes, so this is none that matters.
const UNLIMITED: u64 = 1 << 20;

/// What a server may have open.
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
    /// Opens that are under way.
    pub opens: u64,
}

/// Segments open for reading, of a process that may have so many descriptors.
#[must_use]
pub fn segment_files(limit: Option<u64>) -> u64 {
    (limit.unwrap_or(UNLIMITED) / 8).clamp(1, SEGMENT_FILES_MAX)
}

/// Divides `limit` descriptors of a server whose store has so many pools now, with at most
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

/// Raises the soft limit of descriptors to the hard one, and returns what it is then; `None` where
/// there is no limit. A server needs one for every client and some for every image, and the soft
/// limit is low by tradition.
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Refused by no kernel; if it is, the old limit stays.
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
