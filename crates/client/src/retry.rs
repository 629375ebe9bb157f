//! How often and how long attempts are repeated: the one policy of this crate.
//!
//! An image has one owner at a time, and owners come and go while other processes need the image. So
//! every operation may meet an owner that is about to close the image, one that has it open but does not
//! listen yet, or one that only keeps it open. Each of these states ends by itself or on request,
//! so it is worth another attempt. An image in use is not.
//!
//! Two kinds of repetition are *not* here, on purpose:
//! - The engine repeats reads of files that others replace meanwhile (a head that has moved, a
//!   lock that is held for a moment, a snapshot in the middle of being unprotected), and repeats attempts to
//!   remove what a removed child leaves at its parent. Those waits are steps of its protocols, they take
//!   milliseconds, they must do without a control socket, and its simulator must see them.
//! - The connection to an owner checks whether the owner gives signs of life
//!   ([`marcot_serve::control::Patience`]).

use std::time::Duration;

use marcot::{Error, ErrorKind, Result, World};
use marcot_serve::control::Interrupt;

/// How often an attempt is made when the owner keeps changing.
const ATTEMPTS_MAX: u32 = 100;
/// Pause between two attempts. Short commands hold an image for a few milliseconds.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(50);
/// How often to repeat an attempt while the owner does not listen, since it is about to close the image.
const FREE_ATTEMPTS_MAX: u32 = 40;
/// As that, for a snapshot: a reader that does not listen may go on for long. Also for an image
/// that a server opens, since its clients wait meanwhile.
const UNREAD_ATTEMPTS_MAX: u32 = 4;

/// The processes that have an image or a snapshot of it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holders {
    /// The process that has it open for writing.
    Owner,
    /// Those who have the image, or a snapshot of it, open for reading only.
    Readers,
}

/// The result of asking other processes to close an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// One of them closed it, or has ended.
    Way,
    /// One uses it: which.
    Use(String),
    /// The process that has it open cannot be asked: why.
    Refusal(String),
    /// None listens.
    Nothing,
}

/// How long to wait for an image whose owner does not listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// As long as a short command takes.
    ForCommands,
    /// Hardly, since others wait meanwhile.
    AtOnce,
}

impl Wait {
    fn attempts_max(self, holders: Holders) -> u32 {
        match (self, holders) {
            (Self::ForCommands, Holders::Owner) => FREE_ATTEMPTS_MAX,
            (Self::AtOnce, _) | (_, Holders::Readers) => UNREAD_ATTEMPTS_MAX,
        }
    }
}

/// The error of an interrupted operation.
pub(crate) fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}

/// True for a refusal by the operating system, for example because of a lease on a file: no process could close
/// the image.
fn is_of_system(error: &Error) -> bool {
    let mut below = std::error::Error::source(error);
    while let Some(error) = below {
        if error.is::<std::io::Error>() {
            return true;
        }
        below = error.source();
    }
    false
}

/// Repeats attempts by this policy.
pub(crate) struct Retry<'a> {
    /// Ends the repetition early.
    pub interrupt: &'a Interrupt,
    /// Whose clock makes the pauses.
    pub world: &'a World,
}

impl Retry<'_> {
    fn pause(&self) {
        self.world.clock.pause(ATTEMPT_INTERVAL);
    }

    /// Waits for work that goes on elsewhere.
    ///
    /// # Errors
    /// `Interrupted` by the caller.
    pub fn pause_for(&self, duration: Duration) -> Result<()> {
        match self.interrupt.came() {
            true => Err(interrupted()),
            false => {
                self.world.clock.pause(duration);
                Ok(())
            }
        }
    }

    /// Repeats the attempt until it has a result; `None` if it has none in time.
    ///
    /// # Errors
    /// Those of `attempt`; `Interrupted`.
    pub fn until_some<T>(
        &self,
        mut attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        for left in (0..ATTEMPTS_MAX).rev() {
            match attempt()? {
                Some(value) => return Ok(Some(value)),
                None if self.interrupt.came() => return Err(interrupted()),
                None if left > 0 => self.pause(),
                None => {}
            }
        }
        Ok(None)
    }

    /// As [`Self::until_some`], without a pause, for connections that break. Connecting again waits by
    /// itself if nobody listens.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub fn at_once<T>(&self, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(value) = attempt()? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Runs an attempt that needs an image (else `Owned`) or a snapshot of it (else `Busy`) for itself. `ask`
    /// asks the processes that keep it open without using it to close it. One that is about to close it is
    /// waited for. `None` if another process had it open again each time.
    ///
    /// # Errors
    /// Those of `attempt`; `Owned` or `Busy`, naming the user, if it is in use: `in_use` makes the
    /// sentence of an image that is in use.
    pub fn for_itself<T>(
        &self,
        wait: Wait,
        mut attempt: impl FnMut() -> Result<T>,
        mut ask: impl FnMut(Holders) -> Result<Given>,
        in_use: impl Fn() -> String,
    ) -> Result<Option<T>> {
        let mut alone = 0;
        for _ in 0..ATTEMPTS_MAX {
            let error = match attempt() {
                Err(error)
                    if matches!(error.kind(), ErrorKind::Owned | ErrorKind::Busy)
                        && !is_of_system(&error) =>
                {
                    error
                }
                outcome => return outcome.map(Some),
            };
            let holders = match error.kind() {
                ErrorKind::Owned => Holders::Owner,
                _ => Holders::Readers,
            };
            match ask(holders)? {
                Given::Way => {}
                Given::Refusal(why) => return Err(Error::new(error.kind(), why)),
                Given::Use(by) => {
                    let what = match holders {
                        Holders::Owner => in_use(),
                        Holders::Readers => error.message().to_string(),
                    };
                    return Err(Error::new(error.kind(), format!("{what} by {by}")));
                }
                Given::Nothing if alone >= wait.attempts_max(holders) => return Err(error),
                Given::Nothing => {
                    alone += 1;
                    self.pause();
                }
            }
        }
        Ok(None)
    }

    /// Repeats an attempt that an image's owner can be in the way of (`Owned`), for a while. `ask`
    /// asks the owner to close the image. If it keeps it open, the attempt itself has to notify it.
    ///
    /// # Errors
    /// Those of `attempt` and of `ask`; the last `Owned` if the owner was in the way each time.
    pub fn when_free<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T>,
        mut ask: impl FnMut() -> Result<Given>,
    ) -> Result<Option<T>> {
        let mut last = None;
        let outcome = self.until_some(|| match attempt() {
            Err(error) if error.kind() == ErrorKind::Owned => {
                last = Some(error);
                ask().map(|_| None)
            }
            outcome => outcome.map(Some),
        });
        match (outcome, last) {
            (Ok(None), Some(error)) => Err(error),
            (outcome, _) => outcome,
        }
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
