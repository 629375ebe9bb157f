//! What an image needs of a service before it can go on, so that a worker can fetch it meanwhile.

use std::fmt;
use std::sync::Arc;

use marcot_store::DiskFile;

use super::{Files, SegmentName};

/// See the module.
pub(crate) struct Need {
    name: SegmentName,
    /// Bytes of the segment, where it is open: file, first byte, and how many. Otherwise it has to be opened.
    bytes: Option<(Arc<dyn DiskFile>, u64, usize)>,
}

impl Need {
    /// A segment has to be opened.
    pub(crate) fn open(name: SegmentName) -> Self {
        Self { name, bytes: None }
    }

    /// Bytes of an open segment have to be read.
    pub(crate) fn bytes(name: SegmentName, file: Arc<dyn DiskFile>, at: u64, bytes: usize) -> Self {
        Self { name, bytes: Some((file, at, bytes)) }
    }

    /// What it is, to be told from others.
    pub(crate) fn place(&self) -> (SegmentName, Option<u64>) {
        (self.name, self.bytes.as_ref().map(|(_, at, _)| *at))
    }

    /// Fetches it. The segment stays open, and its bytes in the cache of the host. What fails here fails again where it
    /// is needed, and is told there.
    pub(crate) fn meet(self, files: &Files) {
        let failed = match self.bytes {
            None => files.get(self.name).err().map(|error| error.sentence().to_string()),
            Some((file, at, bytes)) => {
                file.read_at(at, &mut vec![0; bytes]).err().map(|error| error.to_string())
            }
        };
        if let Some(error) = failed {
            tracing::debug!(segment = %self.name, error, "could not be fetched");
        }
    }
}

impl fmt::Debug for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.place())
    }
}
