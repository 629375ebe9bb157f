//! The loop of an image's thread.
//!
//! One turn: wait; read every ready socket once; carry out the round; run commands; give background work its
//! share. A client that still has complete requests after its turn is kept in `again`. Then the next wait
//! does not sleep.

mod attend;
mod controls;
mod hold;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use marcot::{CompletedRead, Completion, Error, ErrorKind, IdleOutcome, Result};

use super::attendant::Attendant;
use super::connection::Connection;
use super::handle::{Event, Message, Shared};
use super::heap;
use super::idle::IdleTimers;
use super::local::{FIRST_READ, LocalLane};
use super::looking::Looking;
use super::pacer::Pacer;
use super::round::{self, Lane};
use super::spin::Spin;
use super::{HostDevice, HostOptions};
use crate::control::{
    Command, ControlConnection, ControlListener, Pulse, READ_BYTES_MAX, Reply, Watcher,
};
use crate::nbd::NbdConnection;
use crate::poll::{Interest, Poll, Ready};
use crate::slab::Slab;
use crate::wake::Wake;

const TOKEN_WAKE: u64 = 0;
const TOKEN_CONTROL: u64 = 1;
const TOKEN_COMPLETION: u64 = 2;
/// First token of clients. From here on NBD clients have even distances, and control clients odd ones.
const TOKEN_CLIENTS: u64 = 3;

/// Low bits of a read's number that count the reads of one client. The other bits number the client.
const READ_NUMBER_BITS: u32 = 40;

/// Buffers of a connection that was quiet for this long are given back.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

/// Time that clients get to take their last replies when the image is stopped.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// How often it is looked whether a flush has ended that is under way.
const FLUSH_LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Limit on the messages taken in one turn, so that a flood of them cannot starve the sockets.
const MESSAGES_PER_TURN_MAX: usize = 256;

/// The parts from which a loop is made.
pub(super) struct Parts {
    pub(super) device: Box<dyn HostDevice>,
    pub(super) options: HostOptions,
    pub(super) control: Option<ControlListener>,
    pub(super) wake: Arc<Wake>,
    pub(super) inbox: Receiver<Message>,
    pub(super) shared: Arc<Shared>,
}

struct Client<T> {
    client: Box<T>,
    interest: Interest,
}

pub(super) struct EventLoop {
    parts: Parts,
    poll: Poll,
    clients: Slab<Client<Connection>>,
    controls: Slab<Client<ControlConnection>>,
    /// Control clients that wait for the image to be closed.
    leave_to: Vec<ControlConnection>,
    /// The control client for which the image's users are quiet.
    quiet_for: Option<usize>,
    pulse: Pulse,
    local: LocalLane,
    commands: Vec<(Command, Sender<Event>)>,
    /// NBD clients that take part in the coming round.
    active: Vec<usize>,
    /// NBD clients that have complete requests left after their turn.
    again: Vec<usize>,
    /// Which of them comes first in the coming round. Those before it have had their share of long searches.
    looks_first: usize,
    messages_left: bool,
    /// A control client may have sent more than the command that was run.
    commands_left: bool,
    pacer: Pacer,
    idle: IdleTimers,
    spin: Spin,
    attendant: Option<Arc<dyn Attendant>>,
    /// Number of clients attached so far. The next client gets it as the high bits of its reads' numbers.
    attached: u64,
    /// The index of each client, by that number.
    by_number: HashMap<u64, usize>,
    watches_completions: bool,
    tidy_due: Option<Instant>,
    /// Set when a stop was asked for: the time until which replies are drained.
    stop_deadline: Option<Instant>,
    fatal: Option<Error>,
}

