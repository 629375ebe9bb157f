//! What an image needs of a service before it can go on, so that a worker can fetch it meanwhile.

use std::fmt;
use std::sync::Arc;

use marcot_store::DiskFile;

use super::{Files, SegmentName};
use crate::external::External;

/// See the module.
pub(crate) enum Need {
    /// A segment has to be opened.
    Open(SegmentName),
    /// Bytes of an open segment have to be read: its file, the first byte, and how many.
    Bytes(SegmentName, Arc<dyn DiskFile>, u64, usize),
    /// A block of the source of a migration, outside the store, has to be read: its first byte.
    External(Arc<External>, u64),
}

/// What a need is about, to be told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NeedPlace {
    /// A segment, or bytes of it from here on.
    Segment(SegmentName, Option<u64>),
    /// A block of a source outside the store.
    External(u64),
}

impl Need {
    /// What it is, to be told from others.
    pub(crate) fn place(&self) -> NeedPlace {
        match self {
            Self::Open(name) => NeedPlace::Segment(*name, None),
            Self::Bytes(name, _, at, _) => NeedPlace::Segment(*name, Some(*at)),
            Self::External(_, at) => NeedPlace::External(*at),
        }
    }

    /// Fetches it. The segment stays open, its bytes in the cache of the host, and a block of a source in memory. What
    /// fails here fails again where it is needed, and is told there.
    pub(crate) fn meet(self, files: &Files) {
        let place = self.place();
        let failed = match self {
            Self::Open(name) => files.get(name).err().map(|error| error.sentence().to_string()),
            Self::Bytes(_, file, at, bytes) => {
                file.read_at(at, &mut vec![0; bytes]).err().map(|error| error.to_string())
            }
            Self::External(source, at) => {
                source.fetch(at);
                None
            }
        };
        if let Some(error) = failed {
            tracing::debug!(?place, error, "could not be fetched");
        }
    }
}

impl fmt::Debug for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.place())
    }
}
