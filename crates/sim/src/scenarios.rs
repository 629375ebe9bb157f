//! Sequences written by hand. Each covers one way to lose data, with a crash at every change of the disk.

use crate::disk::Fault;
use crate::operations::{Act, Operation, Operation::*, Profile};

/// A scenario.
pub struct Scenario {
    /// Its subject.
    pub name: &'static str,
    /// Kinds of trouble.
    pub profile: Profile,
    /// Its operations.
    pub operations: Vec<Operation>,
}

const BLOCK: u64 = 4096;

fn create(slot: u8, pool: u8, blocks: u64) -> Operation {
    Create { slot, pool, size: blocks * BLOCK }
}

fn write(slot: u8, block: u64, blocks: u64) -> Operation {
    Write { slot, offset: block * BLOCK, length: blocks * BLOCK, salt: block + 100 * blocks }
}

fn scenario(name: &'static str, operations: Vec<Operation>) -> Scenario {
    Scenario { name, profile: Profile::Crashes, operations }
}

/// All scenarios.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        scenario(
            "writes, flushes and checkpoints of one image",
            vec![
                create(0, 0, 20),
                write(0, 0, 4),
                Flush { slot: 0 },
                write(0, 2, 4),
                write(0, 10, 1),
                Flush { slot: 0 },
                Discard { slot: 0, offset: 3 * BLOCK + 100, length: 5 * BLOCK },
                Checkpoint { slot: 0 },
                write(0, 1, 8),
                Checkpoint { slot: 0 },
                write(0, 5, 2),
                Close { slot: 0 },
                write(0, 6, 3),
                Flush { slot: 0 },
            ],
        ),
        scenario(
            "an idle image gives space back, and nothing that the head on disk names",
            vec![
                create(0, 0, 60),
                write(0, 0, 60),
                Checkpoint { slot: 0 },
                write(0, 0, 40),
                Background { slot: 0 },
                Discard { slot: 0, offset: 10 * BLOCK, length: 40 * BLOCK },
                Background { slot: 0 },
                write(0, 5, 10),
                Snapshot { slot: 0, snap: 0 },
                write(0, 0, 30),
                Background { slot: 0 },
                Read { slot: 0 },
            ],
        ),
        scenario(
            "a shrunk image shows zeros when it grows again",
            vec![
                create(0, 0, 20),
                write(0, 0, 20),
                Resize { slot: 0, size: 5 * BLOCK + 77 },
                Resize { slot: 0, size: 20 * BLOCK },
                Read { slot: 0 },
                Snapshot { slot: 0, snap: 0 },
                Resize { slot: 0, size: BLOCK },
                Rollback { slot: 0, snap: 0 },
                Read { slot: 0 },
            ],
        ),
        scenario(
            "a snapshot goes, and takes its space and nothing else",
            vec![
                create(0, 0, 30),
                write(0, 0, 30),
                Snapshot { slot: 0, snap: 0 },
                Close { slot: 0 },
                write(0, 0, 20),
                Snapshot { slot: 0, snap: 1 },
                Close { slot: 0 },
                write(0, 5, 20),
                Close { slot: 0 },
                RemoveSnapshot { slot: 0, snap: 1, force: false },
                Reclaim { slot: 0 },
                Read { slot: 0 },
            ],
        ),
        scenario("a family in two pools, and the parent goes", family()),
        scenario("flattened clones outlive all that they came from", heirs()),
        scenario("snapshots and a grandchild, flattened from another pool", deep_family()),
        scenario(
            "a family in one pool, and garbage collection",
            vec![
                create(0, 0, 20),
                write(0, 0, 20),
                Snapshot { slot: 0, snap: 0 },
                Protect { slot: 0, snap: 0 },
                Clone { slot: 0, snap: 0, to: 1, pool: 0, format: 1 },
                write(1, 3, 4),
                Close { slot: 1 },
                Snapshot { slot: 1, snap: 0 },
                Clone { slot: 1, snap: 0, to: 2, pool: 0, format: 2 },
                write(1, 0, 20),
                Close { slot: 1 },
                write(0, 0, 20),
                Close { slot: 0 },
                Snapshot { slot: 1, snap: 1 },
                write(1, 0, 20),
                Close { slot: 1 },
                Gc { pool: 0 },
                Flatten { slot: 1 },
                Unprotect { slot: 0, snap: 0 },
                RemoveSnapshot { slot: 0, snap: 0, force: false },
                RemoveSnapshot { slot: 1, snap: 0, force: true },
                Gc { pool: 0 },
                RemoveSnapshot { slot: 1, snap: 1, force: true },
                Remove { slot: 1 },
                Remove { slot: 0 },
                Gc { pool: 0 },
                Read { slot: 2 },
            ],
        ),
    ];
    all.extend(owners());
    all.extend(media());
    all.push(scenario("a family in the trash and back", trash()));
    all
}

