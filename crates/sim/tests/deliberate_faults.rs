//! The simulator finds every deliberate mistake in the engine.
#![cfg(feature = "deliberate-faults")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use marcot::fault::{Fault, IN_A_BUCKET, ON_ONE_MACHINE, make};
use marcot_sim::machines::commands::{self, Command};
use marcot_sim::machines::{closed, copying, replaced, stalls, turmoil};
use marcot_sim::scenarios::all;
use marcot_sim::{Operation, Profile, Rule, Settings, Violation, generate, records, run};

/// Random sequences that are tried after the scenarios.
const SEEDS: u64 = 16;
/// Number of operations of each sequence.
const LENGTH: usize = 50;

fn sequences() -> impl Iterator<Item = (String, Settings, Vec<Operation>)> {
    let scenarios = (0..4).flat_map(|seed| {
        (0..).zip(all()).map(move |(number, s)| {
            let (profile, crash_one_in) = (s.profile, 1);
            let seed = 1000 * seed + number;
            (
                s.name.to_owned(),
                Settings { seed, profile, crash_one_in, lines: false },
                s.operations,
            )
        })
    });
    let random = (1..=SEEDS).map(|seed| {
        let profile = Profile::of(seed);
        let settings = Settings { seed, profile, crash_one_in: 2, lines: false };
        (format!("seed {seed}"), settings, generate(seed, profile, LENGTH))
    });
    scenarios.chain(random)
}

/// Random runs of several machines, and rounds of each.
const TURMOILS: u64 = 120;
const ROUNDS: u64 = 6;
/// Runs of owners that compact beside their log.
const COPYING: u64 = 40;
/// Runs of owners that close an image while a part of its log is under way.
const CLOSED: u64 = 4;

/// A check of pools in a bucket.
type Check = Box<dyn Fn() -> Result<(), Violation>>;
/// Checks, with their names.
type Checks = Box<dyn Iterator<Item = (String, Check)>>;

/// Checks of the records of a pool.
fn of_records() -> Checks {
    let records = (0..40).map(|seed| {
        let check = move || records::run(seed).map(drop);
        (format!("records, seed {seed}"), Box::new(check) as Check)
    });
    Box::new(records)
}

/// Checks of owners that are stalled, and of takeovers.
fn of_owners() -> Checks {
    let attempts = std::iter::once({
        let check = || stalls::attempt_all(1).map(drop);
        ("takeovers that die".to_owned(), Box::new(check) as Check)
    });
    let cases = (0..).zip(stalls::cases(0)).map(|(number, case)| {
        let check = move || {
            let case = stalls::Case { seed: number, ..case };
            stalls::run_all(case, 5).map(drop)
        };
        (format!("stalled owner, {case:?}"), Box::new(check) as Check)
    });
    Box::new(attempts.chain(cases))
}

/// Checks of what an owner leaves behind that was replaced.
fn of_the_replaced() -> Checks {
    let check = || replaced::run_all(1);
    Box::new(std::iter::once(("an owner that was replaced".to_owned(), Box::new(check) as Check)))
}

/// Checks of owners that close an image while a part of its log is under way.
fn of_the_closed() -> Checks {
    let closed = (0..CLOSED).map(|seed| {
        let check = move || closed::run(seed).map(drop);
        (format!("a close, seed {seed}"), Box::new(check) as Check)
    });
    Box::new(closed)
}

/// Checks of a command that is stalled at every request while another one runs.
fn of_commands(stalled: Command, other: Command) -> Checks {
    let check = move || commands::run_all(1, stalled, other, 1).map(drop);
    Box::new(std::iter::once((format!("{stalled:?} and {other:?}"), Box::new(check) as Check)))
}

/// Checks of owners that compact beside their log.
fn of_copies() -> Checks {
    let copies = (0..COPYING).map(|seed| {
        let check = move || copying::run(seed);
        (format!("copies, seed {seed}"), Box::new(check) as Check)
    });
    Box::new(copies)
}

/// Checks of machines that do all at once.
fn of_machines() -> Checks {
    let turmoils = (0..TURMOILS).map(|seed| {
        let check = move || turmoil::run(seed, ROUNDS).map(drop);
        (format!("machines, seed {seed}"), Box::new(check) as Check)
    });
    Box::new(turmoils)
}

/// The checks that look for a mistake in a pool in a bucket.
fn checks_for(fault: Fault) -> Checks {
    match fault {
        Fault::StampIgnored
        | Fault::UnknownIsDone
        | Fault::UnknownIsLost
        | Fault::RenameUnmarked
        | Fault::NoTombstone => of_records(),
        Fault::SegmentsListedLate => of_commands(Command::Collect, Command::Create),
        Fault::HeadsListedOnce => of_commands(Command::Collect, Command::Inherit),
        Fault::YoungCollected | Fault::OthersTakenBack => {
            of_commands(Command::Create, Command::Collect)
        }
        Fault::CloneUnchecked => of_commands(Command::CloneProtected, Command::Unprotect),
        Fault::FenceBeforeHead
        | Fault::FenceCollected
        | Fault::FenceIgnored
        | Fault::NumbersNotReserved
        | Fault::HeadBeforeUploads
        | Fault::ReplayedNotStored
        | Fault::LogForgottenEarly => of_owners(),
        Fault::RestReplayed | Fault::UploadReplayed | Fault::FencesRemoved => of_the_replaced(),
        Fault::ClosedUnderWay => of_the_closed(),
        Fault::LogBehindCopiesNotUploaded | Fault::ParkedOvertaken => of_copies(),
        _ => of_machines(),
    }
}

/// The sequence or check that finds a fault, how many were tried, and how it fails.
fn find(fault: Fault) -> Option<(String, usize, Violation)> {
    make(Some(fault));
    let on_one_machine = sequences().map(|(name, settings, operations)| {
        (name, run(settings, &operations).failure.map(|failure| failure.violation))
    });
    let in_a_bucket = checks_for(fault).map(|(name, check)| {
        let caught = catch_unwind(AssertUnwindSafe(check));
        let panicked = |_| Err(Violation { rule: Rule::Panic, message: "a panic".to_owned() });
        (name, caught.unwrap_or_else(panicked).err())
    });
    let all: Box<dyn Iterator<Item = (String, Option<Violation>)>> =
        match IN_A_BUCKET.contains(&fault) {
            true => Box::new(in_a_bucket),
            false => Box::new(on_one_machine),
        };
    let found =
        (1..).zip(all).find_map(|(tried, (name, violation))| Some((name, tried, violation?)));
    make(None);
    found
}

fn find_all(faults: impl IntoIterator<Item = Fault>) {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for fault in faults {
        match find(fault) {
            Some((name, tried, violation)) => println!(
                "{fault:?}: found by sequence {tried}, {name}: {:?}: {}",
                violation.rule,
                violation.message.lines().next().unwrap_or_default()
            ),
            None => missed.push(fault),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn the_simulator_finds_every_deliberate_fault() {
    find_all(ON_ONE_MACHINE);
}

#[test]
fn the_simulator_finds_every_deliberate_fault_in_a_bucket() {
    find_all(IN_A_BUCKET);
}

#[test]
fn the_same_sequences_find_nothing_without_a_fault() {
    for (name, settings, operations) in sequences() {
        let failure = run(settings, &operations).failure;
        assert!(failure.is_none(), "{name}, without a fault: {failure:?}");
    }
}
