//! How a client behaves: what interrupts it, who gets warnings, who may do what.

use std::fmt;
use std::sync::Arc;

use marcot::{Error, ImageId, Limits, Result};
use marcot_serve::control::Interrupt;
use marcot_serve::mapping::MappedRecord;

use crate::image_spec::ImageSpec;
use crate::operation::{Attempt, Operation};

/// A problem that the caller should know of, although the operation goes on.
///
/// It reads as a sentence.
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning {
    /// An owner gives no sign of life. The answer comes from disk and may be out of date.
    OwnerSilent(Error),
    /// The socket in an image's directory does not belong to one of the pool's own processes, and is not used.
    OwnerRefused(Error),
    /// The record of a mapped device makes no sense and is left out.
    RecordRefused(Error),
    /// An image or snapshot that is being mapped read-only is mapped already, as this device.
    MappedAlready(Box<MappedRecord>),
    /// Several devices show the requested image or snapshot.
    MappedMoreThanOnce {
        /// The image or snapshot.
        image: ImageSpec,
        /// The device that is used.
        record: Box<MappedRecord>,
    },
    /// An import or copy goes on with what an earlier run has left.
    GoesOn {
        /// The name of the image that is being made.
        image: String,
        /// What is there already, in bytes of the source.
        done_bytes: u64,
        /// The size of the source in bytes.
        size_bytes: u64,
    },
    /// An import or copy has ended before its time, and what is there stays.
    Kept {
        /// The name of the image that was being made.
        image: String,
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
            Self::GoesOn { image, done_bytes, size_bytes } => {
                write!(f, "going on with '{image}': {done_bytes} of {size_bytes} bytes are there")
            }
            Self::Kept { image } => {
                write!(f, "what is there of '{image}' is kept: the same command goes on with it")
            }
            Self::MappedMoreThanOnce { image, record } => {
                write!(f, "{image} is mapped more than once; {} is meant", record.device.display())
            }
        }
    }
}

/// How a [`crate::Client`] behaves. By default it is never interrupted, drops warnings, and
/// allows everything that the operating system permits.
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
    /// The default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits of the memory and files of an open image.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// What ends operations early, with `Interrupted`. An interrupted operation leaves nothing half done that
    /// the next operation does not clean up.
    #[must_use]
    pub fn interrupt(self, interrupt: Interrupt) -> Self {
        Self { interrupt, ..self }
    }

    /// Who gets the warnings.
    #[must_use]
    pub fn on_warning(self, warn: impl Fn(&Warning) + Send + Sync + 'static) -> Self {
        Self { on_warning: Arc::new(warn), ..self }
    }

    /// Decides whether an operation may begin. It is called once for each operation, before anything is done.
    /// Its error becomes the error of the operation.
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

    /// Carries out an operation. **Every operation calls this once**, before anything of it is done:
    /// the place to check a caller's rights, and to count and time operations. Internal steps that operations
    /// share, such as reading a head, do not call this.
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
