//! Sequences written by hand, with a crash at every change of the disk.

use marcot_sim::scenarios::all;
use marcot_sim::{Settings, run};

#[test]
fn every_scenario_survives_a_crash_at_every_change_of_the_disk() {
    for (number, scenario) in (0..).zip(all()) {
        // With another seed, other sectors survive a crash.
        for seed in 0..4 {
            let seed = 1000 * seed + number;
            let profile = scenario.profile;
            let settings = Settings { seed, profile, crash_one_in: 1, lines: false };
            let outcome = run(settings, &scenario.operations);
            let failed = outcome.failure.map(|f| (f.violation, f.step, f.crash));
            assert!(failed.is_none(), "{} (seed {seed}): {failed:?}", scenario.name);
        }
    }
}
