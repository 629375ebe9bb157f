//! Which programs may read and write a pool: the levels of the format in the pool's record.
//!
//! The format has levels, numbered from 1 on; section 10 of `docs/format.md` lists them. A pool says which level a
//! program must know to read it, and which to write it. They are raised, never lowered. A program that does not
//! know of levels at all is held off by feature bits in the frame of the record.

use marcot_backend::{Key, SwapError};
use marcot_format::frame::{FORMAT_LEVEL, FrameKind, decode, decode_message};
use marcot_format::record::PoolRecord;
use marcot_store::LockMode;

use super::pool::Pool;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};

/// How often a change of a pool's record is tried again when other hosts change it too.
const LOST_MAX: u32 = 100;

/// Which levels of the format programs must know to use a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Levels {
    /// To read it.
    pub read: u32,
    /// To write it.
    pub write: u32,
    /// What this program knows.
    pub known: u32,
}

impl Levels {
    pub(crate) fn of(record: &PoolRecord) -> Self {
        let read = record.read_level.max(1);
        Self { read, write: record.write_level.max(read), known: FORMAT_LEVEL }
    }

    /// True where this program may read the pool.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.read <= self.known
    }

    /// True where this program may write the pool.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.write <= self.known
    }

    /// Fails where this program must not read the pool.
    pub(crate) fn check_readable(&self) -> Result<()> {
        if self.is_readable() {
            return Ok(());
        }
        let Self { read, known, .. } = self;
        let message = format!(
            "it can be read only by programs that know level {read} of the format, and this one knows level {known}: use a newer marcot"
        );
        fail(ErrorKind::NewerFormat, message)
    }

    /// Why this program must not write the pool of this name.
    #[must_use]
    pub fn why_read_only(&self, pool: &str) -> String {
        let Self { write, known, .. } = self;
        format!(
            "pool '{pool}' can be written only by programs that know level {write} of the format, and this one knows level {known}, so it is read-only for you: use a newer marcot"
        )
    }
}

/// Fails where a record that is to be replaced was written by a newer version, which this one must not change.
pub(super) fn refuse_newer(kind: FrameKind, stored: &[u8], shown: &str) -> Result<()> {
    match decode(kind, stored) {
        Ok(frame) if frame.read_only => {
            let message =
                format!("{shown} uses features of a newer marcot, so it can only be read");
            fail(ErrorKind::NewerFormat, message)
        }
        _ => Ok(()),
    }
}

impl Pool {
    /// Which levels of the format programs must know to use the pool, as when it was opened.
    #[must_use]
    pub fn levels(&self) -> Levels {
        Levels::of(&self.0.record)
    }

    /// Raises the level that programs must know to write the pool, where it is lower than this one.
    pub(crate) fn require_level(&self, level: u32) -> Result<()> {
        match self.levels().write < level {
            true => self.require_levels(None, Some(level)).or_else(|error| {
                // Another process may have raised it since the pool was opened.
                let now = self.store().pool(self.name())?.levels();
                if now.write >= level { Ok(()) } else { Err(error) }
            }),
            false => Ok(()),
        }
    }

    /// Raises the levels that programs must know to read and to write the pool. `None` leaves a level as it is.
    /// Who may read the pool only with a level needs that level to write it, too.
    ///
    /// Programs that have the pool open go on with what they read when they opened it.
    ///
    /// # Errors
    /// `Invalid` for a level that is lower than the pool's, or that this program does not know; `ReadOnly`,
    /// `NewerFormat`; what the operating system says.
    pub fn require_levels(&self, read: Option<u32>, write: Option<u32>) -> Result<()> {
        let mut outcome = Ok(());
        self.change_record(|record| {
            let now = Levels::of(record);
            let raised = |wanted: Option<u32>, now: u32, what: &str| match wanted {
                Some(level) if level < now => {
                    let message = format!(
                        "pool '{}' requires level {now} to {what} it, and levels are never lowered",
                        self.name()
                    );
                    fail(ErrorKind::Invalid, message)
                }
                Some(level) if level > FORMAT_LEVEL => {
                    let message = format!(
                        "this marcot knows the format up to level {FORMAT_LEVEL}, and could not {what} the pool any more"
                    );
                    fail(ErrorKind::Invalid, message)
                }
                wanted => Ok(wanted.unwrap_or(now)),
            };
            let levels = raised(read, now.read, "read")
                .and_then(|read| Ok((read, raised(write, now.write, "write")?.max(read))));
            match levels {
                Ok((read, write)) if (read, write) != (now.read, now.write) => {
                    (record.read_level, record.write_level) = (read, write);
                }
                Ok(_) => {}
                Err(error) => outcome = Err(error),
            }
        })?;
        outcome
    }

    /// The pool's record as it is on the medium now, with its bytes.
    pub(super) fn record_now(&self) -> Result<(PoolRecord, Vec<u8>)> {
        let bytes = self.read_record(&Key::Pool)?;
        let decoded = decode_message::<PoolRecord>(FrameKind::Pool, &bytes);
        let context = || format!("cannot use {}", self.records().show(&Key::Pool));
        Ok((decoded.map_err(|e| Error::from_format(context(), e))?.0, bytes))
    }

    /// Changes the pool's record. Nothing is written where nothing changes. `change` may be called again, with the
    /// record that another host has stored meanwhile.
    pub(super) fn change_record(&self, mut change: impl FnMut(&mut PoolRecord)) -> Result<()> {
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let context = || format!("cannot change the record of pool '{}'", self.name());
        for _ in 0..LOST_MAX {
            let (before, from) = self.record_now()?;
            // They may have been raised since the pool was opened.
            let levels = Levels::of(&before);
            if !levels.is_writable() {
                return fail(ErrorKind::ReadOnly, levels.why_read_only(self.name()));
            }
            refuse_newer(FrameKind::Pool, &from, &self.records().show(&Key::Pool))?;
            let mut record = before.clone();
            change(&mut record);
            if record == before {
                return Ok(());
            }
            match self.records().replace(&Key::Pool, &from, &record.to_file()) {
                Ok(()) => return Ok(()),
                Err(SwapError::Changed) => {}
                Err(SwapError::Unchanged(error) | SwapError::Unknown(error)) => {
                    return Err(error).at(context);
                }
            }
        }
        let message = "others change it all the time; try again later";
        Err(Error::new(ErrorKind::Busy, message).context(context()))
    }
}