impl EventLoop {
    /// # Errors
    /// When the process is out of descriptors.
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&*parts.wake, TOKEN_WAKE, Interest::READABLE)?;
        if let Some(control) = &parts.control {
            poll.add(control, TOKEN_CONTROL, Interest::READABLE)?;
        }
        let local = LocalLane::new(Arc::clone(&parts.shared.tally));
        Ok(Self {
            parts,
            poll,
            clients: Slab::new(),
            controls: Slab::new(),
            leave_to: Vec::new(),
            quiet_for: None,
            pulse: Pulse::default(),
            local,
            commands: Vec::new(),
            active: Vec::new(),
            again: Vec::new(),
            looks_first: 0,
            messages_left: false,
            commands_left: false,
            pacer: Pacer::new(Instant::now()),
            idle: IdleTimers::new(Instant::now()),
            spin: Spin::default(),
            attendant: None,
            attached: 0,
            by_number: HashMap::new(),
            watches_completions: false,
            tidy_due: None,
            stop_deadline: None,
            fatal: None,
        })
    }

    /// Serves until stopped or until the image is unusable, then closes the device.
    ///
    /// # Errors
    /// What made the image unusable, or the error of closing it.
    pub(super) fn run(mut self) -> Result<()> {
        let mut ready = Vec::new();
        while self.fatal.is_none() && !self.is_drained() {
            match self.wait(&mut ready) {
                Ok(now) => self.parts.shared.tally.begin_turn(now),
                Err(error) => {
                    self.fatal = Some(Error::new(ErrorKind::Io, error.to_string()));
                    break;
                }
            }
            self.take_events(&ready);
            let served = self.serve_round();
            let commanded = self.run_commands();
            self.after_work(served || commanded);
            self.answer_finished();
        }
        self.close()
    }

    /// Waits until there is something to do. Returns the time then.
    fn wait(&mut self, ready: &mut Vec<Ready>) -> io::Result<Instant> {
        let mut now = Instant::now();
        if self.has_more() {
            self.poll.wait(Some(Duration::ZERO), ready)?;
            return Ok(now);
        }
        self.spin.idle(now);
        while self.spin.should_spin(now) {
            self.poll.wait(Some(Duration::ZERO), ready)?;
            now = Instant::now();
            if !ready.is_empty() {
                self.spin.woken(now);
                return Ok(now);
            }
            std::thread::yield_now();
        }
        self.poll.wait(self.timeout(now), ready)?;
        now = Instant::now();
        self.spin.woken(now);
        Ok(now)
    }

    fn close(mut self) -> Result<()> {
        // The socket goes first: once the device has released the image, the socket's path belongs
        // to the next owner.
        self.parts.control = None;
        // A client that is disconnected may come back at once, and must not be given to this host.
        self.parts.shared.set_over();
        self.parts.shared.end_holds();
        self.forget_clients();
        let waiting = self.leave_to.iter().map(|c| Arc::clone(c.shared_socket())).collect();
        let beating = self.pulse.begin(None, waiting);
        let closed = self.parts.device.close();
        drop(beating);
        for mut client in self.leave_to {
            // The image is closed, which is what was asked for. Lost writes are reported when it is
            // opened next.
            client.answer(Ok(Reply::Done));
        }
        let outcome = self.fatal.map_or(closed, Err);
        if let Err(failure) = &outcome {
            tracing::error!(image = %self.parts.options.name, "no longer served: {}", failure.sentence());
        }
        outcome
    }

    fn forget_clients(&mut self) {
        self.parts.shared.connections.store(0, Ordering::Release);
        self.clients = Slab::new();
        self.controls = Slab::new();
    }

    fn is_drained(&self) -> bool {
        let Some(deadline) = self.stop_deadline else { return false };
        let idle = self.clients.is_empty() && self.local.is_settled() && !self.messages_left;
        // Control clients wait only for the rest of their answer.
        let answered = self.controls.values().all(|control| !control.client.wants_to_send());
        idle && answered || Instant::now() >= deadline
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        let idle = [self.idle.space_due(), self.idle.due()];
        let flush = self.parts.device.awaits_flush().then(|| now + FLUSH_LOOK_INTERVAL);
        let timers =
            [Some(self.pacer.due()), self.tidy_due, self.stop_deadline, idle[0], idle[1], flush];
        timers.into_iter().flatten().min().map(|due| due.saturating_duration_since(now))
    }

    /// True if there is something to do without waiting.
    fn has_more(&self) -> bool {
        !self.again.is_empty() || self.messages_left || self.commands_left
    }

    fn take_events(&mut self, ready: &[Ready]) {
        self.active.append(&mut self.again);
        let mut look_into_inbox = self.messages_left;
        for event in ready {
            match event.token {
                TOKEN_WAKE => look_into_inbox = true,
                TOKEN_CONTROL => self.accept_control(),
                // Completions are taken in every turn.
                TOKEN_COMPLETION => {}
                token => self.take_client_event(token - TOKEN_CLIENTS, event),
            }
        }
        if look_into_inbox {
            self.take_messages();
        }
        if self.awaits_completions() {
            let answered = self.take_completion();
            self.active.extend(answered);
        }
        self.active.sort_unstable();
        self.active.dedup();
    }

    fn take_client_event(&mut self, number: u64, event: &Ready) {
        let Ok(index) = usize::try_from(number / 2) else { return };
        if number.is_multiple_of(2) {
            let Some(Client { client, .. }) = self.clients.get_mut(index) else { return };
            if event.writable {
                client.transmit();
            }
            if event.readable && client.wants_to_receive() {
                client.receive();
            }
            if event.hung_up {
                client.hung_up();
            }
            self.active.push(index);
        } else {
            self.take_control_event(index, event);
        }
    }

    /// Answers what the device has completed since its round. Returns the clients concerned.
    fn take_completion(&mut self) -> Vec<usize> {
        let mut answered = Vec::new();
        while let Some(completion) = self.parts.device.take_completion() {
            match completion {
                Completion::Read(CompletedRead { number, result }) if number >= FIRST_READ => {
                    self.local.answer_read(number, result);
                }
                Completion::Read(CompletedRead { number, result }) => {
                    let index = self.by_number.get(&(number >> READ_NUMBER_BITS)).copied();
                    let client = index.and_then(|index| self.clients.get_mut(index));
                    // The client has gone.
                    let (Some(index), Some(Client { client, .. })) = (index, client) else {
                        continue;
                    };
                    client.answer_completed(number, result);
                    answered.push(index);
                }
                Completion::Written(result) => {
                    self.local.answer_written(&result);
                    for index in self.clients.indices() {
                        let client = self.clients.get_mut(index);
                        if client.is_some_and(|c| c.client.answer_written(&result)) {
                            answered.push(index);
                        }
                    }
                    if let Err(failure) = &result {
                        self.note_failure(failure);
                    }
                }
                Completion::Parked(number, result) => {
                    let (device, indices) = (&mut *self.parts.device, self.clients.indices());
                    if !self.local.answer_parked(number, &result, device) {
                        let waits = |index: &usize| {
                            let client = self.clients.get_mut(*index);
                            client.is_some_and(|c| c.client.answer_parked(number, &result, device))
                        };
                        answered.extend(indices.into_iter().find(waits));
                    }
                    if let Err(failure) = &result {
                        self.note_failure(failure);
                    }
                }
                Completion::Flushed(result) => {
                    self.local.answer_flushes(&result);
                    for index in self.clients.indices() {
                        let client = self.clients.get_mut(index);
                        if client.is_some_and(|c| c.client.answer_flushes(&result)) {
                            answered.push(index);
                        }
                    }
                    if let Err(failure) = &result {
                        self.note_failure(failure);
                    }
                }
                Completion::Unflushed(below, failure) => {
                    self.local.fail_flushes(below, &failure);
                    for index in self.clients.indices() {
                        let client = self.clients.get_mut(index);
                        if client.is_some_and(|c| c.client.fail_flushes(below, &failure)) {
                            answered.push(index);
                        }
                    }
                }
            }
        }
        answered.sort_unstable();
        answered.dedup();
        for index in &answered {
            if let Some(Client { client, .. }) = self.clients.get_mut(*index) {
                client.transmit();
            }
        }
        answered
    }

    /// Answers what is complete although the descriptor does not say so: a flush, a read or a command may
    /// have waited for what was in flight.
    fn answer_finished(&mut self) {
        if self.awaits_completions() {
            let answered = self.take_completion();
            self.again.extend(answered);
        }
    }

    fn awaits_completions(&self) -> bool {
        self.watches_completions || self.parts.device.awaits_flush()
    }

    /// Watches for completions from the first operation in flight on.
    fn watch_completions(&mut self) {
        let Some(fd) = self.parts.device.completion_fd() else { return };
        if let Err(error) = self.poll.add(fd, TOKEN_COMPLETION, Interest::READABLE) {
            self.fatal = Some(Error::new(ErrorKind::Io, error.to_string()));
        }
        self.watches_completions = true;
    }

    fn take_messages(&mut self) {
        self.parts.wake.take();
        for _ in 0..MESSAGES_PER_TURN_MAX {
            let Ok(message) = self.parts.inbox.try_recv() else {
                self.messages_left = false;
                return;
            };
            self.take_message(message);
        }
        self.messages_left = true;
    }

    fn take_message(&mut self, message: Message) {
        match message {
            Message::Submit(request, done) => {
                self.local.push(request, done, self.parts.device.size_bytes());
            }
            Message::AttachNbd(socket, settings) => self.attach(socket, settings),
            Message::Execute(command, sender) => self.commands.push((command, sender)),
            Message::SetUsage(usage) => self.parts.options.usage = usage,
            Message::SetAttendant(attendant) => self.set_attendant(attendant),
            Message::StopIfUnused(sender) => {
                let unused = self.stop_if_unused().is_ok();
                let _ = sender.send(unused);
            }
            Message::Stop => self.begin_stop(),
        }
    }

    fn begin_stop(&mut self) {
        if self.stop_deadline.is_none() {
            self.stop_deadline = Some(Instant::now() + DRAIN_TIME_MAX);
            // Received requests are still carried out: all clients take part in the coming round.
            self.active.extend(self.clients.indices());
        }
    }

    fn attach(&mut self, socket: std::os::fd::OwnedFd, settings: NbdConnection) {
        let peer = settings.peer.clone();
        let image = &self.parts.options.name;
        let number = self.attached;
        self.attached += 1;
        let first_read = number << READ_NUMBER_BITS;
        let tally = Arc::clone(&self.parts.shared.tally);
        let connection = Connection::new(socket, settings, first_read, tally);
        let attached = connection.and_then(|connection| {
            let client = Box::new(connection);
            let index = self.clients.insert(Client { client, interest: Interest::READABLE });
            self.by_number.insert(number, index);
            let Some(added) = self.clients.get_mut(index) else { return Ok(index) };
            let token = TOKEN_CLIENTS + 2 * index as u64;
            match self.poll.add(added.client.socket(), token, Interest::READABLE) {
                Ok(()) => Ok(index),
                Err(error) => {
                    self.by_number.remove(&number);
                    self.clients.remove(index);
                    Err(error)
                }
            }
        });
        match attached {
            Ok(index) => {
                tracing::debug!(%image, peer, "nbd client attached");
                self.active.push(index);
            }
            Err(error) => {
                self.parts.shared.connections.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!(%image, peer, %error, "nbd client refused");
            }
        }
    }

    /// Carries out the operations of the active lanes. Returns true if there were any.
    fn serve_round(&mut self) -> bool {
        let mut indices = std::mem::take(&mut self.active);
        let before = indices.partition_point(|index| *index < self.looks_first);
        indices.rotate_left(before);
        let mut looking = Looking::new();
        let mut taken: Vec<(usize, Client<Connection>)> = Vec::with_capacity(indices.len());
        for index in indices {
            if let Some(mut client) = self.clients.borrow_out(index) {
                let was_spent = looking.is_spent();
                client.client.plan(&*self.parts.device, &mut looking);
                if looking.is_spent() && !was_spent {
                    self.looks_first = index + 1;
                }
                taken.push((index, client));
            }
        }
        let mut lanes: Vec<&mut dyn Lane> = Vec::with_capacity(taken.len() + 1);
        let planned = taken.iter_mut().map(|(_, c)| c.client.as_mut()).filter(|c| c.has_plan());
        lanes.extend(planned.map(|c| c as &mut dyn Lane));
        if !self.local.is_empty() {
            lanes.push(&mut self.local);
        }
        let served = !lanes.is_empty();
        let tally = &self.parts.shared.tally;
        if let Err(failure) = round::run(&mut *self.parts.device, &mut lanes, tally) {
            self.fatal = Some(failure);
        }
        for (index, client) in taken {
            self.clients.put_back(index, client);
            self.settle(index);
        }
        if !self.watches_completions {
            self.watch_completions();
        }
        served
    }

    /// Decides what a client waits for after its turn.
    fn settle(&mut self, index: usize) {
        let Some(Client { client, interest }) = self.clients.get_mut(index) else { return };
        if self.stop_deadline.is_some() && !client.can_plan() {
            client.close_after_replies();
        }
        if client.is_over() {
            self.detach(index);
            return;
        }
        if client.can_plan() {
            self.again.push(index);
        }
        let wanted =
            Interest { readable: client.wants_to_receive(), writable: client.wants_to_send() };
        if wanted != *interest {
            *interest = wanted;
            let token = TOKEN_CLIENTS + 2 * index as u64;
            if let Err(error) = self.poll.modify(client.socket(), token, wanted) {
                tracing::warn!(%error, peer = client.peer(), "nbd client dropped");
                self.detach(index);
            }
        }
    }

    fn detach(&mut self, index: usize) {
        let Some(client) = self.clients.remove(index) else { return };
        self.by_number.remove(&(client.client.next_read() >> READ_NUMBER_BITS));
        self.again.retain(|&i| i != index);
        // Closing the socket takes it out of the poll set too.
        tracing::debug!(image = %self.parts.options.name, peer = client.client.peer(), "detached");
        self.parts.shared.connections.fetch_sub(1, Ordering::AcqRel);
    }

    /// Runs the commands that have arrived. Returns true if there were any.
    fn run_commands(&mut self) -> bool {
        let commands = std::mem::take(&mut self.commands);
        let ran = !commands.is_empty();
        for (command, sender) in commands {
            let beating = self.begin_busy(None);
            let outcome = self.execute(&command, &mut |done, total| {
                // If nobody listens any more, the command goes on all the same.
                let _ = sender.send(Event::Progress(done, total));
            });
            self.end_busy(beating);
            let _ = sender.send(Event::Done(outcome));
        }
        self.run_control_commands() || ran
    }

    fn execute(&mut self, command: &Command, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
        if matches!(command, Command::Status) {
            return Ok(self.status());
        }
        if let Command::Read { length, .. } = command
            && *length > READ_BYTES_MAX
        {
            return Err(Error::new(ErrorKind::Invalid, "a read of more than 32 MiB at once"));
        }
        let size_bytes = self.parts.device.size_bytes();
        let outcome =
            self.attend_before(command).and_then(|()| self.parts.device.execute(command, progress));
        if let Err(error) = &outcome {
            self.note_failure(error);
        }
        self.parts.shared.size_bytes.store(self.parts.device.size_bytes(), Ordering::Release);
        self.attend_after(command, size_bytes);
        outcome
    }

    fn note_failure(&mut self, failure: &Error) {
        if failure.kind().ends_writing() && self.fatal.is_none() {
            self.fatal = Some(failure.clone());
            // Clients learn of it from now on. One that connects again must not be given to this host.
            self.parts.shared.set_over();
            self.parts.shared.end_holds();
        }
    }

    fn status(&self) -> Reply {
        let io = self.parts.shared.tally.counts();
        let watcher = Watcher { pid: std::process::id(), usage: self.usage(), io };
        Reply::Status { watchers: vec![watcher] }
    }

    fn usage(&self) -> String {
        self.parts.options.usage.clone().unwrap_or_else(|| match self.clients.len() {
            1 => "nbd, 1 connection".to_owned(),
            connections => format!("nbd, {connections} connections"),
        })
    }

    /// Background work, and buffers of quiet connections.
    fn after_work(&mut self, served: bool) {
        let now = Instant::now();
        if served {
            self.pacer.served(now);
            self.idle.used(now);
            self.tidy_due.get_or_insert(now + TIDY_INTERVAL);
        }
        if self.tidy_due.is_some_and(|due| now >= due) {
            self.tidy(now);
        }
        if self.idle.space_due().is_some_and(|due| now >= due) && self.fatal.is_none() {
            self.idle.space_given_back();
            self.parts.device.give_space_back();
            self.pacer.served(now);
        }
        if now >= self.pacer.due() && self.fatal.is_none() {
            self.background_step(now, served);
        }
        if self.idle.due().is_some_and(|due| now >= due) && self.fatal.is_none() {
            self.give_memory_back(now);
        }
    }

    /// Gives memory back, because the image is idle.
    fn give_memory_back(&mut self, now: Instant) {
        let outcome = self.parts.device.rest().unwrap_or_else(|error| {
            tracing::warn!(image = %self.parts.options.name, "cannot give memory back: {}", error.sentence());
            self.note_failure(&error);
            IdleOutcome::default()
        });
        if self.idle.called(now, outcome) {
            heap::trim();
        }
    }

    fn background_step(&mut self, start: Instant, busy: bool) {
        let more = self.parts.device.background_step().unwrap_or_else(|error| {
            tracing::warn!(image = %self.parts.options.name, "background work failed: {}", error.sentence());
            self.note_failure(&error);
            false
        });
        let end = Instant::now();
        self.pacer.stepped(start, end, more, busy);
        if more {
            self.idle.used(end);
        }
    }

    fn tidy(&mut self, now: Instant) {
        let mut held = false;
        for Client { client, .. } in self.clients.values_mut() {
            client.tidy();
            held |= client.holds_memory();
        }
        self.tidy_due = held.then(|| now + TIDY_INTERVAL);
    }
}
