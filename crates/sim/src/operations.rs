//! The operations of a simulated user, and random sequences of them.
//!
//! Images are named by a slot number, and snapshots by the number of a letter. So a sequence still makes sense
//! when operations are removed from it: an operation that has nothing to work on is skipped.

use std::fmt;

use crate::disk::Fault;
use crate::random::Rng;

/// Number of slots for images.
pub const SLOTS: u8 = 5;
/// Number of snapshot names of an image.
pub const SNAPS: u8 = 3;
/// Limit on the size of an ordinary image, in bytes.
const SIZE_MAX: u64 = 40 * 4096;

/// An act of one of the two owners in an [`Operation::Stale`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Write and flush.
    Write(u64),
    /// Take a snapshot.
    Snapshot,
    /// Checkpoint.
    Checkpoint,
    /// Give space back.
    Reclaim,
    /// Close.
    Close,
}

/// One operation. Sizes, offsets and lengths are in bytes. Ranges are taken modulo the image's size.
#[allow(missing_docs, reason = "slots, snapshots and pools by number, bytes: said above")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Create an image.
    Create { slot: u8, pool: u8, size: u64 },
    /// Write.
    Write { slot: u8, offset: u64, length: u64, salt: u64 },
    /// Several writes in one batch.
    Batch { slot: u8, writes: Vec<(u64, u64)>, salt: u64 },
    /// Write and flush.
    Fua { slot: u8, offset: u64, length: u64, salt: u64 },
    /// Fill the open data segment except a few blocks.
    Fill { slot: u8, salt: u64 },
    /// Discard. For the engine, writing zeros is the same.
    Discard { slot: u8, offset: u64, length: u64 },
    /// Flush.
    Flush { slot: u8 },
    /// Read all of it.
    Read { slot: u8 },
    /// Take a snapshot.
    Snapshot { slot: u8, snap: u8 },
    /// Protect a snapshot.
    Protect { slot: u8, snap: u8 },
    /// Unprotect a snapshot.
    Unprotect { slot: u8, snap: u8 },
    /// Remove a snapshot.
    RemoveSnapshot { slot: u8, snap: u8, force: bool },
    /// Roll back.
    Rollback { slot: u8, snap: u8 },
    /// Clone.
    Clone { slot: u8, snap: u8, to: u8, pool: u8, format: u8 },
    /// Flatten.
    Flatten { slot: u8 },
    /// Copy some of the blocks that a flatten would copy.
    FlattenPart { slot: u8 },
    /// Resize.
    Resize { slot: u8, size: u64 },
    /// Remove an image.
    Remove { slot: u8 },
    /// Rename an image.
    Rename { slot: u8 },
    /// Move an image to the trash. It can be used there all the same.
    Trash { slot: u8 },
    /// Give it a name again.
    Restore { slot: u8, renamed: bool },
    /// Collect a pool.
    Gc { pool: u8 },
    /// Compact an image and give its space back.
    Reclaim { slot: u8 },
    /// Checkpoint.
    Checkpoint { slot: u8 },
    /// Background work until there is none.
    Background { slot: u8 },
    /// Close and, at the next use, open again.
    Close { slot: u8 },
    /// Close, and go on in the other process.
    Move { slot: u8 },
    /// The other process tries to become the owner, and reads.
    Contend { slot: u8 },
    /// The owner is stopped and loses its lock. The other process takes over. Then the first one goes on.
    Stale { slot: u8, successor: Vec<Act>, stale: Vec<Act> },
    /// Check all pools.
    Check,
    /// Arm a fault for the n-th call that it can hit from now on.
    Arm { fault: Fault, after: u64 },
    /// A process is killed at the n-th I/O from now, or after the next operation.
    Kill { process: u8, after: u64 },
    /// The power goes at the n-th I/O from now, or after the next operation.
    PowerCut { after: u64 },
}

impl Operation {
    /// The slot of its image.
    #[must_use]
    pub fn slot(&self) -> Option<u8> {
        match self {
            Self::Write { slot, .. }
            | Self::Batch { slot, .. }
            | Self::Fua { slot, .. }
            | Self::Fill { slot, .. }
            | Self::Discard { slot, .. }
            | Self::Flush { slot }
            | Self::Snapshot { slot, .. }
            | Self::Protect { slot, .. }
            | Self::Unprotect { slot, .. }
            | Self::RemoveSnapshot { slot, .. }
            | Self::Rollback { slot, .. }
            | Self::Flatten { slot }
            | Self::FlattenPart { slot }
            | Self::Resize { slot, .. }
            | Self::Reclaim { slot }
            | Self::Checkpoint { slot }
            | Self::Background { slot } => Some(*slot),
            _ => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// The kinds of trouble in a random sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Crashes only.
    Crashes,
    /// A disk that is full from time to time.
    Space,
    /// Syncs and reads that fail.
    Errors,
    /// Silent damage. The sequence ends at the first error.
    Damage,
}

impl Profile {
    /// The profile of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        match seed % 8 {
            0..=3 => Self::Crashes,
            4 => Self::Space,
            5 => Self::Errors,
            _ => Self::Damage,
        }
    }
}

struct Generator {
    rng: Rng,
    profile: Profile,
}

impl Generator {
    fn slot(&mut self) -> u8 {
        // Lower slots are used more often, so that families get deep.
        let draw = |rng: &mut Rng| rng.below(u64::from(SLOTS));
        draw(&mut self.rng).min(draw(&mut self.rng)).min(draw(&mut self.rng)) as u8
    }