/// A clone of a clone is flattened in their pool. Then both of its ancestors are removed, and nobody collects
/// the pool.
fn heirs() -> Vec<Operation> {
    vec![
        create(0, 0, 20),
        write(0, 0, 20),
        Snapshot { slot: 0, snap: 0 },
        Protect { slot: 0, snap: 0 },
        Clone { slot: 0, snap: 0, to: 1, pool: 0, format: 1 },
        write(1, 3, 4),
        Snapshot { slot: 1, snap: 0 },
        Clone { slot: 1, snap: 0, to: 2, pool: 0, format: 2 },
        write(2, 6, 2),
        Flatten { slot: 2 },
        RemoveSnapshot { slot: 1, snap: 0, force: false },
        Remove { slot: 1 },
        Read { slot: 2 },
        Unprotect { slot: 0, snap: 0 },
        RemoveSnapshot { slot: 0, snap: 0, force: false },
        Remove { slot: 0 },
        Read { slot: 2 },
        Snapshot { slot: 2, snap: 0 },
        Clone { slot: 2, snap: 0, to: 0, pool: 0, format: 2 },
        Flatten { slot: 0 },
        RemoveSnapshot { slot: 2, snap: 0, force: false },
        Remove { slot: 2 },
        Read { slot: 0 },
    ]
}

/// Parent and child go to the trash, are used there, come back under the same name and under another one, and
/// are removed there.
fn trash() -> Vec<Operation> {
    vec![
        create(0, 0, 20),
        write(0, 0, 10),
        Snapshot { slot: 0, snap: 0 },
        Clone { slot: 0, snap: 0, to: 1, pool: 1, format: 2 },
        write(1, 3, 4),
        Trash { slot: 0 },
        Gc { pool: 0 },
        write(0, 5, 2),
        Read { slot: 1 },
        Restore { slot: 0, renamed: true },
        Trash { slot: 1 },
        Close { slot: 1 },
        Snapshot { slot: 1, snap: 0 },
        RemoveSnapshot { slot: 0, snap: 0, force: false },
        Gc { pool: 1 },
        Restore { slot: 1, renamed: false },
        RemoveSnapshot { slot: 1, snap: 0, force: false },
        Rename { slot: 1 },
        Trash { slot: 1 },
        Remove { slot: 1 },
        Trash { slot: 0 },
        Gc { pool: 0 },
        Remove { slot: 0 },
        Check,
    ]
}

/// Clones across pools are flattened. Then all their ancestors are removed.
fn family() -> Vec<Operation> {
    vec![
        create(0, 0, 20),
        write(0, 0, 20),
        Snapshot { slot: 0, snap: 0 },
        Protect { slot: 0, snap: 0 },
        Clone { slot: 0, snap: 0, to: 1, pool: 1, format: 1 },
        Unprotect { slot: 0, snap: 0 },
        write(1, 2, 3),
        Flatten { slot: 1 },
        Unprotect { slot: 0, snap: 0 },
        RemoveSnapshot { slot: 0, snap: 0, force: false },
        Remove { slot: 0 },
        Gc { pool: 0 },
        Read { slot: 1 },
        Rename { slot: 1 },
    ]
}

