//! Commands with an attendant: the work around them, during which clients are served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use marcot::Result;

use super::EventLoop;
use crate::control::{Command, QuiesceMode};
use crate::host::attendant::{Attendance, Attendant, RESIZE_WAIT, SNAPSHOT_WAIT, too_slow};

/// Pause where sources are ready that cannot be served now.
const PAUSE: Duration = Duration::from_millis(1);

impl EventLoop {
    /// Does the work before `command`. Every call is followed by one of [`Self::attend_after`].
    ///
    /// # Errors
    /// Then the command is not to be carried out.
    pub(super) fn attend_before(&mut self, command: &Command) -> Result<()> {
        let Some(ignore_errors) = quiesces(command) else { return Ok(()) };
        let quiet = |attendant: &dyn Attendant| attendant.before_snapshot();
        match self.attend("quiescing", SNAPSHOT_WAIT, quiet) {
            Err(error) if ignore_errors => {
                let image = self.parts.options.name.clone();
                tracing::warn!(image, error = %error.sentence(), "a snapshot is taken all the same");
                Ok(())
            }
            quieted => quieted,
        }
    }

    /// Does the work after `command`. The image had `size_bytes` before it.
    pub(super) fn attend_after(&mut self, command: &Command, size_bytes: u64) {
        let image = self.parts.options.name.clone();
        if quiesces(command).is_some() {
            let thaw = |attendant: &dyn Attendant| {
                attendant.after_snapshot();
                Ok(())
            };
            if let Err(error) = self.attend("unquiescing", SNAPSHOT_WAIT, thaw) {
                tracing::error!(image, error = %error.sentence(), "the device's users may be left quiesced");
            }
        }
        let now = self.parts.device.size_bytes();
        if now != size_bytes {
            let resized =
                self.attend("resizing", RESIZE_WAIT, move |attendant| attendant.resized(now));
            if let Err(error) = resized {
                tracing::error!(image, error = %error.sentence(), size_bytes = now, "the device keeps its old size");
            }
        }
    }

    /// Lets the attendant do something, and serves clients until that is done.
    fn attend(
        &mut self,
        what: &str,
        limit: Duration,
        work: impl FnOnce(&dyn Attendant) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let Some(attendant) = &self.attendant else { return Ok(()) };
        let attendance = Attendance::begin(attendant, &self.parts.wake, work)?;
        let deadline = Instant::now() + limit;
        let mut ready = Vec::new();
        loop {
            if let Some(outcome) = attendance.take() {
                return outcome;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.fatal.is_some() {
                return Err(too_slow(what, limit));
            }
            let wait = if self.has_more() { Duration::ZERO } else { left };
            if let Err(error) = self.poll.wait(Some(wait), &mut ready) {
                return Err(marcot::Error::from_io("cannot serve the image meanwhile", error));
            }
            self.take_events(&ready);
            // Control clients that sent more than one command get their turn afterwards.
            self.commands_left = false;
            if !self.serve_round() && !ready.is_empty() {
                // A client that hung up is ready all the time. It is dealt with afterwards.
                std::thread::sleep(PAUSE);
            }
            self.answer_finished();
        }
    }

    /// Sets the attendant.
    pub(super) fn set_attendant(&mut self, attendant: Arc<dyn Attendant>) {
        self.attendant = Some(attendant);
    }
}

/// Whether users of the image are quiesced around `command`; if so, whether the command is carried out even
/// where that fails.
fn quiesces(command: &Command) -> Option<bool> {
    match command {
        Command::SnapCreate { .. } => Some(false),
        Command::SnapCreateWith { quiesce: QuiesceMode::IgnoreErrors, .. } => Some(true),
        _ => None,
    }
}
