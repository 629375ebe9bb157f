//! Accepts clients and negotiates with them, all in one thread and none waiting for another.
//!
//! Opening an image can take long, so a few workers do that; what they find comes back through a
//! channel and the thread's wake event. A client whose negotiation is over goes to the thread of
//! its image, with the bytes it has already sent.
//!
//! Invariants: a client in negotiation holds at most a few hundred KiB and at most
//! `handshake_time_max`; a malformed one loses its own connection only; clients that say nothing
//! keep nobody out (module `seats`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use marcot::Result;

use super::NbdConnection;
use super::exports::{ExportName, Lease, OpenExports};
use super::listen::Listener;
use super::negotiation::{Negotiation, Next, OPTION_BYTES_MAX};
use super::seats::{Seat, Seats};
use super::server::{ServerOptions, StopHandle};
use crate::host::buffer::{Progress, ReceiveBuffer, SendBuffer};
use crate::poll::{Interest, Poll, Ready};
use crate::slab::Slab;
use crate::wake::Wake;

const TOKEN_WAKE: u64 = 0;
/// Then come the listeners, then the clients.
const TOKEN_LISTENERS: u64 = 1;

/// Threads that open, list and close: a slow image delays at most the others in its queue.
const WORKERS: usize = 4;

/// How often timeouts and idle images are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Pause after an accept failed for lack of resources, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a client's option that must fit to go on.
const INPUT_BYTES_MAX: usize = OPTION_BYTES_MAX + 64;

/// What a worker does.
enum Job {
    List { client: usize, generation: u64 },
    Open { client: usize, generation: u64, name: String },
    CloseIdle,
}

/// What a worker found.
enum Found {
    List(Result<Vec<ExportName>>),
    Export(Result<Lease>),
    Closed,
}

struct Answer {
    client: usize,
    generation: u64,
    found: Found,
}

struct Client {
    socket: OwnedFd,
    seat: Seat,
    peer: String,
    negotiation: Negotiation,
    receive: ReceiveBuffer,
    send: SendBuffer,
    deadline: Instant,
    /// Tells a client from an earlier one of the same number.
    generation: u64,
    interest: Interest,
    /// A worker is busy for this client.
    asked: bool,
    /// Closes once everything is sent.
    closing: bool,
    /// The export asked for last; kept open by this.
    lease: Option<Lease>,
    /// Settled: goes to its image once everything is sent.
    settled: Option<NbdConnection>,
}

pub(super) struct Acceptor {
    poll: Poll,
    listeners: Vec<Listener>,
    clients: Slab<Client>,
    stop: StopHandle,
    jobs: Sender<Job>,
    answers: Receiver<Answer>,
    next_generation: u64,
    handshake_time_max: Duration,
    negotiating_max: usize,
    seats: Seats,
    accepting: bool,
    accept_after: Option<Instant>,
    closing_idle: bool,
}

impl Acceptor {
    /// # Errors
    /// When the process is out of descriptors or threads.
    pub(super) fn new(
        options: &ServerOptions,
        listeners: Vec<Listener>,
        open: &Arc<OpenExports>,
        stop: StopHandle,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&*stop.0.wake, TOKEN_WAKE, Interest::READABLE)?;
        for (token, listener) in (TOKEN_LISTENERS..).zip(&listeners) {
            poll.add(listener, token, Interest::READABLE)?;
        }
        let (jobs, queue) = mpsc::channel();
        let (sender, answers) = mpsc::channel();
        start_workers(queue, &sender, open, &stop.0.wake)?;
        Ok(Self {
            poll,
            listeners,
            clients: Slab::new(),
            stop,
            jobs,
            answers,
            next_generation: 0,
            handshake_time_max: options.handshake_time_max,
            negotiating_max: options.negotiating_max.max(1),
            seats: Seats::new(options.connections_max),
            accepting: true,
            accept_after: None,
            closing_idle: false,
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
            let wait = tick_due.saturating_duration_since(Instant::now());
            self.poll.wait(Some(wait), &mut ready)?;
            for event in &ready {
                self.take_event(event);
            }
            let now = Instant::now();
            if now >= tick_due {
                tick_due = now + TICK;
                self.tick(now);
            }
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
            while let Ok(answer) = self.answers.try_recv() {
                self.take_answer(answer);
            }
        } else if event.token < self.first_client_token() {
            self.accept((event.token - TOKEN_LISTENERS) as usize);
        } else {
            self.take_client_event((event.token - self.first_client_token()) as usize, event);
        }
    }