/// A clone with snapshots is flattened into its pool. One of the snapshots has a clone of its own. Then all
/// ancestors of the clone are removed.
fn deep_family() -> Vec<Operation> {
    vec![
        create(0, 0, 20),
        write(0, 0, 20),
        Snapshot { slot: 0, snap: 0 },
        Protect { slot: 0, snap: 0 },
        Clone { slot: 0, snap: 0, to: 1, pool: 1, format: 1 },
        Snapshot { slot: 1, snap: 0 },
        write(1, 2, 3),
        Snapshot { slot: 1, snap: 1 },
        Clone { slot: 1, snap: 1, to: 2, pool: 1, format: 2 },
        write(1, 8, 2),
        FlattenPart { slot: 1 },
        Gc { pool: 1 },
        write(1, 12, 1),
        RemoveSnapshot { slot: 1, snap: 1, force: false },
        Flatten { slot: 1 },
        Unprotect { slot: 0, snap: 0 },
        RemoveSnapshot { slot: 0, snap: 0, force: false },
        Remove { slot: 0 },
        Gc { pool: 0 },
        Gc { pool: 1 },
        Read { slot: 1 },
        Read { slot: 2 },
        Flatten { slot: 2 },
        Gc { pool: 1 },
        Read { slot: 2 },
    ]
}

/// Two processes and one image, and a log that continues in the next segment.
fn owners() -> Vec<Scenario> {
    vec![
        scenario(
            "two processes want one image",
            vec![
                create(0, 0, 20),
                write(0, 0, 4),
                Contend { slot: 0 },
                Move { slot: 0 },
                Contend { slot: 0 },
            ],
        ),
        scenario(
            "a stale owner wakes up after its successor wrote",
            vec![
                create(0, 0, 20),
                write(0, 0, 4),
                stale(vec![Act::Write(5)], vec![Act::Write(6), Act::Checkpoint, Act::Write(7)]),
                write(0, 8, 4),
                Close { slot: 0 },
            ],
        ),
        scenario(
            "a stale owner wakes up after its successor took a snapshot only",
            vec![
                create(0, 0, 20),
                write(0, 0, 4),
                Checkpoint { slot: 0 },
                stale(vec![Act::Snapshot], vec![Act::Write(6), Act::Checkpoint]),
            ],
        ),
        scenario(
            "a stale owner goes over the end of its segment",
            vec![
                create(0, 0, 64),
                Fill { slot: 0, salt: 3 },
                stale(vec![Act::Checkpoint], vec![Act::Write(6), Act::Write(7)]),
                Read { slot: 0 },
            ],
        ),
        scenario(
            "a stale owner had a segment of copies that its successor removes",
            vec![
                create(0, 0, 40),
                write(0, 5, 6),
                Close { slot: 0 },
                write(0, 34, 4),
                write(0, 15, 14),
                write(0, 20, 2),
                write(0, 22, 2),
                write(0, 24, 2),
                write(0, 26, 2),
                Read { slot: 0 },
                stale(vec![Act::Reclaim, Act::Write(5)], vec![Act::Snapshot]),
                Read { slot: 0 },
            ],
        ),
        scenario("dead segments become the next ones", used_again()),
        scenario(
            "a successor does not use a segment again that a stale owner writes to",
            vec![
                create(0, 0, 100),
                write(0, 2, 90),
                Close { slot: 0 },
                write(0, 0, 2),
                stale((0..50).map(Act::Write).collect(), vec![Act::Write(90), Act::Write(91)]),
                Read { slot: 0 },
            ],
        ),
        scenario(
            "a stale owner does not replace a segment of its successor by one that it uses again",
            of_a_segment_used_again(),
        ),
        scenario(
            "the log goes over the end of a segment",
            vec![
                create(0, 0, 64),
                Fill { slot: 0, salt: 3 },
                // These writes still fit into the segment, the next does not.
                write(0, 0, 20),
                write(0, 30, 20),
                write(0, 55, 9),
                write(0, 50, 3),
                Discard { slot: 0, offset: 0, length: 10 * BLOCK },
                write(0, 60, 1),
                Flush { slot: 0 },
                write(0, 3, 40),
                Close { slot: 0 },
            ],
        ),
        scenario(
            "the log goes over the end of a segment, past a segment of copies",
            vec![
                create(0, 0, 100),
                write(0, 0, 100),
                Close { slot: 0 },
                // The other blocks of the first segment are copied meanwhile.
                Fill { slot: 0, salt: 3 },
                write(0, 0, 20),
                write(0, 30, 20),
                write(0, 55, 9),
                write(0, 50, 3),
                Flush { slot: 0 },
                write(0, 60, 1),
                Checkpoint { slot: 0 },
                write(0, 70, 20),
                Read { slot: 0 },
            ],
        ),
    ]
}

