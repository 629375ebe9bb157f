//! The simulator finds every deliberate mistake in the engine.
#![cfg(feature = "deliberate-faults")]

use marcot::fault::{ALL, Fault, make};
use marcot_sim::scenarios::all;
use marcot_sim::{Failure, Operation, Profile, Settings, generate, run};

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

/// The sequence that finds a fault, how many were tried, and how it fails.
fn find(fault: Fault) -> Option<(String, usize, Failure)> {
    make(Some(fault));
    let found = (1..).zip(sequences()).find_map(|(tried, (name, settings, operations))| {
        run(settings, &operations).failure.map(|failure| (name, tried, failure))
    });
    make(None);
    found
}

#[test]
fn the_simulator_finds_every_deliberate_fault() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for fault in ALL {
        match find(fault) {
            Some((name, tried, failure)) => println!(
                "{fault:?}: found by sequence {tried}, {name}: {:?}: {}",
                failure.violation.rule, failure.violation.message
            ),
            None => missed.push(fault),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn the_same_sequences_find_nothing_without_a_fault() {
    for (name, settings, operations) in sequences() {
        let failure = run(settings, &operations).failure;
        assert!(failure.is_none(), "{name}, without a fault: {failure:?}");
    }
}
