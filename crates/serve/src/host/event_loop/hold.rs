//! Keeping everybody waiting, while all members of a group come to a snapshot of the same moment.
//!
//! While an image is held, its thread serves one control client and nobody else. So no write is acknowledged
//! between the moment when the last member is held and the moment when the first one is released.

use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::EventLoop;
use crate::control::{Command, ControlConnection, GroupStep, QuiesceMode, Reply};

/// Longest time for which an image is held. Guests wait meanwhile, so a client that hangs must not keep it.
const HOLD_TIME_MAX: Duration = Duration::from_secs(30);

/// A command that quiets the users of an image as the first step of a snapshot of a group does.
fn as_snapshot(ignore_errors: bool) -> Command {
    let name = String::new();
    match ignore_errors {
        true => Command::SnapCreateWith { name, quiesce: QuiesceMode::IgnoreErrors },
        false => Command::SnapCreate { name },
    }
}

impl EventLoop {
    /// Carries out a command of the control client with this index, but for [`GroupStep::Hold`].
    pub(super) fn execute_for(
        &mut self,
        index: usize,
        command: &Command,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Reply> {
        match command {
            Command::ForGroup { step: GroupStep::Quiesce { ignore_errors } } => {
                if self.quiet_for.is_some() {
                    let message = "a snapshot of another group is being taken";
                    return Err(Error::new(ErrorKind::Busy, message));
                }
                self.quiet_for = Some(index);
                let quiet = self.attend_before(&as_snapshot(*ignore_errors));
                if quiet.is_err() {
                    self.end_quiet();
                }
                quiet.map(|()| Reply::Done)
            }
            Command::ForGroup { step: GroupStep::Release } => {
                if self.quiet_for == Some(index) {
                    self.end_quiet();
                }
                Ok(Reply::Done)
            }
            // Without being held, the image would have another state than the others.
            Command::ForGroup { step: GroupStep::Create(_) | GroupStep::RollBack(_) } => {
                let message = "the image is not held any more";
                Err(Error::new(ErrorKind::Interrupted, message))
            }
            command => self.execute(command, progress),
        }
    }

    /// The image's users need not be quiet any longer.
    pub(super) fn end_quiet(&mut self) {
        self.quiet_for = None;
        let size_bytes = self.parts.device.size_bytes();
        self.attend_after(&as_snapshot(false), size_bytes);
    }

    /// Serves this control client and nobody else, until it releases the image, has gone, or has had it for
    /// too long.
    pub(super) fn hold(&mut self, index: usize, client: &mut ControlConnection) {
        if !client.begin() {
            return;
        }
        client.answer(Ok(Reply::Done));
        let size_bytes = self.parts.device.size_bytes();
        let beating = self.begin_busy(None);
        let deadline = Instant::now() + HOLD_TIME_MAX;
        let mut held = true;
        while held && !client.is_over() && self.fatal.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let image = &self.parts.options.name;
                tracing::warn!(%image, "a snapshot of a group takes too long, and its image is served again");
                break;
            }
            wait_for(client, left);
            client.transmit();
            client.receive();
            held = self.serve_holder(client);
        }
        self.end_busy(beating);
        if self.quiet_for == Some(index) {
            self.end_quiet();
        }
        // A rollback may have changed the size.
        self.attend_after(&Command::Status, size_bytes);
    }

    /// Carries out the commands that have come from the client for which the image is held. Returns false where
    /// it has released the image.
    fn serve_holder(&mut self, client: &mut ControlConnection) -> bool {
        while let Some(command) = client.next_command() {
            if !client.begin() {
                return true;
            }
            match &command {
                Command::ForGroup { step: GroupStep::Release } => {
                    client.answer(Ok(Reply::Done));
                    return false;
                }
                Command::ForGroup { step: GroupStep::Create(_) | GroupStep::RollBack(_) } => {
                    let outcome = self.parts.device.execute(&command, &mut |_, _| {});
                    if let Err(error) = &outcome {
                        self.note_failure(error);
                    }
                    let size_bytes = self.parts.device.size_bytes();
                    let shared = &self.parts.shared;
                    shared.size_bytes.store(size_bytes, std::sync::atomic::Ordering::Release);
                    client.answer(outcome);
                }
                _ => {
                    let message = "the image is held for a snapshot of a group";
                    client.answer(Err(Error::new(ErrorKind::Busy, message)));
                }
            }
        }
        true
    }
}

/// Waits until a control client can be served, or for `limit`.
fn wait_for(client: &ControlConnection, limit: Duration) {
    let mut wanted = PollFlags::empty();
    wanted.set(PollFlags::IN, client.wants_to_receive());
    wanted.set(PollFlags::OUT, client.wants_to_send());
    let mut fds = [PollFd::from_borrowed_fd(client.socket(), wanted)];
    // Where the wait fails, as by a signal, the caller looks at the time and waits again.
    let _ = poll(&mut fds, Timespec::try_from(limit).ok().as_ref());
}
