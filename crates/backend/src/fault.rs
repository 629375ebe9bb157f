//! Deliberate mistakes, with which `marcot-sim` shows that it would find them.
//!
//! They are compiled in only with the feature `deliberate-faults`. Without it [`is`] is the constant
//! false, and a program contains none of this. A thread makes one mistake at a time.

/// A deliberate mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A flush does not sync the log.
    SkipLogSync,
    /// A checkpoint in the background does not sync the log.
    CheckpointSkipsLog,
    /// The head is published before map and table pages are synced.
    HeadBeforePages,
    /// Dead segments are removed before the head without them is durable.
    RemoveBeforeHead,
    /// A snapshot's space is given back before the head without the snapshot is durable.
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
    /// Shrinking leaves the blocks beyond the new end mapped.
    ShrinkKeepsEnd,
    /// Flatten leaves blocks in the parent's pool.
    FlattenWithoutCopy,
    /// Flatten names copies before they are durable.
    CopiesUnsynced,
    /// Garbage collection forgets that a flatten is making copies.
    GcForgetsCopies,
    /// An owner does not check whether it was replaced.
    SkipFence,
    /// An owner goes on after a failed sync as if nothing had been lost.
    ForgetPoison,
    /// Compaction copies blocks that were overwritten meanwhile.
    CompactDead,
    /// The part of a failed write that reached the file is not undone durably.
    FailedAppendStays,
    /// Groups claim that earlier groups were durable that were never synced.
    DurableTooFar,
    /// Groups do not say which earlier groups were durable.
    DurableUntold,
    /// Writes are answered as stored while they are still in flight.
    ToldUnderWay,
    /// A flush does not wait for writes in flight.
    FlushUnderWay,
    /// An idle image punches slots that the durable head still names.
    PunchBeforeHead,
    /// The log goes on behind a segment of copies, and replay cannot follow.
    PassageForgotten,
    /// A head names copies that compaction has made before they are durable.
    CopiesBesideUnsynced,
    /// A flatten leaves no mark that the image still names segments of its former parent.
    FlattenLeavesNoMark,
    /// A data segment is used again before a head is durable that does not need it.
    ReuseBeforeHead,
    /// A data segment is used again that an earlier owner may still write to.
    ReuseOfEarlierOwner,
    /// An object that is read back is not searched for one's own stamp.
    StampIgnored,
    /// A request without a known outcome counts as done.
    UnknownIsDone,
    /// A request without a known outcome counts as lost.
    UnknownIsLost,
    /// A name that moves to another directory is not marked in the old one.
    RenameUnmarked,
    /// A head that is removed leaves no tombstone.
    NoTombstone,
    /// An owner of an image in a bucket fences the owner before, and replaces the head after that.
    FenceBeforeHead,
    /// Fences are removed with the parts of the log that a root covers.
    FenceCollected,
    /// An owner gives numbers to segments that the owner before may give too.
    NumbersNotReserved,
    /// A head is stored before the segments that it names.
    HeadBeforeUploads,
    /// Garbage collection lists segments after heads.
    SegmentsListedLate,
    /// Garbage collection lists heads once.
    HeadsListedOnce,
    /// Garbage collection frees segments that an owner has uploaded and that no head names yet.
    YoungCollected,
    /// Garbage collection takes back images that another host is making.
    OthersTakenBack,
    /// A part of the log counts as stored where the service does not say whether it is, and the next one follows.
    PartUnsettled,
    /// A part of the log that meets a fence counts as stored.
    FenceIgnored,
    /// Parts of the log are removed before a head covers them.
    LogForgottenEarly,
    /// An upload replaces a segment that exists.
    UploadReplaces,
    /// An owner replays what lies on its host, although another host was the owner meanwhile.
    RestReplayed,
    /// A reader replays a segment that an owner has uploaded that was replaced.
    UploadReplayed,
    /// A flush leaves on its host what a process that was killed had written.
    ReplayedNotStored,
    /// A head names a part of the log behind a segment of copies that was not uploaded.
    LogBehindCopiesNotUploaded,
    /// A request that overlaps one that waits for a service does not come after it.
    ParkedOvertaken,
    /// A clone does not look at the snapshot again once its record is there.
    CloneUnchecked,
    /// The fences of a log are removed with its image.
    FencesRemoved,
    /// An owner closes an image while a part of its log is under way.
    ClosedUnderWay,
}

/// Mistakes on one machine.
#[cfg(feature = "deliberate-faults")]
pub const ON_ONE_MACHINE: [Fault; 33] = [
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
    Fault::PassageForgotten,
    Fault::CopiesBesideUnsynced,
    Fault::FlattenLeavesNoMark,
    Fault::ReuseBeforeHead,
    Fault::ReuseOfEarlierOwner,
];

/// Mistakes in pools in a bucket.
#[cfg(feature = "deliberate-faults")]
pub const IN_A_BUCKET: [Fault; 25] = [
    Fault::StampIgnored,
    Fault::UnknownIsDone,
    Fault::UnknownIsLost,
    Fault::RenameUnmarked,
    Fault::NoTombstone,
    Fault::FenceBeforeHead,
    Fault::FenceCollected,
    Fault::NumbersNotReserved,
    Fault::HeadBeforeUploads,
    Fault::SegmentsListedLate,
    Fault::HeadsListedOnce,
    Fault::YoungCollected,
    Fault::OthersTakenBack,
    Fault::PartUnsettled,
    Fault::FenceIgnored,
    Fault::LogForgottenEarly,
    Fault::UploadReplaces,
    Fault::RestReplayed,
    Fault::UploadReplayed,
    Fault::ReplayedNotStored,
    Fault::LogBehindCopiesNotUploaded,
    Fault::ParkedOvertaken,
    Fault::CloneUnchecked,
    Fault::FencesRemoved,
    Fault::ClosedUnderWay,
];

#[cfg(feature = "deliberate-faults")]
thread_local! {
    static MADE: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Sets the mistake that this thread makes from now on, or none.
#[cfg(feature = "deliberate-faults")]
pub fn make(fault: Option<Fault>) {
    MADE.set(fault);
}

/// The mistake that this thread makes.
#[cfg(feature = "deliberate-faults")]
#[must_use]
pub fn made() -> Option<Fault> {
    MADE.get()
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
