//! Tests of the policy, with a clock that makes no pauses.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use marcot_store::Clock;

use super::*;

/// Counts the pauses instead of making them.
#[derive(Default)]
struct Pauses(AtomicU32);

impl Clock for Pauses {
    fn now_s(&self) -> i64 {
        0
    }

    fn pause(&self, duration: Duration) {
        assert_eq!(duration, ATTEMPT_INTERVAL);
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The result of `use_retry`, and how often it paused.
fn paused<T>(interrupt: &Interrupt, use_retry: impl FnOnce(&Retry<'_>) -> T) -> (T, u32) {
    let pauses = Arc::new(Pauses::default());
    let world = World { clock: Arc::<Pauses>::clone(&pauses), ..World::system() };
    let value = use_retry(&Retry { interrupt, world: &world });
    (value, pauses.0.load(Ordering::Relaxed))
}

fn owned() -> Error {
    Error::new(ErrorKind::Owned, "rbd/a is in use")
}

#[test]
fn an_attempt_without_a_result_is_repeated_until_it_has_one() {
    let tries = Cell::new(0);
    let attempt = || {
        tries.set(tries.get() + 1);
        Ok((tries.get() == 4).then_some("done"))
    };
    let (outcome, pauses) = paused(&Interrupt::never(), |retry| retry.until_some(attempt));
    assert_eq!((outcome.unwrap(), tries.get(), pauses), (Some("done"), 4, 3));
}

#[test]
fn an_error_or_the_last_attempt_ends_the_repetition() {
    let (outcome, pauses) =
        paused(&Interrupt::never(), |retry| retry.until_some(|| Err::<Option<()>, _>(owned())));
    assert_eq!((outcome.unwrap_err().kind(), pauses), (ErrorKind::Owned, 0));
    let (outcome, pauses) =
        paused(&Interrupt::never(), |retry| retry.until_some(|| Ok(None::<()>)));
    assert_eq!((outcome.unwrap(), pauses), (None, ATTEMPTS_MAX - 1));
}

#[test]
fn an_interruption_ends_the_repetition_after_the_current_attempt() {
    let tries = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&tries);
    let interrupt = Interrupt::when(move || seen.load(Ordering::Relaxed) == 3);
    let attempt = || {
        tries.fetch_add(1, Ordering::Relaxed);
        Ok(None::<()>)
    };
    let (outcome, pauses) = paused(&interrupt, |retry| retry.until_some(attempt));
    assert_eq!((outcome.unwrap_err().kind(), pauses), (ErrorKind::Interrupted, 2));
    // The result of an attempt counts also after an interruption.
    let always = Interrupt::when(|| true);
    let (outcome, _) = paused(&always, |retry| retry.until_some(|| Ok(Some(7))));
    assert_eq!(outcome.unwrap(), Some(7));
}

/// Runs `for_itself` with attempts whose results come from `ends`, and other processes whose answers come
/// from `answers`. Returns the result, who was asked, and the number of pauses.
fn alone(
    wait: Wait,
    ends: impl FnMut() -> Result<u32>,
    mut answers: impl FnMut() -> Given,
) -> (Result<Option<u32>>, Vec<Holders>, u32) {
    let asked = RefCell::new(Vec::new());
    let ask = |holders| {
        asked.borrow_mut().push(holders);
        Ok(answers())
    };
    let in_use = || "rbd/b is in use".to_owned();
    let (outcome, pauses) =
        paused(&Interrupt::never(), |retry| retry.for_itself(wait, ends, ask, in_use));
    (outcome, asked.into_inner(), pauses)
}

/// An attempt that fails `times` times with `kind`, and then succeeds.
fn after(mut times: u32, kind: ErrorKind) -> impl FnMut() -> Result<u32> {
    move || match times {
        0 => Ok(1),
        _ => {
            times -= 1;
            Err(Error::new(kind, "snapshot 's' is in use"))
        }
    }
}

#[test]
fn an_image_that_was_closed_is_opened_at_once_and_one_about_to_be_closed_is_waited_for() {
    let (outcome, asked, pauses) =
        alone(Wait::ForCommands, after(2, ErrorKind::Owned), || Given::Way);
    assert_eq!((outcome.unwrap(), pauses), (Some(1), 0));
    assert_eq!(asked, [Holders::Owner; 2]);
    let (outcome, _, pauses) =
        alone(Wait::ForCommands, after(FREE_ATTEMPTS_MAX, ErrorKind::Owned), || Given::Nothing);
    assert_eq!((outcome.unwrap(), pauses), (Some(1), FREE_ATTEMPTS_MAX));
    let (outcome, _, pauses) =
        alone(Wait::ForCommands, after(FREE_ATTEMPTS_MAX + 1, ErrorKind::Owned), || Given::Nothing);
    assert_eq!((outcome.unwrap_err().kind(), pauses), (ErrorKind::Owned, FREE_ATTEMPTS_MAX));
}

#[test]
fn the_wait_for_readers_and_of_servers_is_shorter() {
    let endless = u32::MAX;
    for (wait, kind, holders) in [
        (Wait::ForCommands, ErrorKind::Busy, Holders::Readers),
        (Wait::AtOnce, ErrorKind::Owned, Holders::Owner),
        (Wait::AtOnce, ErrorKind::Busy, Holders::Readers),
    ] {
        let (outcome, asked, pauses) = alone(wait, after(endless, kind), || Given::Nothing);
        assert_eq!((outcome.unwrap_err().kind(), pauses), (kind, UNREAD_ATTEMPTS_MAX));
        assert!(asked.iter().all(|asked| *asked == holders), "{asked:?}");
    }
}

#[test]
fn the_error_of_an_image_in_use_names_the_user() {
    let by = || Given::Use("process 7: device /dev/nbd0".to_owned());
    let (outcome, _, pauses) = alone(Wait::ForCommands, after(1, ErrorKind::Owned), by);
    let error = outcome.unwrap_err();
    assert_eq!((error.kind(), pauses), (ErrorKind::Owned, 0));
    assert_eq!(error.sentence().to_string(), "rbd/b is in use by process 7: device /dev/nbd0");
    let (outcome, ..) = alone(Wait::ForCommands, after(1, ErrorKind::Busy), by);
    let error = outcome.unwrap_err();
    assert_eq!(
        error.sentence().to_string(),
        "snapshot 's' is in use by process 7: device /dev/nbd0"
    );
    let (outcome, ..) = alone(Wait::ForCommands, after(1, ErrorKind::Owned), || {
        Given::Refusal("it is stopped".to_owned())
    });
    assert_eq!(outcome.unwrap_err().sentence().to_string(), "it is stopped");
}

#[test]
fn other_errors_are_returned_without_asking_anybody() {
    let fails = || Err(Error::new(ErrorKind::NoSpace, "full"));
    let (outcome, asked, _) = alone(Wait::ForCommands, fails, || Given::Way);
    assert_eq!((outcome.unwrap_err().kind(), asked.len()), (ErrorKind::NoSpace, 0));
}

#[test]
fn nobody_is_asked_when_the_operating_system_refuses() {
    let leased = || {
        let why = std::io::Error::from(std::io::ErrorKind::WouldBlock);
        Err(Error::from_io("cannot open the lock", why).context("cannot open the image"))
    };
    let (outcome, asked, pauses) = alone(Wait::ForCommands, leased, || Given::Way);
    assert_eq!((outcome.unwrap_err().kind(), asked.len(), pauses), (ErrorKind::Busy, 0, 0));
}

#[test]
fn attempts_end_when_others_open_the_image_again_each_time() {
    let ends = after(u32::MAX, ErrorKind::Owned);
    let (outcome, asked, _) = alone(Wait::ForCommands, ends, || Given::Way);
    assert_eq!((outcome.unwrap(), asked.len()), (None, ATTEMPTS_MAX as usize));
}

#[test]
fn an_owner_in_the_way_is_asked_each_time_and_named_in_the_end() {
    let asked = Cell::new(0);
    let ask = || {
        asked.set(asked.get() + 1);
        Ok(Given::Nothing)
    };
    let (outcome, pauses) =
        paused(&Interrupt::never(), |retry| retry.when_free(after(3, ErrorKind::Owned), ask));
    assert_eq!((outcome.unwrap(), asked.get(), pauses), (Some(1), 3, 3));
    let (outcome, _) = paused(&Interrupt::never(), |retry| {
        retry.when_free(|| Err::<(), _>(owned()), || Ok(Given::Nothing))
    });
    assert_eq!(outcome.unwrap_err().sentence().to_string(), "rbd/a is in use");
}
