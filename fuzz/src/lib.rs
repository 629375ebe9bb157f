//! Fuzz targets: one function for every decoder of bytes that others wrote.
//!
//! A target takes any bytes. It panics where the decoder breaks a promise: a panic of its own, a
//! structure that changes when it is encoded and decoded again, more memory than
//! [`Target::bytes_max`] allows, more time than [`TIME_MAX`]. The same functions run in two ways:
//!
//! - `cargo test -p marcot-fuzz` mutates the corpus in `fuzz/corpus` for some seconds, by a seed
//!   that it prints ([`mutate`]); part of `scripts/test`.
//! - `scripts/fuzz` runs them under libFuzzer, guided by coverage, for as long as asked.

pub mod memory;
pub mod mutate;
mod targets;

use std::time::{Duration, Instant};

pub use targets::ALL;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Longest time for one input, whatever it is. Decoders take microseconds; the rest is for machines
/// that do other things too.
pub const TIME_MAX: Duration = Duration::from_secs(2);

/// A decoder under test.
pub struct Target {
    /// Its name, and that of its directory in the corpus.
    pub name: &'static str,
    /// Feeds it bytes.
    pub body: fn(&[u8]),
    /// Bytes it may have allocated at once: so many for every byte of input ...
    pub bytes_per_byte: usize,
    /// ... and so many besides.
    pub bytes_besides: usize,
}

impl Target {
    /// Most bytes allocated at once for an input of this length.
    #[must_use]
    pub fn bytes_max(&self, length: usize) -> usize {
        self.bytes_per_byte * length + self.bytes_besides
    }

    /// Feeds one input.
    ///
    /// # Panics
    /// Where a promise is broken.
    pub fn run(&self, data: &[u8]) {
        let start = Instant::now();
        let ((), peak) = memory::peak_of(|| (self.body)(data));
        let most = self.bytes_max(data.len());
        assert!(peak <= most, "{}: {peak} bytes for {}, at most {most}", self.name, data.len());
        let took = start.elapsed();
        assert!(took <= TIME_MAX, "{}: {took:?} for {} bytes", self.name, data.len());
    }
}

/// The target with a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
