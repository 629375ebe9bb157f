//! What ends a wait early.

use std::fmt;
use std::sync::Arc;

/// Tells whether what is being done should end: a signal has come, a deadline has passed, the caller of
/// a driver has gone away.
///
/// It is asked again and again while something is waited for, by whatever thread waits, and must answer
/// at once. Once it has said yes, it is expected to go on saying so.
#[derive(Clone, Default)]
pub struct Interrupt(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Interrupt {
    /// Nothing ever ends it.
    #[must_use]
    pub fn never() -> Self {
        Self(None)
    }

    /// It ends once `came` is true.
    pub fn when(came: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(came)))
    }

    /// True once what is being done should end.
    #[must_use]
    pub fn came(&self) -> bool {
        self.0.as_ref().is_some_and(|came| came())
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Interrupt::when(..)" } else { "Interrupt::never()" })
    }
}
