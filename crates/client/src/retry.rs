//! How often, and for how long, something is tried again: the one policy of this crate.
//!
//! An image has one owner at a time, and owners come and go while others want something of them. So
//! every operation may meet an owner that is about to close the image, one that has it open but does not
//! listen yet, or one that only keeps it open. Each of these passes by itself or when it is asked to,
//! and is worth another attempt; an image that somebody uses is not.
//!
//! What is *not* here, on purpose:
//! - The engine tries again where it reads what others replace meanwhile (a head that has moved, a
//!   lock that is held for a moment, a snapshot in the middle of being unprotected), and where it takes
//!   away what a removed child leaves at its parent. Those waits are steps of its protocols, they take
//!   milliseconds, they must do without a control socket, and its simulator must see them.
//! - Whether an owner that has an image open gives a sign of life is looked at by the connection to it
//!   ([`marcot_serve::control::Patience`]).

use std::time::Duration;

use marcot::{Error, ErrorKind, Result, World};
use marcot_serve::control::Interrupt;

/// How often something is tried when the owner changes under us.
const ATTEMPTS_MAX: u32 = 100;
/// Between two attempts. Short commands hold an image for a few milliseconds.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(50);
/// How often an image is tried that somebody has open who does not listen, being at its end.
const FREE_ATTEMPTS_MAX: u32 = 40;
/// As that, for a snapshot: who reads one and does not listen may go on for long. Also for an image
/// that a server is asked for, where others wait meanwhile.
const UNREAD_ATTEMPTS_MAX: u32 = 4;

/// Who keeps an image, or a snapshot of it, from being had alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holders {
    /// The process that has it open for writing.
    Owner,
    /// Those who have the image, or a snapshot of it, open for reading only.
    Readers,
}

/// What came of asking others to give way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// Somebody did, or is gone.
    Way,
    /// Somebody uses it: who.
    Use(String),
    /// Whoever has it cannot be asked: why.
    Refusal(String),
    /// There was nobody to ask.
    Nothing,
}

/// How long to wait for an image that somebody has open who does not listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Until a short command would be over.
    ForCommands,
    /// Hardly: others wait meanwhile.
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

/// The error of what was ended by an interruption.
pub(crate) fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}

/// True for a refusal of the operating system's, such as a lease on a file: nobody can give way.
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

/// Tries things again, as the policy says.
pub(crate) struct Retry<'a> {
    /// What ends it early.
    pub interrupt: &'a Interrupt,
    /// How time passes between attempts.
    pub world: &'a World,
}

impl Retry<'_> {
    fn pause(&self) {
        self.world.clock.pause(ATTEMPT_INTERVAL);
    }

    /// Tries until there is an outcome; `None` when there was none in time.
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

    /// As [`Self::until_some`], without a pause: for connections that break. Making one anew waits by
    /// itself where nobody is there.
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

    /// Tries what needs an image (`Owned`) or a snapshot of it (`Busy`) for itself. `ask` has those who
    /// keep it open without using it close it; who is about to close it is waited for. `None` where
    /// somebody else always had it again.
    ///
    /// # Errors
    /// Those of `attempt`; `Owned` or `Busy`, with who uses it, where somebody does: `in_use` makes the
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

    /// Tries what an image's owner can be in the way of (`Owned`), until it is not, for a while. `ask`
    /// has it go away where it can; else it comes to know what is going to be done.
    ///
    /// # Errors
    /// Those of `attempt` and of `ask`; the last `Owned` where it was always in the way.
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
