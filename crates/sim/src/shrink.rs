//! Shrinking: makes a failing sequence as small as possible.

use crate::operations::Operation;
use crate::rules::Settings;
use crate::runner::{Failure, run};

/// Limit on the runs that are tried.
const TRIES_MAX: u32 = 400;
/// Limit on the time that is spent.
const TIME_MAX: std::time::Duration = std::time::Duration::from_secs(60);

/// A small sequence that fails, how it is run, and how it fails.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// The operations.
    pub operations: Vec<Operation>,
    /// The settings, with lines kept, and with crashes at all I/Os where a crash is needed.
    pub settings: Settings,
    /// How it fails.
    pub failure: Failure,
}

/// Removes operations while the sequence still fails by the same rule.
#[must_use]
pub fn shrink(settings: Settings, operations: &[Operation], failure: &Failure) -> Shrunk {
    let settings = Settings {
        crash_one_in: if failure.crash.is_some() { 1 } else { 0 },
        lines: true,
        ..settings
    };
    let same = |operations: &[Operation]| {
        let found = run(settings, operations).failure;
        found.filter(|f| f.violation.rule == failure.violation.rule)
    };
    let end = operations.len().min(failure.step + 1);
    let mut best = Shrunk { operations: operations.to_vec(), settings, failure: failure.clone() };
    let mut tries = 0;
    let began = std::time::Instant::now();
    if let Some(failure) = same(&operations[..end]) {
        best = Shrunk { operations: operations[..end].to_vec(), settings, failure };
    } else if let Some(failure) = same(operations) {
        best.failure = failure;
    } else {
        // With other settings the crash makes other choices, so repeat the run with its old settings.
        best.settings = Settings { crash_one_in: settings.crash_one_in, ..best.settings };
        return best;
    }
    let mut size = best.operations.len().div_ceil(2);
    while size > 0 && tries < TRIES_MAX {
        let mut at = 0;
        while at < best.operations.len() && tries < TRIES_MAX && began.elapsed() < TIME_MAX {
            let mut fewer = best.operations.clone();
            fewer.drain(at..(at + size).min(best.operations.len()));
            tries += 1;
            match same(&fewer) {
                Some(failure) => {
                    best.operations = fewer;
                    best.failure = failure;
                }
                None => at += size,
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    best
}