    fn snap(&mut self) -> u8 {
        self.rng.below(u64::from(SNAPS)).min(self.rng.below(u64::from(SNAPS))) as u8
    }

    fn size(&mut self) -> u64 {
        let size = self.rng.below(SIZE_MAX) + 1;
        if self.rng.one_in(2) { size.next_multiple_of(4096) } else { size }
    }

    fn range(&mut self) -> (u64, u64) {
        let offset = self.rng.below(SIZE_MAX);
        let longest = if self.rng.one_in(3) { 60_000 } else { 9_000 };
        let length = 1 + self.rng.below(longest);
        match self.rng.below(4) {
            0 => (offset, length),
            _ => (offset & !4095, length.next_multiple_of(4096)),
        }
    }

    fn act(&mut self) -> Act {
        match self.rng.below(8) {
            0..=2 => Act::Write(self.rng.draw()),
            3 => Act::Snapshot,
            4 => Act::Checkpoint,
            5 => Act::Reclaim,
            _ => Act::Close,
        }
    }

    /// Some acts. The first one is not only to close.
    fn acts(&mut self) -> Vec<Act> {
        let first = match self.act() {
            Act::Close => Act::Snapshot,
            act => act,
        };
        let more = (0..self.rng.below(3)).map(|_| self.act());
        std::iter::once(first).chain(more).collect()
    }

    fn fault(&mut self) -> Option<Fault> {
        let pick = |rng: &mut Rng, of: &[Fault]| of[rng.below(of.len() as u64) as usize];
        match self.profile {
            Profile::Crashes => None,
            Profile::Space => Some(Fault::NoSpace),
            Profile::Errors => Some(pick(&mut self.rng, &[Fault::FailSync, Fault::FailRead])),
            Profile::Damage => {
                let of = [Fault::DropWrite, Fault::MisdirectWrite, Fault::Corrupt];
                Some(pick(&mut self.rng, &of))
            }
        }
    }

    fn operation(&mut self) -> Operation {
        let (slot, snap) = (self.slot(), self.snap());
        let pool = self.rng.below(2) as u8;
        let (offset, length) = self.range();
        let salt = self.rng.draw();
        match self.rng.below(100) {
            0..16 => Operation::Write { slot, offset, length, salt },
            16..19 => {
                let writes = (0..2 + self.rng.below(3)).map(|_| self.range()).collect();
                Operation::Batch { slot, writes, salt }
            }
            19..22 => Operation::Fua { slot, offset, length, salt },
            22..29 => Operation::Discard { slot, offset, length },
            29..34 => Operation::Flush { slot },
            34..38 => Operation::Read { slot },
            38..46 => Operation::Snapshot { slot, snap },
            46..51 => Operation::Protect { slot, snap },
            51..53 => Operation::Unprotect { slot, snap },
            53..57 => Operation::RemoveSnapshot { slot, snap, force: self.rng.one_in(2) },
            57..60 => Operation::Rollback { slot, snap },
            60..68 => {
                let to = 1 + self.rng.below(u64::from(SLOTS) - 1) as u8;
                let format = 1 + self.rng.below(2) as u8;
                Operation::Clone { slot, snap, to, pool, format }
            }
            68..70 => Operation::Flatten { slot },
            70..71 => Operation::FlattenPart { slot },
            71..74 => Operation::Resize { slot, size: self.size() },
            74..76 => Operation::Remove { slot },
            76..77 => match self.rng.below(3) {
                0 => Operation::Rename { slot },
                1 => Operation::Trash { slot },
                _ => Operation::Restore { slot, renamed: self.rng.one_in(2) },
            },
            77..80 => Operation::Gc { pool },
            80..82 => Operation::Reclaim { slot },
            82..84 => Operation::Checkpoint { slot },
            84..85 => Operation::Background { slot },
            85..89 => Operation::Close { slot },
            89..91 => Operation::Move { slot },
            91..92 => Operation::Contend { slot },
            92..94 => {
                let (successor, stale) = (self.acts(), self.acts());
                Operation::Stale { slot, successor, stale }
            }
            94..95 => Operation::Check,
            95..97 => Operation::Create { slot, pool, size: self.size() },
            97..98 => Operation::PowerCut { after: self.rng.below(20) },
            _ => Operation::Kill { process: pool, after: self.rng.below(20) },
        }
    }
}

/// A random sequence.
#[must_use]
pub fn generate(seed: u64, profile: Profile, length: usize) -> Vec<Operation> {
    let mut generator = Generator { rng: Rng::with(seed, 2), profile };
    let mut operations = Vec::with_capacity(length);
    for slot in 0..2 {
        let size = generator.size();
        operations.push(Operation::Create { slot, pool: slot % 2, size });
    }
    while operations.len() < length {
        if generator.rng.one_in(6)
            && operations.len() > length / 4
            && let Some(fault) = generator.fault()
        {
            let after = generator.rng.below(10);
            operations.push(Operation::Arm { fault, after });
        }
        let operation = generator.operation();
        let crash = matches!(operation, Operation::PowerCut { .. } | Operation::Kill { .. });
        // Silent damage is checked when the sequence ends.
        if !(crash && profile == Profile::Damage) {
            operations.push(operation);
        }
    }
    operations
}
