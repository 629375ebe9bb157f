//! Pools in a bucket: records, and images on several machines.

use marcot_sim::machines::commands::{ALL, run_all};
use marcot_sim::machines::stalls::{self, cases};
use marcot_sim::machines::{closed, copying, replaced, turmoil};
use marcot_sim::records;

/// Seeds of the records.
const SEEDS: u64 = 60;
/// Seeds of machines that do all at once, and rounds of each.
const TURMOILS: u64 = 24;
const ROUNDS: u64 = 6;
/// Seeds of owners that compact beside their log.
const COPYING: u64 = 20;
/// Seeds of owners that close an image while a part of its log is under way.
const CLOSED: u64 = 8;

#[test]
fn an_order_of_the_calls_explains_all_answers_of_records() {
    let (mut unknown, mut faults, mut kills) = (0, 0, 0);
    for seed in 0..SEEDS {
        let ran = records::run(seed).unwrap_or_else(|v| panic!("seed {seed}: {}", v.message));
        (unknown, faults, kills) = (unknown + ran.unknown, faults + ran.faults, kills + ran.kills);
    }
    assert!(
        unknown > SEEDS / 4 && faults > SEEDS && kills > SEEDS / 4,
        "{unknown} {faults} {kills}"
    );
}

#[test]
fn an_owner_that_was_stalled_at_any_request_promises_nothing_that_its_successors_lack() {
    let mut count = 0;
    for (number, case) in (0..).zip(cases(1)) {
        let case = stalls::Case { seed: number, ..case };
        count += stalls::run_all(case, 7).unwrap_or_else(|v| panic!("{:?}: {}", v.rule, v.message));
    }
    assert!(count > 100, "{count}");
}

#[test]
fn commands_on_two_machines_leave_every_image_whole_and_every_child_known() {
    let mut stalls = 0;
    let mut wrong = Vec::new();
    for (number, stalled) in (0..).zip(ALL) {
        for (more, other) in (0..).zip(ALL) {
            match run_all(20 * number + more, stalled, other, 11) {
                Ok(count) => stalls += count,
                Err(v) => wrong.push(format!("{:?}: {}", v.rule, v.message)),
            }
        }
    }
    assert!(stalls > 100, "{stalls}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_takeover_that_dies_leaves_the_owner_alone_unless_the_head_names_another_one() {
    let attempts = stalls::attempt_all(1).unwrap_or_else(|v| panic!("{:?}: {}", v.rule, v.message));
    assert!(attempts > 5, "{attempts}");
}

#[test]
fn what_a_replaced_owner_leaves_behind_is_no_part_of_the_image() {
    for seed in 0..4 {
        replaced::run_all(seed).unwrap_or_else(|v| panic!("{:?}: {}", v.rule, v.message));
    }
}

#[test]
fn what_an_owner_promises_that_compacts_beside_its_log_survives_its_host() {
    for seed in 0..COPYING {
        copying::run(seed).unwrap_or_else(|v| panic!("{:?}: {}", v.rule, v.message));
    }
}

#[test]
fn an_owner_that_closes_an_image_leaves_no_part_of_its_log_under_way() {
    let run = |seed| closed::run(seed).unwrap_or_else(|v| panic!("{:?}: {}", v.rule, v.message));
    let under_way: u64 = (0..CLOSED).map(run).sum();
    assert!(under_way > CLOSED, "{under_way}");
}

#[test]
fn machines_that_do_all_at_once_lose_nothing_and_make_nothing_up() {
    let (mut requests, mut faults, mut deaths, mut flushes) = (0, 0, 0, 0);
    for seed in 0..TURMOILS {
        let ran =
            turmoil::run(seed, ROUNDS).unwrap_or_else(|v| panic!("{:?}: {}", v.rule, v.message));
        (requests, faults) = (requests + ran.requests, faults + ran.faults);
        (deaths, flushes) = (deaths + ran.deaths, flushes + ran.done.flushes);
    }
    let enough =
        requests > 1000 * TURMOILS && faults > TURMOILS && deaths > TURMOILS && flushes > TURMOILS;
    assert!(enough, "{requests} {faults} {deaths} {flushes}");
}

#[test]
fn the_same_seed_gives_the_same_requests_of_all_machines() {
    for seed in [1, 2] {
        let [first, second] = [(); 2].map(|()| turmoil::run(seed, ROUNDS).unwrap());
        assert_eq!(first, second, "seed {seed}");
    }
}
