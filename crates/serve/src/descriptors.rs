//! How many files and connections this process may have open, and what for.
//!
//! A server needs a descriptor for every client and some for every image. What it has is divided
//! beforehand, so that clients can use up their part and no more:
//!
//! | part | of the limit |
//! |---|---|
//! | what every server needs | [`BASE_MAX`] |
//! | clients | a quarter, or what is asked for |
//! | segments that are open for reading, of all images | an eighth, at most [`SEGMENT_FILES_MAX`] |
//! | open images, [`IMAGE_DESCRIPTORS_MAX`] each | the rest |

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that one open image takes at most. Seven while it is idle: its locks, its control
/// socket and directory, its thread's epoll and events. A guest that writes without a flush adds the
/// segments of its log, up to eight, and a checkpoint those of map and table, the head, and
/// directories that are synced.
pub const IMAGE_DESCRIPTORS_MAX: u64 = 24;

/// Descriptors of a server besides those of clients and images: standard streams, listening sockets,
/// its own threads, directories that are read for a list.
pub const BASE_MAX: u64 = 48;

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
}

/// Divides `limit` descriptors, with at most `connections` for clients; `None` where nothing is left
/// for an image.
#[must_use]
pub fn divide(
    limit: Option<u64>,
    connections: Option<u64>,
    connections_max: u64,
) -> Option<Shares> {
    let limit = limit.unwrap_or(UNLIMITED);
    let connections = connections.unwrap_or((limit / 4).clamp(1, connections_max));
    let segment_files = (limit / 8).clamp(1, SEGMENT_FILES_MAX);
    let left = limit.checked_sub(BASE_MAX)?.checked_sub(connections)?.checked_sub(segment_files)?;
    let images = left / IMAGE_DESCRIPTORS_MAX;
    (images > 0).then_some(Shares { connections, segment_files, images })
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
        for limit in [200, 512, 1024, 4096, 20_000, 1 << 20] {
            for asked in [None, Some(10), Some(100)] {
                let shares = divide(Some(limit), asked, 2048).unwrap();
                let images = shares.images * IMAGE_DESCRIPTORS_MAX;
                let all = BASE_MAX + shares.connections + shares.segment_files + images;
                assert!(all <= limit && shares.connections <= 2048, "{limit} {shares:?}");
            }
        }
        assert_eq!(divide(Some(64), None, 2048), None);
        assert_eq!(divide(Some(512), Some(500), 2048), None);
        assert!(divide(None, None, 2048).unwrap().images > 10_000);
    }
}
