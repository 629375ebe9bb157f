//! The control clients of an image's thread, and how the image gives way to one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcot::{Error, ErrorKind, Result};

use super::{Client, EventLoop, TOKEN_CLIENTS};
use crate::control::{Beating, Command, ControlConnection, GroupStep};
use crate::poll::{Interest, Ready};

/// Control clients served at once.
const CONTROL_CLIENTS_MAX: usize = 64;

impl EventLoop {
    pub(super) fn accept_control(&mut self) {
        let Some(listener) = &self.parts.control else { return };
        match listener.accept() {
            Ok(Some(client)) => self.add_control(client),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = %error.sentence(), "cannot accept a control connection")
            }
        }
    }

    fn add_control(&mut self, client: ControlConnection) {
        if self.controls.len() >= CONTROL_CLIENTS_MAX {
            return;
        }
        let client = Box::new(client);
        let index = self.controls.insert(Client { client, interest: Interest::READABLE });
        let Some(added) = self.controls.get_mut(index) else { return };
        let token = TOKEN_CLIENTS + 2 * index as u64 + 1;
        if self.poll.add(added.client.socket(), token, Interest::READABLE).is_err() {
            self.controls.remove(index);
        }
        self.tell_controls();
    }

    fn tell_controls(&self) {
        self.parts.shared.control_clients.store(self.controls.len(), Ordering::Release);
    }

    /// Called before a command runs, for this client or for none of them. If the command takes long, all
    /// waiting clients get signs of life.
    pub(super) fn begin_busy(&self, client: Option<&ControlConnection>) -> Beating {
        let others = self.controls.values().map(|control| &*control.client);
        let waiting = others.chain(client).filter(|client| !client.wants_to_send());
        let waiting = waiting.map(|client| Arc::clone(client.shared_socket())).collect();
        self.pulse.begin(self.parts.control.as_ref(), waiting)
    }

    pub(super) fn end_busy(&mut self, beating: Beating) {
        for socket in beating.end() {
            let Some(listener) = &self.parts.control else { return };
            match listener.connection(socket) {
                Ok(Some(client)) => self.add_control(client),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = %error.sentence(), "cannot accept a control connection")
                }
            }
        }
    }

    /// Begins to close the image for a command, unless somebody uses it.
    ///
    /// # Errors
    /// `Busy`, which names the user.
    fn give_way(&mut self) -> Result<()> {
        match self.parts.options.gives_way {
            true => self.stop_if_unused(),
            false => Err(in_use_by(&self.usage())),
        }
    }

    /// Begins to close the image, unless somebody uses it.
    ///
    /// # Errors
    /// `Busy`, which names the user.
    pub(super) fn stop_if_unused(&mut self) -> Result<()> {
        if self.stop_deadline.is_some() {
            return Ok(());
        }
        // A client that has gone since the last wait is no user. Requests of others are answered in this
        // turn or the next.
        for control in self.controls.values_mut().filter(|c| c.client.wants_to_receive()) {
            control.client.receive();
        }
        let of_process = self.controls.values().find_map(|control| control.client.user());
        let clients = self.parts.shared.connections.load(Ordering::Acquire);
        if clients > 0 || !self.local.is_settled() {
            return Err(in_use_by(&self.usage()));
        }
        if let Some(process) = of_process {
            return Err(in_use_by(&format!("a command of process {process}")));
        }
        if !self.parts.shared.refuse_holds() {
            let known = self.parts.options.usage.is_some().then(|| self.usage());
            return Err(in_use_by(known.as_deref().unwrap_or("a client that has just come")));
        }
        self.begin_stop();
        Ok(())
    }

    pub(super) fn take_control_event(&mut self, index: usize, event: &Ready) {
        let Some(Client { client, .. }) = self.controls.get_mut(index) else { return };
        if event.writable {
            client.transmit();
        }
        if event.readable {
            client.receive();
        }
    }

    /// Runs one command of each control client that has sent one. Returns true if there were any.
    pub(super) fn run_control_commands(&mut self) -> bool {
        let mut ran = false;
        for index in self.controls.indices() {
            let Some(mut taken) = self.controls.borrow_out(index) else { continue };
            let Some(command) = taken.client.next_command() else {
                self.controls.put_back(index, taken);
                self.settle_control(index);
                continue;
            };
            ran = true;
            if matches!(command, Command::GiveWay) {
                match self.give_way() {
                    Ok(()) => {
                        // This client is answered when the image is closed.
                        self.leave_to.push(*taken.client);
                        continue;
                    }
                    Err(error) => taken.client.answer(Err(error)),
                }
            } else if matches!(command, Command::ForGroup { step: GroupStep::Hold }) {
                self.hold(index, &mut taken.client);
            } else if taken.client.begin() {
                let beating = self.begin_busy(Some(&taken.client));
                let pulse = self.pulse.clone();
                let outcome = self.execute_for(index, &command, &mut |done, total| {
                    let mut quiet = pulse.lock();
                    taken.client.tell_progress(done, total);
                    if taken.client.wants_to_send() {
                        quiet.forget(taken.client.shared_socket());
                    }
                });
                self.end_busy(beating);
                taken.client.answer(outcome);
            }
            self.controls.put_back(index, taken);
            self.settle_control(index);
        }
        self.commands_left = ran;
        ran
    }

    fn settle_control(&mut self, index: usize) {
        let Some(Client { client, interest }) = self.controls.get_mut(index) else { return };
        let wanted =
            Interest { readable: client.wants_to_receive(), writable: client.wants_to_send() };
        let mut over = client.is_over();
        if wanted != *interest && !over {
            *interest = wanted;
            let token = TOKEN_CLIENTS + 2 * index as u64 + 1;
            over = self.poll.modify(client.socket(), token, wanted).is_err();
        }
        if over {
            self.controls.remove(index);
            self.tell_controls();
            if self.quiet_for == Some(index) {
                self.end_quiet();
            }
        }
    }
}

fn in_use_by(usage: &str) -> Error {
    // The message does not name the image, which may have been renamed since it was opened.
    Error::new(ErrorKind::Busy, format!("process {}: {usage}", std::process::id()))
}
