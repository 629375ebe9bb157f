//! The probe accepts a service whose answers are odd, and refuses one that lacks a guarantee, by its name.

use marcot_backend::object::{Findings, Guarantee, ProbeError};
use marcot_s3_test::{Chance, Dialect, Options};

use super::*;

fn probed(dialect: Dialect) -> (Result<Findings, ProbeError>, Vec<String>) {
    let server = Server::start(Options { dialect, ..Options::default() });
    let outcome = connected(&server).probe(policy());
    (outcome, server.names(BUCKET))
}

#[test]
fn a_service_that_lacks_a_guarantee_is_refused_by_its_name() {
    let gap = Some(Duration::from_millis(20));
    for (dialect, lacks) in [
        (Dialect { ignores_if_none_match: true, ..Dialect::default() }, Guarantee::CreateOnce),
        (Dialect { ignores_if_match: true, ..Dialect::default() }, Guarantee::SwapUnchanged),
        (Dialect { swap_creates: true, ..Dialect::default() }, Guarantee::SwapExisting),
        (Dialect { unlocked: gap, ..Dialect::default() }, Guarantee::OneWinner),
        (Dialect { unlocked_swaps: gap, ..Dialect::default() }, Guarantee::OneSwapWinner),
        (Dialect { stale_reads: true, ..Dialect::default() }, Guarantee::ReadAfterWrite),
        (Dialect { stale_lists: 2, ..Dialect::default() }, Guarantee::ListAfterWrite),
        (Dialect { no_ranges: true, ..Dialect::default() }, Guarantee::RangeRead),
        (Dialect { no_swaps: true, ..Dialect::default() }, Guarantee::Swap),
    ] {
        let (outcome, left) = probed(dialect.clone());
        let error = outcome.expect_err("a service that lacks something");
        assert_eq!(error, ProbeError::Lacks(lacks, "s3://bucket/pool".to_string()), "{dialect:?}");
        assert!(error.to_string().contains(lacks.name()), "{error}");
        assert!(left.is_empty(), "{dialect:?} left {left:?}");
    }
}

#[test]
fn a_service_with_odd_answers_is_accepted() {
    let plain = Findings { version_of_bytes: true, ..Findings::default() };
    for dialect in [
        Dialect::default(),
        Dialect { lost_race: Some((409, "ConditionalRequestConflict")), ..Dialect::default() },
        Dialect { lost_race: Some((404, "NoSuchKey")), ..Dialect::default() },
        Dialect { lost_race: Some((500, "InternalError")), ..Dialect::default() },
        Dialect { page_objects: 2, ..Dialect::default() },
        Dialect { empty_parts: true, ..Dialect::default() },
    ] {
        let (outcome, left) = probed(dialect.clone());
        assert_eq!((outcome, left.len()), (Ok(plain), 0), "{dialect:?}");
    }
    let (outcome, _) = probed(Dialect { new_etags: true, ..Dialect::default() });
    assert_eq!(outcome, Ok(Findings { version_of_bytes: false, ..plain }));
}

#[test]
fn etags_without_quotes_are_found_out_and_used() {
    let dialect = Dialect { bare_etags: true, ..Dialect::default() };
    let server = Server::start(Options { dialect, ..Options::default() });
    let connection = connected(&server);
    let found = connection.probe(policy()).unwrap();
    assert!(found.dialect.bare_etags);
    // The connection goes on with them.
    assert_eq!(connection.probe(policy()).unwrap(), found);
}

#[test]
fn one_change_a_second_is_accepted() {
    let change_interval = Some(Duration::from_millis(100));
    let (outcome, left) = probed(Dialect { change_interval, ..Dialect::default() });
    assert_eq!((outcome.is_ok(), left.len()), (true, 0), "{outcome:?}");
}

#[test]
fn a_service_that_fails_now_and_then_is_accepted() {
    for seed in 1..=4 {
        let server = Server::plain();
        server.set_chance(Some(Chance::new(seed, 100)));
        let outcome = connected(&server).probe(policy());
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
    }
}
