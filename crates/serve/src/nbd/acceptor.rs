//! Accepts clients and negotiates with all of them in one thread. No client waits for another.
//!
//! Opening an image and listing exports can take long, so other threads do that (modules `opens` and `lists`
//! decide which and how many). Their results come back through a channel and the thread's wake event. A
//! client whose negotiation is over goes to the thread of its image, with the bytes that it has already
//! sent.
//!
//! Invariants:
//! - A client in negotiation holds at most 100 KiB, besides a list that all clients share, and for at most
//!   `handshake_time_max`.
//! - A malformed client loses only its own connection.
//! - Silent clients keep nobody out (module `permits`).
//! - No client waits longer than `answer_time_max` for an answer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};

use super::client::{Asked, Client, Job, Refusals};
use super::exports::{Lease, OpenExports};
use super::listen::Listener;
use super::lists::Lists;
use super::negotiation::list_reply;
use super::opens::{Asker, Open, Opens};
use super::peer::Peer;
use super::permits::{Permit, Permits};
use super::server::{ServerOptions, StopHandle};
use crate::poll::{Interest, Poll, Ready};
use crate::slab::Slab;

const TOKEN_WAKE: u64 = 0;
/// First token of the listeners. The clients' tokens follow.
const TOKEN_LISTENERS: u64 = 1;

/// Time between two checks of timeouts and idle images.
const TICK: Duration = Duration::from_millis(500);

/// Pause after an accept failed for lack of resources, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The result of a thread's work.
enum Found {
    List { asked: Instant, reply: Result<Vec<u8>> },
    Export { open: Open, lease: Result<Lease> },
}

pub(super) struct Acceptor {
    poll: Poll,
    listeners: Vec<Listener>,
    clients: Slab<Client>,
    stop: StopHandle,
    exports: Arc<OpenExports>,
    opens: Opens,
    lists: Lists,
    sender: Sender<Found>,
    answers: Receiver<Found>,
    refusals: Refusals,
    next_generation: u64,
    handshake_time_max: Duration,
    answer_time_max: Duration,
    negotiating_max: usize,
    permits: Permits,
    accepting: bool,
    accept_after: Option<Instant>,
}

