//! Tests of the policy, in time that passes only in pauses.

use std::sync::atomic::{AtomicU32, Ordering};

use super::super::testing::{retry, unknown};
use super::*;

fn fails_first(times: u32) -> impl FnMut(u32) -> Result<u32, ServiceError> {
    move |failures| if failures < times { Err(unknown()) } else { Ok(failures) }
}

#[test]
fn an_unknown_outcome_is_repeated_with_longer_and_longer_pauses() {
    let (retry, time) = retry(Policy::command());
    assert_eq!(retry.run(fails_first(9)), Ok(9));
    let pauses = time.pauses.lock().unwrap().clone();
    assert_eq!(pauses.len(), 9);
    for (number, pause) in pauses.iter().enumerate() {
        let longest = (FIRST_PAUSE * (1 << number)).min(PAUSE_MAX);
        assert!(*pause >= longest / 2 && *pause <= longest, "{number}: {pause:?}");
    }
}

#[test]
fn a_command_gives_up_after_its_time_with_the_last_error() {
    let (retry, time) = retry(Policy::command());
    let error = retry.run(fails_first(u32::MAX)).unwrap_err();
    assert!(
        matches!(&error, ServiceError::Unknown(why) if why.contains("the answer was lost, for 6"))
    );
    let waited = time.uptime();
    assert!(waited >= COMMAND_PATIENCE && waited <= COMMAND_PATIENCE + PAUSE_MAX, "{waited:?}");
}

#[test]
fn an_image_waits_for_ever_also_when_it_is_refused() {
    let (retry, time) = retry(Policy::image());
    let refused = || ServiceError::Refused("expired".to_string());
    let attempt = |failures| if failures < 5000 { Err(refused()) } else { Ok(()) };
    assert_eq!(retry.run(attempt), Ok(()));
    assert!(time.uptime() > Duration::from_secs(3600));
}

#[test]
fn what_another_attempt_cannot_mend_is_returned_at_once() {
    let errors = [
        ServiceError::Absent,
        ServiceError::Conflict,
        ServiceError::Invalid("x".to_string()),
        ServiceError::Refused("x".to_string()),
    ];
    for error in errors {
        let (retry, time) = retry(Policy::command());
        assert_eq!(retry.run(|_| Err::<(), _>(error.clone())), Err(error));
        assert!(time.pauses.lock().unwrap().is_empty());
    }
}

#[test]
fn waiting_ends_where_it_is_told_to() {
    let (retry, time) = retry(Policy::image());
    let asked = Arc::new(AtomicU32::new(0));
    let asked_too = Arc::clone(&asked);
    let stopping =
        retry.with_stop(Arc::new(move || asked_too.fetch_add(1, Ordering::Relaxed) == 2));
    assert_eq!(stopping.run(fails_first(u32::MAX)), Err(unknown()));
    assert_eq!(time.pauses.lock().unwrap().len(), 3);
}

#[test]
fn an_outage_lasts_until_its_last_attempt_ends() {
    let outage = Outage::default();
    let seconds = Duration::from_secs;
    outage.begin("s", &unknown(), seconds(0), seconds(0));
    outage.begin("s", &unknown(), seconds(1), seconds(1));
    outage.end("s", seconds(2), true);
    assert_eq!(outage.age(seconds(2)), seconds(2));
    outage.end("s", seconds(3), true);
    assert_eq!(outage.age(seconds(4)), seconds(0));
}

#[test]
fn an_attempt_that_panics_or_gives_up_does_not_wait_any_more() {
    let (retry, _) = retry(Policy::command());
    retry.run(fails_first(u32::MAX)).unwrap_err();
    assert_eq!(retry.outage.state().attempts, 0);
    let attempt = |failures| if failures < 5 { Err::<(), _>(unknown()) } else { panic!("a test") };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| retry.run(attempt)));
    assert!(outcome.is_err());
    assert_eq!(retry.outage.state().attempts, 0);
}

#[test]
fn an_outage_that_was_given_up_is_over_with_the_next_answer() {
    let (retry, _) = retry(Policy::command());
    retry.run(fails_first(u32::MAX)).unwrap_err();
    let trouble = retry.trouble().expect("it lasts");
    assert!(trouble.why.contains("memory: does not work: the answer was lost"), "{trouble:?}");
    assert!(trouble.lasts >= COMMAND_PATIENCE);
    assert_eq!(retry.run(|_| Err::<(), _>(ServiceError::Absent)), Err(ServiceError::Absent));
    assert_eq!(retry.trouble(), None);
}

fn guests(io_timeout_s: u64) -> Policy {
    Patience::Guests { io_timeout: Some(Duration::from_secs(io_timeout_s)) }.reading()
}

#[test]
fn guests_that_come_during_an_outage_do_not_wait_their_time_again() {
    let (retry, time) = retry(guests(30));
    retry.run(fails_first(u32::MAX)).unwrap_err();
    let first = time.uptime();
    assert!(first >= Duration::from_secs(30) && first <= Duration::from_secs(31), "{first:?}");
    for _ in 0..50 {
        let error = retry.run(fails_first(u32::MAX)).unwrap_err();
        assert!(matches!(&error, ServiceError::Unknown(why) if why.contains("lost, for 30 s")));
    }
    assert_eq!(time.uptime(), first);
    // After a moment, one of them asks the service again.
    time.pause(TRY_INTERVAL);
    assert_eq!(retry.run(fails_first(0)), Ok(0));
    assert_eq!(retry.trouble(), None);
}

#[test]
fn who_has_no_time_out_asks_on_while_others_give_up() {
    let (retry, _) = retry(guests(30));
    retry.run(fails_first(u32::MAX)).unwrap_err();
    let patient = retry.with_policy(Patience::Guests { io_timeout: None }.reading());
    assert_eq!(patient.run(fails_first(100)), Ok(100));
    assert_eq!(retry.run(fails_first(0)), Ok(0));
}

#[test]
fn guests_without_a_time_out_wait_for_ever() {
    let (retry, time) = retry(Patience::Guests { io_timeout: None }.reading());
    assert_eq!(retry.run(fails_first(5000)), Ok(5000));
    assert!(time.uptime() > Duration::from_secs(3600));
}