fn stale(successor: Vec<Act>, stale: Vec<Act>) -> Operation {
    Stale { slot: 0, successor, stale }
}

/// A discard fails, and later writes succeed. The stored part of the discard lies where the writes go.
fn no_room() -> Vec<Operation> {
    let mut all = vec![create(0, 0, 20), write(0, 0, 20), Flush { slot: 0 }];
    all.push(Arm { fault: Fault::NoSpace, after: 0 });
    all.push(Discard { slot: 0, offset: 3 * BLOCK, length: 2 * BLOCK });
    all.extend((0..16).map(|block| write(0, block, 1)));
    all
}

/// Scenarios with failing media.
fn media() -> Vec<Scenario> {
    let mut all = Vec::new();
    for after in 0..6 {
        all.push(Scenario {
            profile: Profile::Errors,
            ..scenario(
                "a sync that fails drops what it should have stored",
                vec![
                    create(0, 0, 20),
                    write(0, 0, 8),
                    Flush { slot: 0 },
                    write(0, 4, 8),
                    Arm { fault: Fault::FailSync, after },
                    Flush { slot: 0 },
                    write(0, 6, 4),
                    Snapshot { slot: 0, snap: 0 },
                    Flush { slot: 0 },
                    Close { slot: 0 },
                ],
            )
        });
    }
    for _ in 0..8 {
        all.push(Scenario {
            profile: Profile::Space,
            ..scenario("what found no room does not come back", no_room())
        });
    }
    for (fault, after) in [Fault::DropWrite, Fault::MisdirectWrite, Fault::Corrupt]
        .into_iter()
        .flat_map(|fault| (0..8).map(move |after| (fault, after)))
    {
        all.push(Scenario {
            profile: Profile::Damage,
            ..scenario(
                "damage that nobody tells of",
                vec![
                    create(0, 0, 20),
                    write(0, 0, 12),
                    Snapshot { slot: 0, snap: 0 },
                    Arm { fault, after },
                    write(0, 4, 12),
                    Checkpoint { slot: 0 },
                    write(0, 6, 4),
                    Flush { slot: 0 },
                    Close { slot: 0 },
                ],
            )
        });
    }
    for (fault, after) in [Fault::DropWrite, Fault::Corrupt]
        .into_iter()
        .flat_map(|fault| (0..5).map(move |after| (fault, after)))
    {
        all.push(Scenario {
            profile: Profile::Damage,
            ..scenario("damage of the log, of which later groups tell", damaged_log(fault, after))
        });
    }
    all
}

/// A log with one damaged place, and flushed groups after it.
fn damaged_log(fault: Fault, after: u64) -> Vec<Operation> {
    let mut all = vec![create(0, 0, 20), write(0, 0, 12), Arm { fault, after }];
    for block in 0..4 {
        all.extend([write(0, 2 * block, 3), Flush { slot: 0 }]);
    }
    all
}

/// Half of an image is written again and again, while the other half stays.
fn used_again() -> Vec<Operation> {
    let mut operations = vec![create(0, 0, 160), write(0, 65, 90), Close { slot: 0 }];
    for turn in 0..8 {
        operations.extend([write(0, 0, 60), write(0, turn, 55)]);
        operations.push(if turn % 3 == 0 { Flush { slot: 0 } } else { Read { slot: 0 } });
    }
    operations.extend([Close { slot: 0 }, Read { slot: 0 }, Check]);
    operations
}

/// The owner is replaced when it has a dead segment left to use again.
fn of_a_segment_used_again() -> Vec<Operation> {
    let mut operations = vec![create(0, 0, 140), write(0, 40, 90), Close { slot: 0 }];
    operations.extend(std::iter::repeat_n(write(0, 0, 30), 10));
    // The fourth segment is not half full now, and the first ones are dead.
    operations.extend([write(0, 0, 2), write(0, 2, 2), write(0, 4, 2)]);
    operations
        .extend([stale(vec![Act::Write(5)], (0..6).map(Act::Write).collect()), Read { slot: 0 }]);
    operations
}