impl Acceptor {
    /// # Errors
    /// When the process is out of descriptors.
    pub(super) fn new(
        options: &ServerOptions,
        listeners: Vec<Listener>,
        exports: Arc<OpenExports>,
        stop: StopHandle,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&*stop.0.wake, TOKEN_WAKE, Interest::READABLE)?;
        for (token, listener) in (TOKEN_LISTENERS..).zip(&listeners) {
            poll.add(listener, token, Interest::READABLE)?;
        }
        let (sender, answers) = mpsc::channel();
        Ok(Self {
            poll,
            listeners,
            clients: Slab::new(),
            stop,
            exports,
            opens: Opens::new(options.opens_max),
            lists: Lists::default(),
            sender,
            answers,
            refusals: Refusals::default(),
            next_generation: 0,
            handshake_time_max: options.handshake_time_max,
            answer_time_max: options.answer_time_max,
            negotiating_max: options.negotiating_max.max(1),
            permits: Permits::new(options.connections_max),
            accepting: true,
            accept_after: None,
        })
    }

    /// Accepts and negotiates until stopped.
    ///
    /// # Errors
    /// If waiting fails.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        let mut tick_due = Instant::now() + TICK;
        while !self.stop.0.asked.load(Ordering::SeqCst) {
            let due = self.lists.due().map_or(tick_due, |due| due.min(tick_due));
            self.poll.wait(Some(due.saturating_duration_since(Instant::now())), &mut ready)?;
            for event in &ready {
                self.take_event(event);
            }
            let now = Instant::now();
            if now >= tick_due {
                tick_due = now + TICK;
                self.tick(now);
            }
            self.start_work(now);
            self.regulate_accepting(now)?;
        }
        Ok(())
    }

    fn first_client_token(&self) -> u64 {
        TOKEN_LISTENERS + self.listeners.len() as u64
    }

    fn take_event(&mut self, event: &Ready) {
        if event.token == TOKEN_WAKE {
            self.stop.0.wake.take();
            while let Ok(found) = self.answers.try_recv() {
                self.take_found(found);
            }
        } else if event.token < self.first_client_token() {
            self.accept((event.token - TOKEN_LISTENERS) as usize);
        } else {
            self.take_client_event((event.token - self.first_client_token()) as usize, event);
        }
    }

    /// Disconnects clients that take too long, answers those that have waited too long with an error, and
    /// has idle images closed.
    fn tick(&mut self, now: Instant) {
        self.permits.tell(now);
        self.refusals.tell(now);
        for index in self.clients.indices() {
            let Some(client) = self.clients.get_mut(index) else { continue };
            match client.asked_at() {
                // The client waits for the server here, so its handshake time does not count.
                Some(at) if now.saturating_duration_since(at) >= self.answer_time_max => {
                    self.answer_too_late(index);
                }
                None if now >= client.deadline => {
                    tracing::debug!(peer = client.peer, "negotiation took too long");
                    self.remove(index);
                }
                _ => {}
            }
        }
        self.exports.close_idle(now);
    }

    fn answer_too_late(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let asker = Asker { index, generation: client.generation };
        let message = format!("no answer after {} s", self.answer_time_max.as_secs());
        let error = Error::new(ErrorKind::Busy, message);
        match client.asked() {
            Some(Asked::List) => client.answer_list(Err(&error)),
            Some(Asked::Export) => client.answer_export(Err(error), &mut self.refusals),
            None => return,
        }
        // A result that comes later is dropped.
        self.next_generation += 1;
        client.generation = self.next_generation;
        self.opens.forget(asker);
        self.lists.forget(asker);
        self.negotiate(index);
        self.settle(index);
    }

    /// Stops accepting while resources are lacking, and resumes later.
    fn regulate_accepting(&mut self, now: Instant) -> io::Result<()> {
        if self.accept_after.is_some_and(|after| now >= after) {
            self.accept_after = None;
        }
        let wanted = self.accept_after.is_none();
        if wanted != self.accepting {
            self.accepting = wanted;
            let interest = Interest { readable: wanted, writable: false };
            for (token, listener) in (TOKEN_LISTENERS..).zip(&self.listeners) {
                self.poll.modify(listener, token, interest)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) {
        let Some(listener) = self.listeners.get(listener) else { return };
        let accepted = match listener.accept() {
            Ok(None) => return,
            Ok(Some(socket)) => {
                let peer = Peer::of(socket.as_fd());
                // A client that gets no permit is disconnected at once.
                self.permits
                    .take(peer.key())
                    .map_or(Ok(()), |permit| self.greet(socket, &peer, permit))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "cannot accept an nbd client");
            self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
        }
    }

    /// Disconnects the client that has negotiated longest, unless it waits for the server.
    fn make_room(&mut self) {
        if self.clients.len() < self.negotiating_max {
            return;
        }
        let slowest = self
            .clients
            .indices()
            .into_iter()
            .filter_map(|i| {
                let waits_not = |c: &&mut Client| c.asked().is_none();
                self.clients.get_mut(i).filter(waits_not).map(|c| (c.deadline, i))
            })
            .min();
        if let Some((_, index)) = slowest {
            self.permits.note_replaced();
            self.remove(index);
        }
    }

    fn greet(&mut self, socket: OwnedFd, peer: &Peer, permit: Permit) -> io::Result<()> {
        self.make_room();
        self.next_generation += 1;
        let deadline = Instant::now() + self.handshake_time_max;
        let client = Client::greet(socket, peer, permit, self.next_generation, deadline)?;
        let index = self.clients.insert(client);
        let token = self.first_client_token() + index as u64;
        if let Some(client) = self.clients.get_mut(index) {
            if let Err(error) = self.poll.add(&client.socket, token, Interest::READABLE) {
                self.clients.remove(index);
                return Err(error);
            }
            self.settle(index);
        }
        Ok(())
    }

    fn take_client_event(&mut self, index: usize, event: &Ready) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if event.hung_up && !client.receives() {
            // The client has gone while it waits for an answer.
            self.remove(index);
            return;
        }
        if event.readable && client.receives() {
            client.receive();
            self.negotiate(index);
        }
        self.settle(index);
    }

    fn negotiate(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let asker = Asker { index, generation: client.generation };
        while let Some(job) = client.negotiate() {
            match job {
                Job::List => self.lists.ask(asker),
                Job::Open(name) => match self.exports.describe(&name) {
                    Ok((name, pool)) => {
                        let peer = client.peer_key;
                        self.opens.ask(Open { asker, peer, pool, name: name.name });
                    }
                    Err(error) => client.answer_export(Err(error), &mut self.refusals),
                },
            }
        }
    }

    /// Starts the opens and lists that clients wait for, within the limits.
    fn start_work(&mut self, now: Instant) {
        if self.lists.begins(now) {
            let exports = Arc::clone(&self.exports);
            let list = move || exports.list().map(|exports| list_reply(&exports));
            let found = move |reply| Found::List { asked: now, reply };
            self.start("nbd-list", list, found);
        }
        while let Some(open) = self.opens.next(now) {
            let (exports, name, peer) = (Arc::clone(&self.exports), open.name.clone(), open.peer);
            let found = move |lease| Found::Export { open: open.clone(), lease };
            self.start("nbd-open", move || exports.open(&name, peer), found);
        }
    }

    /// Does `work` in a thread. Its result comes back in any case, even after a panic.
    fn start<T>(
        &self,
        thread: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        found: impl Fn(Result<T>) -> Found + Clone + Send + 'static,
    ) {
        let (sender, wake, finds) =
            (self.sender.clone(), Arc::clone(&self.stop.0.wake), found.clone());
        let started = thread::Builder::new().name(thread.to_owned()).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Io, "a thread of the server has panicked"))
            });
            // This fails when the server has been stopped. A lease is released then.
            let _ = sender.send(finds(result));
            wake.raise();
        });
        if let Err(error) = started {
            let _ = self.sender.send(found(Err(Error::from_io("cannot start a thread", error))));
            self.stop.0.wake.raise();
        }
    }

    fn take_found(&mut self, found: Found) {
        match found {
            Found::List { asked, reply } => self.take_list(asked, reply),
            Found::Export { open, lease } => {
                self.opens.ended(&open.pool, open.peer, &open.name);
                if self.is_waiting(open.asker) {
                    let index = open.asker.index;
                    if let Some(client) = self.clients.get_mut(index) {
                        client.answer_export(lease, &mut self.refusals);
                    }
                    self.negotiate(index);
                    self.settle(index);
                }
            }
        }
    }

    fn take_list(&mut self, asked: Instant, reply: Result<Vec<u8>>) {
        let now = Instant::now();
        let reply = reply.map(|bytes| self.lists.keep(bytes));
        if let Err(error) = &reply {
            tracing::warn!(error = error.sentence().to_string(), "cannot list the exports");
        }
        for asker in self.lists.ended(now, now - asked) {
            if self.is_waiting(asker) {
                if let Some(client) = self.clients.get_mut(asker.index) {
                    client.answer_list(reply.as_ref());
                }
                self.settle(asker.index);
            }
        }
        for index in self.clients.indices() {
            let lists = &self.lists;
            let kept = |client: &mut Client| client.list().is_none_or(|list| lists.keeps(list));
            if self.clients.get_mut(index).is_some_and(|client| !kept(client)) {
                tracing::debug!("a client that did not take its list was disconnected");
                self.remove(index);
            }
        }
    }

    fn is_waiting(&mut self, asker: Asker) -> bool {
        self.clients.get_mut(asker.index).is_some_and(|c| c.generation == asker.generation)
    }

    /// Sends the client's output and decides what the client waits for.
    fn settle(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if client.transmit() {
            // The list has been sent. Options that came behind the LIST are handled now.
            self.negotiate(index);
        }
        let Some(client) = self.clients.get_mut(index) else { return };
        client.transmit();
        if client.is_over() {
            self.remove(index);
            return;
        }
        if client.is_settled() {
            self.hand_over(index);
            return;
        }
        let wanted = client.interest_wanted();
        if wanted != client.interest {
            client.interest = wanted;
            let token = TOKEN_LISTENERS + self.listeners.len() as u64 + index as u64;
            if self.poll.modify(&client.socket, token, wanted).is_err() {
                self.remove(index);
            }
        }
    }

    fn remove(&mut self, index: usize) -> Option<Client> {
        let client = self.clients.remove(index)?;
        let asker = Asker { index, generation: client.generation };
        self.opens.forget(asker);
        self.lists.forget(asker);
        Some(client)
    }

    fn hand_over(&mut self, index: usize) {
        let Some(client) = self.remove(index) else { return };
        let (Some(settled), Some(lease)) = (client.settled, client.lease) else { return };
        // From now on the image's thread watches the socket.
        if self.poll.remove(&client.socket).is_ok()
            && let Err(error) = lease.host.attach_nbd(client.socket, settled)
        {
            tracing::warn!(peer = client.peer, "cannot attach an nbd client: {}", error.sentence());
        }
    }
}
