//! Reading only what is at hand: what would have to be fetched from a service is noted, and fails.

use std::sync::Arc;

use marcot_store::DiskFile;

use super::SegmentTable;
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::segment::{Files, Need, SegmentName};

/// Whether reads may wait for a service.
#[derive(Debug, Default)]
pub(super) enum Waiting {
    /// They wait.
    #[default]
    Allowed,
    /// They fail. What the first one needed is noted.
    Refused(Option<Need>),
}

impl SegmentTable {
    /// From now on nothing waits for a service: what would have to is noted, and fails with `Unreachable`.
    pub(crate) fn refuse_waiting(&mut self) {
        self.waiting = Waiting::Refused(None);
    }

    /// Reads wait again. Returns what was needed meanwhile.
    pub(crate) fn allow_waiting(&mut self) -> Option<Need> {
        match std::mem::take(&mut self.waiting) {
            Waiting::Refused(need) => need,
            Waiting::Allowed => None,
        }
    }

    /// True between [`Self::refuse_waiting`] and [`Self::allow_waiting`].
    pub(crate) fn refuses_waiting(&self) -> bool {
        matches!(self.waiting, Waiting::Refused(_))
    }

    /// True where something was needed since [`Self::refuse_waiting`].
    pub(crate) fn needs_something(&self) -> bool {
        matches!(self.waiting, Waiting::Refused(Some(_)))
    }

    /// The file of a segment, as [`Files::get`] gives it.
    ///
    /// # Errors
    /// Those of [`Files::get`]; `Unreachable` where nothing may wait.
    pub(crate) fn file(&mut self, files: &Files, name: SegmentName) -> Result<Arc<dyn DiskFile>> {
        match &self.waiting {
            Waiting::Refused(_) if !files.is_at_hand(name) => self.need(Need::Open(name)),
            _ => files.get(name),
        }
    }

    /// Reads bytes of a segment. Fewer than asked where it ends.
    ///
    /// # Errors
    /// As [`Self::file`]; what the operating system or the service says.
    pub(crate) fn read_segment(
        &mut self,
        files: &Files,
        name: SegmentName,
        at: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        let file = self.file(files, name)?;
        if matches!(self.waiting, Waiting::Refused(_)) && file.waits_for_service() {
            return match file.read_cached_at(at, buf) {
                Ok(n) if n == buf.len() => Ok(n),
                // Its end, or not all of it is here.
                _ => self.need(Need::Bytes(name, file, at, buf.len())),
            };
        }
        file.read_at(at, buf).at(|| format!("cannot read segment {name}"))
    }

    /// Notes what is needed, where nothing may wait.
    ///
    /// # Errors
    /// Always `Unreachable`.
    pub(crate) fn need<T>(&mut self, needed: Need) -> Result<T> {
        if let Waiting::Refused(noted) = &mut self.waiting {
            noted.get_or_insert(needed);
        }
        fail(ErrorKind::Unreachable, "it has to be fetched first")
    }
}