    /// Disconnects clients that take too long; has idle images closed.
    fn tick(&mut self, now: Instant) {
        self.seats.tell(now);
        for index in self.clients.indices() {
            let Some(client) = self.clients.get_mut(index) else { continue };
            // Waiting for a worker is not the client's fault.
            if now >= client.deadline && !client.asked {
                tracing::debug!(peer = client.peer, "negotiation took too long");
                self.clients.remove(index);
            }
        }
        if !self.closing_idle {
            self.closing_idle = self.jobs.send(Job::CloseIdle).is_ok();
        }
    }

    /// Stops listening while there are no resources, and resumes after.
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
                let peer = format!("{} #{}", listener.address, self.next_generation);
                // Without a seat the socket is closed here and now.
                self.seats.take().map_or(Ok(()), |seat| self.greet(socket, peer, seat))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "cannot accept an nbd client");
            self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
        }
    }

    /// Takes the place of the client that has negotiated longest, unless the server is what it
    /// waits for.
    fn make_room(&mut self) {
        if self.clients.len() < self.negotiating_max {
            return;
        }
        let slowest = self
            .clients
            .indices()
            .into_iter()
            .filter_map(|i| self.clients.get_mut(i).filter(|c| !c.asked).map(|c| (c.deadline, i)))
            .min();
        if let Some((_, index)) = slowest {
            self.seats.note_replaced();
            self.clients.remove(index);
        }
    }

    fn greet(&mut self, socket: OwnedFd, peer: String, seat: Seat) -> io::Result<()> {
        self.make_room();
        let mut greeting = Vec::new();
        let negotiation = Negotiation::new(&mut greeting);
        let mut send = SendBuffer::new();
        send.append(&greeting)?;
        self.next_generation += 1;
        let index = self.clients.insert(Client {
            socket,
            seat,
            peer,
            negotiation,
            receive: ReceiveBuffer::new(&[])?,
            send,
            deadline: Instant::now() + self.handshake_time_max,
            generation: self.next_generation,
            interest: Interest::READABLE,
            asked: false,
            closing: false,
            lease: None,
            settled: None,
        });
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
            // Gone while a worker is busy for it: there is nothing left to wait for.
            self.clients.remove(index);
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
        if let Some(job) = client.negotiate(index) {
            client.asked = self.jobs.send(job).is_ok();
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        if matches!(answer.found, Found::Closed) {
            self.closing_idle = false;
            return;
        }
        let Some(client) = self.clients.get_mut(answer.client) else { return };
        if client.generation != answer.generation {
            return;
        }
        client.asked = false;
        client.take_answer(answer.found);
        self.negotiate(answer.client);
        self.settle(answer.client);
    }

    /// Sends what there is and decides what the client waits for.
    fn settle(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        client.transmit();
        if client.is_over() {
            self.clients.remove(index);
            return;
        }
        if client.settled.is_some() && client.send.is_drained() {
            self.hand_over(index);
            return;
        }
        let wanted = Interest { readable: client.receives(), writable: !client.send.is_drained() };
        if wanted != client.interest {
            client.interest = wanted;
            let token = TOKEN_LISTENERS + self.listeners.len() as u64 + index as u64;
            if self.poll.modify(&client.socket, token, wanted).is_err() {
                self.clients.remove(index);
            }
        }
    }

    fn hand_over(&mut self, index: usize) {
        let Some(client) = self.clients.remove(index) else { return };
        let (Some(settled), Some(lease)) = (client.settled, client.lease) else { return };
        // The image's thread watches the socket from now on.
        if self.poll.remove(&client.socket).is_ok()
            && let Err(error) = lease.host.attach_nbd(client.socket, settled)
        {
            tracing::warn!(peer = client.peer, "cannot attach an nbd client: {error}");
        }
    }
}

