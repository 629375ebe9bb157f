//! The policy, in a world where waiting takes no time.

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

/// What `use_retry` gives, and how often it paused.
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
fn an_attempt_that_gives_nothing_is_repeated_until_it_gives_something() {
    let tries = Cell::new(0);
    let attempt = || {
        tries.set(tries.get() + 1);
        Ok((tries.get() == 4).then_some("done"))
    };
    let (outcome, pauses) = paused(&Interrupt::never(), |retry| retry.until_some(attempt));
    assert_eq!((outcome.unwrap(), tries.get(), pauses), (Some("done"), 4, 3));
}

#[test]
fn an_error_ends_it_and_so_does_patience() {
    let (outcome, pauses) =
        paused(&Interrupt::never(), |retry| retry.until_some(|| Err::<Option<()>, _>(owned())));
    assert_eq!((outcome.unwrap_err().kind(), pauses), (ErrorKind::Owned, 0));
    let (outcome, pauses) =
        paused(&Interrupt::never(), |retry| retry.until_some(|| Ok(None::<()>)));
    assert_eq!((outcome.unwrap(), pauses), (None, ATTEMPTS_MAX - 1));
}

#[test]
fn an_interruption_ends_it_after_the_attempt_under_way() {
    let tries = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&tries);
    let interrupt = Interrupt::when(move || seen.load(Ordering::Relaxed) == 3);
    let attempt = || {
        tries.fetch_add(1, Ordering::Relaxed);
        Ok(None::<()>)
    };
    let (outcome, pauses) = paused(&interrupt, |retry| retry.until_some(attempt));
    assert_eq!((outcome.unwrap_err().kind(), pauses), (ErrorKind::Interrupted, 2));
    // What an interrupted attempt has brought about counts.
    let always = Interrupt::when(|| true);
    let (outcome, _) = paused(&always, |retry| retry.until_some(|| Ok(Some(7))));
    assert_eq!(outcome.unwrap(), Some(7));
}

/// Runs `for_itself` with attempts that end as `ends` says, and others that answer as `answers` says;
/// also gives who was asked.
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

/// Ends with `kind` so often, and then well.
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
fn who_gives_way_is_followed_at_once_and_who_is_about_to_go_is_waited_for() {
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
fn readers_and_a_server_that_others_wait_for_are_waited_for_less() {
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
fn what_somebody_uses_is_refused_with_who_that_is() {
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
fn other_errors_are_nobodys_business() {
    let fails = || Err(Error::new(ErrorKind::NoSpace, "full"));
    let (outcome, asked, _) = alone(Wait::ForCommands, fails, || Given::Way);
    assert_eq!((outcome.unwrap_err().kind(), asked.len()), (ErrorKind::NoSpace, 0));
}

#[test]
fn nobody_is_asked_to_give_way_where_the_operating_system_refuses() {
    let leased = || {
        let why = std::io::Error::from(std::io::ErrorKind::WouldBlock);
        Err(Error::from_io("cannot open the lock", why).context("cannot open the image"))
    };
    let (outcome, asked, pauses) = alone(Wait::ForCommands, leased, || Given::Way);
    assert_eq!((outcome.unwrap_err().kind(), asked.len(), pauses), (ErrorKind::Busy, 0, 0));
}

#[test]
fn an_image_that_others_always_have_again_is_given_up() {
    let ends = after(u32::MAX, ErrorKind::Owned);
    let (outcome, asked, _) = alone(Wait::ForCommands, ends, || Given::Way);
    assert_eq!((outcome.unwrap(), asked.len()), (None, ATTEMPTS_MAX as usize));
}

#[test]
fn an_owner_in_the_way_is_told_each_time_and_named_in_the_end() {
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
