//! Each fault of the service, and what it never does.

use std::sync::Arc;

use marcot_backend::object::service::{Condition, ObjectService, ServiceError};

use super::*;

fn service(versions: Versions) -> Arc<Service> {
    Service::new(ServiceSettings { versions, ..ServiceSettings::sound(1) }, 2)
}

fn is_unknown<T>(answer: &Result<T, ServiceError>) -> bool {
    matches!(answer, Err(ServiceError::Unknown(_)))
}

fn content(service: &Arc<Service>, key: &str) -> Option<Vec<u8>> {
    service.bytes(key).map(|bytes| bytes.to_vec())
}

#[test]
fn a_sound_service_keeps_what_the_trait_promises() {
    for versions in [Versions::Counted, Versions::OfContent] {
        let service = service(versions);
        let (one, two) = (service.way(0), service.way(1));
        let first = one.put("a/1", b"x", &Condition::Absent).unwrap();
        assert_eq!(two.put("a/1", b"y", &Condition::Absent), Err(ServiceError::Conflict));
        let second = two.put("a/1", b"y", &Condition::Is(first.clone())).unwrap();
        assert_eq!(one.put("a/1", b"z", &Condition::Is(first)), Err(ServiceError::Conflict));
        assert_eq!(one.get("a/1").unwrap().version, second);
        assert_eq!(one.get_range("a/1", 0..9).unwrap(), b"y");
        assert_eq!(one.get("a/2"), Err(ServiceError::Absent));
        let missing = one.put("a/2", b"z", &Condition::Is(second));
        assert_eq!(missing, Err(ServiceError::Conflict));
        one.remove("a/1").unwrap();
        one.remove("a/1").unwrap();
        assert!(service.keys().is_empty());
        let counts = service.counts(0);
        assert_eq!((counts.get, counts.get_range, counts.put), (2, 1, 3));
        assert_eq!((counts.remove, counts.list, counts.all()), (2, 0, 8));
    }
}

#[test]
fn a_list_comes_in_pages_in_the_order_of_keys() {
    let service = service(Versions::Counted);
    let way = service.way(0);
    for i in (0..20).rev() {
        way.put(&format!("b/{i:02}"), b"", &Condition::None).unwrap();
    }
    way.put("c", b"", &Condition::None).unwrap();
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page = way.list("b/", after.as_deref()).unwrap();
        keys.extend(page.objects.into_iter().map(|object| object.key));
        after = keys.last().cloned();
        if !page.more {
            break;
        }
    }
    assert_eq!(keys, (0..20).map(|i| format!("b/{i:02}")).collect::<Vec<_>>());
    assert!(service.counts(0).list > 1);
}

#[test]
fn a_machine_sees_the_keys_below_its_prefix_only() {
    let service = service(Versions::Counted);
    let (one, two) = (service.way_below(0, "one/"), service.way_below(1, "two/"));
    one.put("a", b"x", &Condition::Absent).unwrap();
    two.put("a", b"y", &Condition::Absent).unwrap();
    assert_eq!(service.keys(), ["one/a", "two/a"]);
    assert_eq!(one.get("a").unwrap().bytes, b"x");
    let keys = |page: Page| page.objects.into_iter().map(|object| object.key).collect::<Vec<_>>();
    assert_eq!(keys(two.list("", None).unwrap()), ["a"]);
    assert!(keys(two.list("", Some("a")).unwrap()).is_empty());
}

#[test]
fn equal_bytes_have_one_version_only_where_versions_are_of_the_content() {
    for (versions, same) in [(Versions::Counted, false), (Versions::OfContent, true)] {
        let service = service(versions);
        let way = service.way(0);
        let first = way.put("a", b"x", &Condition::None).unwrap();
        assert_eq!(way.put("a", b"x", &Condition::None).unwrap() == first, same);
    }
}

#[test]
fn a_lost_answer_or_an_error_after_the_commit_says_nothing_and_the_object_is_there() {
    for fault in [Fault::LostAnswer, Fault::ErrorAfterCommit] {
        let service = service(Versions::Counted);
        let way = service.way(0);
        service.arm(fault, None, 0);
        assert!(is_unknown(&way.put("a", b"x", &Condition::Absent)));
        assert_eq!(content(&service, "a").unwrap(), b"x");
        // Sent again, it meets its own effect.
        assert_eq!(way.put("a", b"x", &Condition::Absent), Err(ServiceError::Conflict));
        service.arm(fault, None, 0);
        assert!(is_unknown(&way.remove("a")));
        assert_eq!(content(&service, "a"), None);
    }
}