impl Client {
    /// True if it may send more now.
    fn receives(&self) -> bool {
        !self.asked && !self.closing && self.settled.is_none() && self.send.is_drained()
    }

    fn is_over(&self) -> bool {
        self.closing && self.send.is_drained()
    }

    fn receive(&mut self) {
        match self.receive.receive(self.socket.as_fd(), INPUT_BYTES_MAX) {
            Ok(Progress::Moved | Progress::Blocked) => {}
            Ok(Progress::Closed) => self.closing = true,
            Err(error) => {
                tracing::debug!(peer = self.peer, %error, "nbd client lost");
                self.closing = true;
            }
        }
    }

    fn transmit(&mut self) {
        match self.send.send(self.socket.as_fd()) {
            // Most clients that are silent have taken the greeting: that is all they cost.
            Ok(_) => self.send.release_if_empty(),
            Err(_) => {
                self.send = SendBuffer::new();
                self.closing = true;
            }
        }
    }

    /// Goes on with what has been received; returns what a worker must do for it.
    fn negotiate(&mut self, index: usize) -> Option<Job> {
        if self.asked || self.closing || self.settled.is_some() {
            return None;
        }
        let mut output = Vec::new();
        let (taken, next) = self.negotiation.advance(self.receive.unread(), &mut output);
        self.receive.consume(taken);
        self.queue(&output);
        let (client, generation) = (index, self.generation);
        match next {
            Next::List => Some(Job::List { client, generation }),
            Next::Export(name) => Some(Job::Open { client, generation, name }),
            Next::Close => {
                self.closing = true;
                None
            }
            Next::Receive | Next::Transmit { .. } => None,
        }
    }

    fn queue(&mut self, output: &[u8]) {
        if self.send.append(output).is_err() {
            self.closing = true;
        }
    }

    fn take_answer(&mut self, found: Found) {
        let mut output = Vec::new();
        match found {
            Found::List(list) => {
                self.negotiation.answer_list(list.as_deref(), &mut output);
            }
            Found::Export(lease) => {
                let info = lease.as_ref().map(|lease| &lease.info);
                let next = self.negotiation.answer_export(info, &mut output);
                if let Err(error) = &lease {
                    tracing::info!(peer = self.peer, "export refused: {error}");
                }
                self.lease = lease.ok();
                self.take_outcome(&next);
            }
            Found::Closed => {}
        }
        self.queue(&output);
    }

    fn take_outcome(&mut self, next: &Next) {
        match *next {
            Next::Transmit { structured_replies, allocation_context } => {
                self.settled = Some(NbdConnection {
                    structured_replies,
                    allocation_context,
                    received: self.receive.unread().to_vec(),
                    peer: self.peer.clone(),
                    seat: Some(self.seat.clone()),
                });
            }
            Next::Close => self.closing = true,
            _ => {}
        }
    }
}

fn start_workers(
    queue: Receiver<Job>,
    answers: &Sender<Answer>,
    open: &Arc<OpenExports>,
    wake: &Arc<Wake>,
) -> io::Result<()> {
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..WORKERS {
        let (queue, answers) = (Arc::clone(&queue), answers.clone());
        let (open, wake) = (Arc::clone(open), Arc::clone(wake));
        thread::Builder::new().name("nbd-worker".to_owned()).spawn(move || {
            // Ends when the acceptor, which holds the other end, is gone.
            while let Some(job) = next_job(&queue) {
                let answer = work(job, &open);
                if answers.send(answer).is_err() {
                    return;
                }
                wake.raise();
            }
        })?;
    }
    Ok(())
}

fn next_job(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn work(job: Job, open: &OpenExports) -> Answer {
    match job {
        Job::List { client, generation } => {
            Answer { client, generation, found: Found::List(open.list()) }
        }
        Job::Open { client, generation, name } => {
            Answer { client, generation, found: Found::Export(open.open(&name)) }
        }
        Job::CloseIdle => {
            open.close_idle(Instant::now());
            Answer { client: 0, generation: 0, found: Found::Closed }
        }
    }
}
