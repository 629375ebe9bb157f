//! Signs of life while an image's thread is busy with a command.
//!
//! An image's thread carries out one command at a time and says nothing meanwhile. One thread a process
//! does that for all of them: every second it tells those who wait that the process lives, and takes in
//! those who have just come. It sleeps while nobody is busy.
//!
//! Invariant: no frame is cut in two. While a thread is busy it writes to its clients' sockets only with
//! its [`Pulse`] locked, and who has not taken all of a frame gets no signs of life.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use super::listener;
use super::message::{Answer, encode_answer};

/// How often a busy owner says that it lives. A fraction of the time after which clients give up.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);

/// Connections that are taken in while one command runs.
const ACCEPTED_MAX: usize = 64;

/// The pulse of one image's thread.
#[derive(Clone, Default)]
pub(crate) struct Pulse(Arc<Mutex<Busy>>);

/// What a busy thread has left to the pulse.
#[derive(Default)]
pub(crate) struct Busy {
    since: Option<Instant>,
    listener: Option<Arc<OwnedFd>>,
    waiting: Vec<Arc<OwnedFd>>,
    accepted: Vec<OwnedFd>,
}

/// All threads that are busy now.
struct Watch {
    busy: Vec<Pulse>,
    /// Some thread has been busy since this was last looked at.
    stirred: bool,
    asleep: bool,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch { busy: Vec::new(), stirred: false, asleep: false });
static WOKEN: Condvar = Condvar::new();
/// False where the process could not start one more thread: then owners that are busy say nothing.
static THREAD: LazyLock<bool> =
    LazyLock::new(|| thread::Builder::new().name("control-pulse".to_owned()).spawn(watch).is_ok());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For as long as this exists, a thread is busy.
pub(crate) struct Beating(Pulse);

impl Pulse {
    /// The thread will be busy: `waiting` are its clients, `listener` is where others come.
    pub(crate) fn begin(
        &self,
        listener: Option<&super::ControlListener>,
        waiting: Vec<Arc<OwnedFd>>,
    ) -> Beating {
        *self.lock() = Busy {
            since: Some(Instant::now()),
            listener: listener.map(|listener| Arc::clone(&listener.socket)),
            waiting,
            accepted: Vec::new(),
        };
        if *THREAD {
            let mut watch = lock(&WATCH);
            watch.busy.push(self.clone());
            watch.stirred = true;
            if watch.asleep {
                WOKEN.notify_one();
            }
        }
        Beating(self.clone())
    }

    /// Holds signs of life back, for as long as the busy thread writes.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Busy> {
        lock(&self.0)
    }
}

impl Beating {
    /// The thread is not busy any more; these have come meanwhile.
    pub(crate) fn end(self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.0.lock().accepted)
    }
}

impl Drop for Beating {
    /// Also where the thread panics: nothing must keep its sockets open.
    fn drop(&mut self) {
        lock(&WATCH).busy.retain(|other| !Arc::ptr_eq(&other.0, &self.0.0));
        *self.0.lock() = Busy::default();
    }
}

impl Busy {
    /// `socket` gets no more signs of life.
    pub(crate) fn forget(&mut self, socket: &Arc<OwnedFd>) {
        self.waiting.retain(|other| !Arc::ptr_eq(other, socket));
    }

    fn beat(&mut self, sign: &[u8]) {
        if self.since.is_none_or(|since| since.elapsed() < PULSE_INTERVAL / 2) {
            return;
        }
        if let Some(listener) = &self.listener {
            while self.accepted.len() < ACCEPTED_MAX
                && let Ok(socket) = listener::accept(listener)
            {
                self.accepted.push(socket);
            }
        }
        let waiting = self.waiting.iter().map(|socket| &**socket).chain(&self.accepted);
        for socket in waiting {
            // So short a frame is taken whole or not at all. Who takes nothing does not wait for us.
            let _ = rustix::net::send(socket, sign, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }
}

/// Never ends.
fn watch() {
    let mut sign = Vec::new();
    if encode_answer(&Answer::Alive, &mut sign).is_err() {
        return;
    }
    loop {
        let mut watch = lock(&WATCH);
        while watch.busy.is_empty() && !watch.stirred {
            watch.asleep = true;
            watch = WOKEN.wait(watch).unwrap_or_else(PoisonError::into_inner);
        }
        (watch.asleep, watch.stirred) = (false, false);
        drop(watch);
        thread::sleep(PULSE_INTERVAL);
        let busy: Vec<Pulse> = lock(&WATCH).busy.clone();
        for pulse in busy {
            pulse.lock().beat(&sign);
        }
    }
}