#[test]
fn a_lost_request_a_torn_body_and_status_429_change_nothing() {
    for fault in [Fault::LostRequest, Fault::TornBody, Fault::TooManyRequests] {
        let service = service(Versions::Counted);
        let way = service.way(0);
        service.arm(fault, None, 0);
        assert!(is_unknown(&way.put("a", b"x", &Condition::Absent)), "{fault:?}");
        service.deliver_all();
        assert!(service.keys().is_empty(), "{fault:?}");
        way.put("a", b"x", &Condition::Absent).unwrap();
        service.arm(fault, None, 0);
        assert!(is_unknown(&way.get("a")), "{fault:?}");
    }
}

#[test]
fn a_false_conflict_changes_nothing_though_the_condition_holds() {
    let service = service(Versions::Counted);
    let way = service.way(0);
    service.arm(Fault::FalseConflict, None, 0);
    // It does not hit a request without a condition.
    let first = way.put("a", b"x", &Condition::None).unwrap();
    let swap = || way.put("a", b"y", &Condition::Is(first.clone()));
    assert_eq!(swap(), Err(ServiceError::Conflict));
    assert_eq!(content(&service, "a").unwrap(), b"x");
    swap().unwrap();
}

#[test]
fn a_late_request_is_performed_even_after_a_removal_and_if_its_condition_holds_then() {
    let service = service(Versions::Counted);
    let (one, two) = (service.way(0), service.way(1));
    service.arm(Fault::Late, Some(0), 0);
    assert!(is_unknown(&one.put("a", b"late", &Condition::Absent)));
    assert_eq!(content(&service, "a"), None);
    two.put("a", b"x", &Condition::Absent).unwrap();
    two.remove("a").unwrap();
    service.deliver_all();
    assert_eq!(content(&service, "a").unwrap(), b"late");

    // A late removal hits what was stored meanwhile.
    service.arm(Fault::Late, Some(0), 0);
    assert!(is_unknown(&one.remove("a")));
    let version = two.put("a", b"newer", &Condition::None).unwrap();
    service.deliver_all();
    assert_eq!(content(&service, "a"), None);

    // A late swap finds that the object has another version.
    two.put("a", b"x", &Condition::None).unwrap();
    service.arm(Fault::Late, Some(0), 0);
    assert!(is_unknown(&one.put("a", b"late", &Condition::Is(version))));
    service.deliver_all();
    assert_eq!(content(&service, "a").unwrap(), b"x");
}

#[test]
fn a_late_request_is_performed_in_the_end() {
    let service = service(Versions::Counted);
    let (one, two) = (service.way(0), service.way(1));
    for number in 0..10 {
        service.arm(Fault::Late, Some(0), 0);
        assert!(is_unknown(&one.put(&format!("a/{number}"), b"x", &Condition::None)));
    }
    for _ in 0..VERY_LATE_REQUESTS {
        two.get("b").unwrap_err();
    }
    assert_eq!(service.keys().len(), 10);
}

#[test]
fn a_request_that_is_sent_twice_is_performed_again_after_its_answer() {
    let service = service(Versions::Counted);
    let (one, two) = (service.way(0), service.way(1));
    service.arm(Fault::Twice, Some(0), 0);
    one.put("a", b"x", &Condition::Absent).unwrap();
    two.remove("a").unwrap();
    service.deliver_all();
    assert_eq!(content(&service, "a").unwrap(), b"x");
}

#[test]
fn a_stale_list_hides_the_last_changes_and_nothing_else_is_stale() {
    let service = service(Versions::Counted);
    let way = service.way(0);
    for i in 0..3 * STALE_CHANGES_MAX {
        way.put(&format!("a/{i:03}"), b"", &Condition::None).unwrap();
    }
    let last = format!("a/{:03}", 3 * STALE_CHANGES_MAX - 1);
    let before = format!("a/{:03}", 3 * STALE_CHANGES_MAX - 2);
    let shown = || {
        let page = way.list(&last[..4], Some(&before)).unwrap();
        page.objects.iter().any(|object| object.key == last)
    };
    assert!(shown());
    service.arm(Fault::StaleList, None, 0);
    assert!(!shown());
    way.get(&last).unwrap();
    assert!(shown());
    assert!(!ACCEPTED.contains(&Fault::StaleList));
}

#[test]
fn an_outage_ends_after_some_minutes_and_changes_nothing() {
    let service = service(Versions::Counted);
    let way = service.way(0);
    service.arm(Fault::Outage, None, 0);
    assert!(is_unknown(&way.put("a", b"x", &Condition::None)));
    assert!(service.keys().is_empty());
    let before_ms = service.time().now_ms();
    while is_unknown(&way.put("a", b"x", &Condition::None)) {
        service.time().pass(Duration::from_secs(1));
    }
    let took_ms = service.time().now_ms() - before_ms;
    assert!(took_ms <= OUTAGE_MS + 2000, "{took_ms}");
}

