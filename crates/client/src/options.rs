//! How a client behaves: what interrupts it, who is warned, who may do what.

use std::fmt;
use std::sync::Arc;

use marcot::{Error, ImageId, Limits, Result};
use marcot_serve::control::Interrupt;
use marcot_serve::mapping::MappedRecord;

use crate::image_spec::ImageSpec;
use crate::operation::{Attempt, Operation};

/// What a caller should be told although the operation goes on.
///
/// It reads as a sentence.
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning {
    /// An owner gives no sign of life. What is told comes from disk, which may be older.
    OwnerSilent(Error),
    /// What listens in an image's directory is not one of the pool's own processes, and is not asked.
    OwnerRefused(Error),
    /// The record of a mapped device makes no sense and is left out.
    RecordRefused(Error),
    /// What is mapped now, and cannot be written to, is mapped already, as this device.
    MappedAlready(Box<MappedRecord>),
    /// Several devices show what was asked for.
    MappedMoreThanOnce {
        /// What they show.
        image: ImageSpec,
        /// The one that was taken.
        record: Box<MappedRecord>,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnerSilent(error) => write!(f, "{}; this is what is on disk", error.sentence()),
            Self::OwnerRefused(error) => write!(f, "{}", error.sentence()),
            Self::RecordRefused(error) => {
                write!(f, "{}; it is left out until it is removed", error.sentence())
            }
            Self::MappedAlready(record) => {
                write!(f, "the image is mapped already as {}", record.device.display())
            }
            Self::MappedMoreThanOnce { image, record } => {
                write!(f, "{image} is mapped more than once; {} is meant", record.device.display())
            }
        }
    }
}

/// How a [`crate::Client`] behaves. The default is never interrupted, tells nobody of warnings, and
/// lets everything be done that the operating system permits.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use marcot_client::{Interrupt, Options};
///
/// let stop = Arc::new(AtomicBool::new(false));
/// let seen = Arc::clone(&stop);
/// let options = Options::new()
///     .interrupt(Interrupt::when(move || seen.load(Ordering::Relaxed)))
///     .on_warning(|warning| eprintln!("warning: {warning}"));
/// # let _ = options;
/// ```
#[derive(Clone)]
pub struct Options {
    pub(crate) limits: Limits,
    pub(crate) interrupt: Interrupt,
    on_warning: Arc<dyn Fn(&Warning) + Send + Sync>,
    admit: Arc<Admission>,
}

type Admission = dyn Fn(&Attempt<'_>) -> Result<()> + Send + Sync;

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            interrupt: Interrupt::never(),
            on_warning: Arc::new(|_| {}),
            admit: Arc::new(|_| Ok(())),
        }
    }
}

impl Options {
    /// The default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory and files that an open image may have.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// What ends operations early, with `Interrupted`. They leave nothing half done behind that the next
    /// operation does not clear.
    #[must_use]
    pub fn interrupt(self, interrupt: Interrupt) -> Self {
        Self { interrupt, ..self }
    }

    /// Who is told of what does not end an operation.
    #[must_use]
    pub fn on_warning(self, warn: impl Fn(&Warning) + Send + Sync + 'static) -> Self {
        Self { on_warning: Arc::new(warn), ..self }
    }

    /// Who decides whether an operation may begin. It is asked once for each, before anything is done,
    /// and its error is that of the operation.
    #[must_use]
    pub fn admission(
        self,
        admit: impl Fn(&Attempt<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { admit: Arc::new(admit), ..self }
    }

    pub(crate) fn warn(&self, warning: &Warning) {
        (self.on_warning)(warning);
    }

    /// Carries out an operation. **Every operation passes here, once**, before anything of it is done:
    /// the place to check a caller's rights, and to count and time operations. What operations have in
    /// common inside, such as reading a head, does not.
    ///
    /// # Errors
    /// Those of [`Self::admission`], and then those of `work`.
    pub(crate) fn operate<T>(
        &self,
        operation: Operation,
        pool: &str,
        image: Option<ImageId>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let attempt = Attempt { operation, pool, image };
        (self.admit)(&attempt)?;
        let outcome = work();
        if let Err(error) = &outcome {
            tracing::trace!(%attempt, error = %error.sentence(), "failed");
        }
        outcome
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("limits", &self.limits).finish_non_exhaustive()
    }
}
