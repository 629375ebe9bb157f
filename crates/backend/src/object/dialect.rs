//! What services of one kind do differently.

/// How a service differs from others of its kind. The probe finds it out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dialect {
    /// Conditions name an ETag without its quotes.
    pub bare_etags: bool,
}
