//! What an image may use of the machine, and how long it may wait for others.

use marcot_backend::object::Patience;

/// Limits of every image that is opened through a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory for loaded pages of one image's map and segment table, in bytes. Clean ones are dropped
    /// beyond it; while too many are dirty, writes wait for a checkpoint.
    pub map_memory_bytes: u64,
    /// Bytes of log after which a checkpoint begins in the background. Writes wait for it at
    /// [`Limits::log_bytes_max`], so this also bounds what a replay has to read.
    pub checkpoint_log_bytes: u64,
    /// Dead space in the data segments of one image that is left alone, in bytes, whatever part of
    /// them it is.
    pub dead_bytes_min: u64,
    /// Bytes that are written in one go, on average, from which on they go past the page cache, where
    /// the file system has such a way: from 512 KiB on the medium takes as long as it takes for the
    /// bytes, and not for the request.
    pub stream_bytes_min: u64,
    /// Bytes that each pool keeps back, so that a full disk can be emptied by removing snapshots, by
    /// shrinking and by discarding. Such a command first writes the map of the log that a killed owner
    /// left: 0.9 MiB for [`Limits::log_bytes_max`] of streams, 3.4 MiB for writes all over 1 GiB. A larger
    /// one is written in parts.
    pub reserve_bytes: u64,
    /// Slots of a data segment. The log goes on in the next one behind them; only a longer group takes more. Map
    /// segments have as many bytes. At most [`marcot_format::SEGMENT_SLOTS`]; less is for tests.
    pub segment_slots: u32,
    /// Live data of an image for which one dead segment is kept, to be used again, in bytes. At most eight are
    /// kept, until the image is idle.
    pub live_bytes_per_spare: u64,
    /// A dead segment is kept only if it is that long, in bytes.
    pub spare_bytes_min: u64,
    /// Who waits for the service of a pool in a bucket.
    pub patience: Patience,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            map_memory_bytes: 64 << 20,
            checkpoint_log_bytes: 128 << 20,
            dead_bytes_min: 64 << 20,
            stream_bytes_min: 512 << 10,
            reserve_bytes: 4 << 20,
            segment_slots: marcot_format::SEGMENT_SLOTS,
            live_bytes_per_spare: 512 << 20,
            spare_bytes_min: 16 << 20,
            patience: Patience::Command,
        }
    }
}

impl Limits {
    /// Bytes of log at which a write waits for the checkpoint that is under way.
    #[must_use]
    pub fn log_bytes_max(&self) -> u64 {
        self.checkpoint_log_bytes.saturating_mul(2)
    }

    /// Bytes of a data or map segment.
    pub(crate) fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_slots) * marcot_format::BLOCK_BYTES
    }

    /// What is left of a segment that is used again is cut off from that many slots on (1 MiB of 32).
    pub(crate) fn cut_slots_min(&self) -> u32 {
        self.segment_slots / 32
    }

    /// Map memory at which a checkpoint begins, so that pages are clean, and can be dropped, before
    /// there are too many.
    pub(crate) fn map_memory_bytes_soft(&self) -> u64 {
        self.map_memory_bytes / 4 * 3
    }
}
