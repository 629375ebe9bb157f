//! Mistakes made on purpose, so that `marcot-sim` can show that it would find them.
//!
//! Only the feature `deliberate-faults` compiles them in; without it [`is`] is a constant, and
//! nothing of this is left in a program. One mistake at a time, for one thread.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A flush does not sync the log.
    SkipLogSync,
    /// A checkpoint in the background does not sync the log.
    CheckpointSkipsLog,
    /// The head is published before map and table pages are synced.
    HeadBeforePages,
    /// Dead segments are removed before the head that does without them is durable.
    RemoveBeforeHead,
    /// A snapshot's space is given back before the head that lacks the snapshot is durable.
    PunchBeforeRoot,
    /// Replay accepts groups of any epoch.
    ReplayStaleEpoch,
    /// Replay does not compare data with its checksums.
    ReplayUnverified,
    /// Replay goes on after a gap in the numbers of groups.
    ReplayGap,
    /// A snapshot names the root of the last checkpoint.
    SnapshotWithoutCheckpoint,
    /// The name of a new segment is not made durable.
    SkipNameSync,
    /// A clone's record is written after its head.
    CloneRecordLate,
    /// Children in other pools are forgotten.
    ChildrenOfOwnPool,
    /// Garbage collection forgets that snapshots are roots.
    GcForgetsSnapshots,
    /// Garbage collection forgets that clones are roots.
    GcForgetsClones,
    /// Reads are not verified.
    ReadUnverified,
    /// Shrinking leaves what lies beyond the end.
    ShrinkKeepsEnd,
    /// Flatten leaves blocks in the parent's pool.
    FlattenWithoutCopy,
    /// Flatten says that copies are there before they are durable.
    CopiesUnsynced,
    /// Garbage collection forgets that a flatten is making copies.
    GcForgetsCopies,
    /// An owner does not look whether it was replaced.
    SkipFence,
    /// An owner goes on after a failed sync as if nothing had been lost.
    ForgetPoison,
    /// Compaction copies blocks that were overwritten since.
    CompactDead,
    /// What arrived of a write that failed is not undone durably.
    FailedAppendStays,
    /// Groups say that what was never synced before them was durable.
    DurableTooFar,
    /// Groups do not say what was durable before them.
    DurableUntold,
    /// Writers are told that what is still under way is stored.
    ToldUnderWay,
    /// A flush does not wait for what is under way.
    FlushUnderWay,
    /// At rest, slots are punched that the durable head still names.
    PunchBeforeHead,
    /// A flatten does not say that the image goes on naming what its parent does.
    FlattenLeavesNoMark,
}

/// All of them.
#[cfg(feature = "deliberate-faults")]
pub const ALL: [Fault; 29] = [
    Fault::SkipLogSync,
    Fault::CheckpointSkipsLog,
    Fault::HeadBeforePages,
    Fault::RemoveBeforeHead,
    Fault::PunchBeforeRoot,
    Fault::ReplayStaleEpoch,
    Fault::ReplayUnverified,
    Fault::ReplayGap,
    Fault::SnapshotWithoutCheckpoint,
    Fault::SkipNameSync,
    Fault::CloneRecordLate,
    Fault::ChildrenOfOwnPool,
    Fault::GcForgetsSnapshots,
    Fault::GcForgetsClones,
    Fault::ReadUnverified,
    Fault::ShrinkKeepsEnd,
    Fault::FlattenWithoutCopy,
    Fault::CopiesUnsynced,
    Fault::GcForgetsCopies,
    Fault::SkipFence,
    Fault::ForgetPoison,
    Fault::CompactDead,
    Fault::FailedAppendStays,
    Fault::DurableTooFar,
    Fault::DurableUntold,
    Fault::ToldUnderWay,
    Fault::FlushUnderWay,
    Fault::PunchBeforeHead,
    Fault::FlattenLeavesNoMark,
];

#[cfg(feature = "deliberate-faults")]
thread_local! {
    static MADE: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Makes a mistake in this thread from now on, or none.
#[cfg(feature = "deliberate-faults")]
pub fn make(fault: Option<Fault>) {
    MADE.set(fault);
}

/// True where this mistake is to be made.
#[cfg(feature = "deliberate-faults")]
#[must_use]
pub fn is(fault: Fault) -> bool {
    MADE.get() == Some(fault)
}

/// True where this mistake is to be made: never.
#[cfg(not(feature = "deliberate-faults"))]
#[must_use]
pub const fn is(_: Fault) -> bool {
    false
}
