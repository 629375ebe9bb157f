//! Faults of the medium. Each is armed for the n-th call that it can hit, so that the runner knows what to
//! expect.

use std::collections::BTreeMap;

/// A fault of the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A sync of a file or directory fails once. Bytes of the file that were not stored are dropped.
    FailSync,
    /// A call that allocates finds no space, and so do the next few.
    NoSpace,
    /// A read fails once.
    FailRead,
    /// A write is acknowledged and never reaches the medium.
    DropWrite,
    /// A write reaches the wrong place of the medium.
    MisdirectWrite,
    /// A stored bit flips.
    Corrupt,
}

impl Fault {
    /// True for faults without an error for the engine.
    #[must_use]
    pub fn silent(self) -> bool {
        matches!(self, Self::DropWrite | Self::MisdirectWrite | Self::Corrupt)
    }
}

/// Number of calls that find no space before there is some again.
const NO_SPACE_CALLS: u64 = 3;

/// Armed faults.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    armed: BTreeMap<Fault, u64>,
    no_space_calls: u64,
    /// Number of faults that have hit.
    pub(super) hits: u64,
    /// Places that silent faults have damaged.
    pub(super) places: u64,
}

impl Faults {
    pub(super) fn arm(&mut self, fault: Fault, after: u64) {
        self.armed.insert(fault, after);
    }

    pub(super) fn disarm(&mut self) {
        self.armed.clear();
        self.no_space_calls = 0;
    }

    /// True where this call is hit.
    pub(super) fn hits(&mut self, fault: Fault) -> bool {
        if fault == Fault::NoSpace && self.no_space_calls > 0 {
            self.no_space_calls -= 1;
            self.hits += 1;
            return true;
        }
        let Some(after) = self.armed.get_mut(&fault) else { return false };
        if *after > 0 {
            *after -= 1;
            return false;
        }
        self.armed.remove(&fault);
        if fault == Fault::NoSpace {
            self.no_space_calls = NO_SPACE_CALLS - 1;
        }
        self.hits += 1;
        self.places += match fault {
            Fault::DropWrite | Fault::Corrupt => 1,
            Fault::MisdirectWrite => 2,
            Fault::FailSync | Fault::NoSpace | Fault::FailRead => 0,
        };
        true
    }
}
