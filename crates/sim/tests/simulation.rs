//! A fixed set of seeds, and the claim that a run depends only on its seed.

use marcot_sim::{Outcome, Profile, Settings, generate, run};

/// Number of operations in a sequence.
const LENGTH: usize = 50;

fn run_seed(seed: u64, crash_one_in: u64) -> Outcome {
    let profile = Profile::of(seed);
    let settings = Settings { seed, profile, crash_one_in, lines: false };
    run(settings, &generate(seed, profile, LENGTH))
}

#[test]
fn the_fixed_seeds_lose_nothing_at_a_crash_at_any_change_of_the_disk() {
    for seed in 1..=48 {
        let outcome = run_seed(seed, 1);
        assert!(outcome.failure.is_none(), "seed {seed}: {:#?}", outcome.failure);
        assert!(outcome.ios > 50, "seed {seed} did nothing");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let mut before = 0;
    for seed in 100..116 {
        let (first, second) = (run_seed(seed, 4), run_seed(seed, 4));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.ios, second.ios, "seed {seed}");
        assert_ne!(first.hash, before, "seed {seed}");
        before = first.hash;
    }
}