#[test]
fn a_slow_answer_takes_time_and_comes() {
    let service = service(Versions::Counted);
    let way = service.way(0);
    for _ in 0..10 {
        service.arm(Fault::Slow, None, 0);
        way.put("a", b"x", &Condition::None).unwrap();
    }
    assert!(service.time().now_ms() > SLOW_MS);
}

#[test]
fn one_change_of_an_object_a_second_where_the_service_limits_that() {
    let settings = ServiceSettings { one_change_a_second: true, ..ServiceSettings::sound(1) };
    let service = Service::new(settings, 1);
    let way = service.way(0);
    way.put("a", b"x", &Condition::None).unwrap();
    assert!(is_unknown(&way.put("a", b"y", &Condition::None)));
    way.put("b", b"y", &Condition::None).unwrap();
    service.time().pass(Duration::from_secs(1));
    way.put("a", b"y", &Condition::None).unwrap();
}

#[test]
fn services_that_break_a_promise_are_there_to_be_refused() {
    let with = |breach| {
        let settings = ServiceSettings { breach: Some(breach), ..ServiceSettings::sound(1) };
        Service::new(settings, 1).way(0)
    };
    let ignoring = with(Breach::ConditionsIgnored);
    ignoring.put("a", b"x", &Condition::Absent).unwrap();
    ignoring.put("a", b"y", &Condition::Absent).unwrap();
    let matching = with(Breach::AbsentMatches);
    let version = matching.put("a", b"x", &Condition::Absent).unwrap();
    matching.remove("a").unwrap();
    matching.put("a", b"y", &Condition::Is(version)).unwrap();
    let unlocked = with(Breach::Unlocked);
    unlocked.put("a", b"x", &Condition::Absent).unwrap();
    unlocked.put("a", b"y", &Condition::Absent).unwrap();
}

#[test]
fn a_machine_is_stalled_before_the_effect_or_before_the_answer_of_any_request() {
    for (moment, answer) in [
        (Moment::BeforeEffect, Err(ServiceError::Conflict)),
        (Moment::BeforeAnswer, Ok(Version("1".to_owned()))),
    ] {
        let service = service(Versions::Counted);
        let (one, two) = (service.way(0), service.way(1));
        one.get("b").unwrap_err();
        let meanwhile = move || drop(two.put("a", b"two", &Condition::Absent));
        service.stall(0, 1, moment, Box::new(meanwhile));
        assert_eq!(one.put("a", b"one", &Condition::Absent), answer);
        assert!(!service.forget_stall());
        assert_eq!((service.counts(0).put, service.counts(1).put), (1, 1));
    }
}

#[test]
fn a_killed_machine_gets_no_answers_and_what_it_sent_may_still_be_performed() {
    let mut stored = 0;
    for seed in 0..20 {
        let service = Service::new(ServiceSettings::sound(seed), 2);
        let way = service.way(0);
        let killer = Arc::clone(&service);
        service.stall(0, 0, Moment::BeforeEffect, Box::new(move || killer.kill(0)));
        assert!(is_unknown(&way.put("a", b"x", &Condition::None)));
        let dead = Err(ServiceError::Invalid("this machine is dead".to_owned()));
        assert_eq!(way.get("a"), dead);
        assert_eq!(service.way(0).get("b"), Err(ServiceError::Absent));
        service.deliver_all();
        stored += service.keys().len();
    }
    assert!((1..20).contains(&stored), "{stored}");
}

/// Three machines at work on a few objects, at the same time, with all faults of a seed.
fn trace(seed: u64) -> u64 {
    let service = Service::new(ServiceSettings::of(seed), 3);
    let work = |machine| -> turns::Work<'_> {
        let (way, mut rng) = (service.way(machine), Rng::with(seed, machine as u64));
        Box::new(move || {
            for number in 0..30u64 {
                let key = format!("a/{}", rng.below(4));
                let bytes = number.to_le_bytes();
                let _ = match rng.below(4) {
                    0 => way.put(&key, &bytes, &Condition::Absent).map(drop),
                    1 => way.get(&key).and_then(|object| {
                        way.put(&key, &bytes, &Condition::Is(object.version)).map(drop)
                    }),
                    2 => way.remove(&key),
                    _ => way.list("a/", None).map(drop),
                };
            }
        })
    };
    service.turns().run((0..3).map(work).collect());
    service.hash()
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
        assert_ne!(trace(seed), trace(seed + 1), "seed {seed}");
    }
}
