//! Tests of the probe with a service in memory. Services that lack something are tried over HTTP in
//! `tests/object_probe.rs`.

use std::sync::Arc;

use super::super::retry::Policy;
use super::super::testing::{Plan, Planned, retry, unknown, world};
use super::*;

fn run(service: &Arc<Planned>) -> Result<Findings, ProbeError> {
    let (retry, _) = retry(Policy::command());
    let settled = Settled::new(Arc::<Planned>::clone(service), retry);
    probe(&settled, &*world().0.random, &|_| {})
}

#[test]
fn a_service_that_keeps_its_promises_passes_and_is_left_empty() {
    let service = Planned::new([]);
    let found = run(&service).unwrap();
    assert_eq!(found, Findings::default());
    assert_eq!(service.memory.list("", None).unwrap().objects, []);
}

#[test]
fn lost_answers_do_not_change_the_verdict() {
    for lost in 0..25 {
        let plans = (0..lost).map(|_| Plan::Done);
        let service = Planned::new(plans.clone().chain([Plan::DoneUnknown]));
        assert!(run(&service).is_ok(), "the answer {lost} was lost");
        let service = Planned::new(plans.chain([Plan::Fails(unknown())]));
        assert!(run(&service).is_ok(), "the request {lost} was lost");
    }
}

#[test]
fn a_service_that_refuses_is_no_service_that_lacks_something() {
    let refused = ServiceError::Refused("no".to_string());
    let service = Planned::new([Plan::Fails(refused.clone())]);
    assert_eq!(run(&service), Err(ProbeError::Service(refused)));
}

#[test]
fn a_refusal_names_the_guarantee_and_the_remedy_in_one_sentence() {
    let error = ProbeError::Lacks(Guarantee::SwapExisting, "s3://b/p".to_string()).to_string();
    assert!(
        error.contains("s3://b/p") && error.contains("'no swap of a missing object'"),
        "{error}"
    );
    assert!(error.contains("use a service") && !error.contains('\n'), "{error}");
}
